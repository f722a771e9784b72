"""Several processes as one: joined by JAX's coordination service, synchronised where needed."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Address and number of the processes; unset on Cloud TPU, GKE and Slurm, which JAX knows.

    Attributes:
      coordinator: `host:port` of the first process.
      num_processes: number of processes of the job.
      process_id: number of this process, from 0.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        given = [self.coordinator, self.num_processes, self.process_id]
        if any(v is None for v in given) and any(v is not None for v in given):
            raise ValueError(
                f"coordinator={self.coordinator}, num_processes={self.num_processes}, process_id="
                f"{self.process_id}: give all three, or none where the platform knows them"
            )


def connect(cluster: Cluster = Cluster()) -> None:
    """Join the other processes; before JAX is used for anything else.

    Raises:
      RuntimeError: JAX does not know the platform, and the cluster is unset.
    """
    try:
        jax.distributed.initialize(cluster.coordinator, cluster.num_processes, cluster.process_id)
    except ValueError as error:
        raise RuntimeError(
            f"JAX can't find the other processes ({error}): give --coordinator, --num_processes "
            "and --process_id"
        ) from error


def index() -> int:
    """Number of this process."""
    return jax.process_index()


def count() -> int:
    """Number of processes."""
    return jax.process_count()


def leads() -> bool:
    """Whether this process writes what is written once."""
    return index() == 0


def wait(name: str) -> None:
    """Wait until every process has called this."""
    if count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def leader_first(name: str) -> Iterator[None]:
    """The first process runs the block before all others, which can read its files."""
    if not leads():
        wait(name)
    yield
    if leads():
        wait(name)


def share(total: int) -> np.ndarray:
    """This process's part of `total` rows."""
    return np.array_split(np.arange(total), count())[index()]
