"""Devices, progress bars, checkpoints and memory of the work: nothing that changes its results."""

import dataclasses

from jax.sharding import Mesh

from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.keep import Keep, nowhere
from stride_jax.runtime.progress import Progress, silent


@dataclasses.dataclass(frozen=True)
class Execution:
    """Everything that changes results by rounding at most, in one argument.

    Attributes:
      mesh: devices; None for those of this process, as many along `subset` as divide K.
      progress: wrapper of long loops, such as a progress bar.
      keep: where long loops write their state.
      memory: bytes that temporaries may take on a device; each stage sizes its batches to fit.
      batch_size: examples per step of the pass over a training set, per row of devices along
        `subset`, where `memory` allows it.

    >>> Execution(memory=0)
    Traceback (most recent call last):
    ValueError: memory=0 bytes, batch_size=2048: both must be positive
    """

    mesh: Mesh | None = None
    progress: Progress = silent
    keep: Keep = nowhere
    memory: int = 2**30
    batch_size: int = 2048

    def __post_init__(self) -> None:
        if self.memory < 1 or self.batch_size < 1:
            raise ValueError(
                f"memory={self.memory} bytes, batch_size={self.batch_size}: both must be positive"
            )

    def mesh_for(self, num_subsets: int) -> Mesh:
        """The mesh, or this process's devices arranged for K subsets."""
        return meshes.mesh_for(num_subsets) if self.mesh is None else self.mesh
