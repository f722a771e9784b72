"""Recovery of a run's queries in blocks, divided among processes and written one by one."""

import dataclasses
import pathlib

import numpy as np

from stride_jax.reading import named_diagnostics
from stride_jax.recovery import LassoState, Recovery, joined, recover
from stride_jax.run.products import Arrays
from stride_jax.runtime import processes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import read_arrays, write_arrays
from stride_jax.settings import ReadSettings

# Queries that are recovered, and written, together.
_BLOCK = 1024


def recover_in_blocks(
    state: LassoState,
    y_QxK: np.ndarray,
    settings: ReadSettings,
    folder: pathlib.Path,
    execution: Execution,
) -> Arrays:
    """Influences of all queries; blocks that are written already are read back.

    Args:
      state: state of the Lasso for the design.
      y_QxK: measurements, nats.
      settings: the Lasso, and the rule of its lambda.
      folder: folder of the blocks.
      execution: progress of the blocks.

    Returns:
      The fields of `Recovery`, and diagnostics by name.
    """
    # Another number of processes divides the queries differently.
    folder = folder / f"of-{processes.count()}"
    rows = processes.share(len(y_QxK))
    for first in execution.progress(range(0, len(rows), _BLOCK), desc="recovery"):
        block = rows[first : first + _BLOCK]
        path = folder / f"{block[0]:09d}-{block[-1]:09d}.npz"
        if path.exists():
            continue
        recovery, diagnostics = recover(state, y_QxK[block], settings.lasso, settings.selection)
        named = named_diagnostics(diagnostics)
        write_arrays(path, **dataclasses.asdict(recovery), **named)
    processes.wait("recovery done")
    parts = [read_arrays(path) for path in sorted(folder.glob("*.npz"))]
    fields = [field.name for field in dataclasses.fields(Recovery)]
    recoveries = [Recovery(**{name: part.pop(name) for name in fields}) for part in parts]  # pyright: ignore[reportArgumentType]
    rest = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return dataclasses.asdict(joined(recoveries)) | rest
