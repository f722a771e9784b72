"""Several processes as one: joined by JAX's coordination service, in step where they must be."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where processes meet; nothing to say on Cloud TPU, GKE and Slurm, which JAX knows.

    Attributes:
      coordinator: `host:port` of the first process.
      num_processes: of the whole job.
      process_id: this one's.
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
      RuntimeError: JAX can't tell where it runs, and nothing was said.
    """
    try:
        jax.distributed.initialize(cluster.coordinator, cluster.num_processes, cluster.process_id)
    except ValueError as error:
        raise RuntimeError(
            f"JAX can't find the other processes ({error}): give --coordinator, --num_processes "
            "and --process_id"
        ) from error


def index() -> int:
    """This process."""
    return jax.process_index()


def count() -> int:
    """All processes."""
    return jax.process_count()


def leads() -> bool:
    """Whether this is the process that writes what there is one of."""
    return index() == 0


def wait(name: str) -> None:
    """Until every process is here."""
    if count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def leader_first(name: str) -> Iterator[None]:
    """The first process runs the block before all others do, which then find what it made."""
    if not leads():
        wait(name)
    yield
    if leads():
        wait(name)


def share(total: int) -> np.ndarray:
    """This process's part of so many rows."""
    return np.array_split(np.arange(total), count())[index()]
