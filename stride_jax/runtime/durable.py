"""Long loops that survive a kill: their state is saved at intervals and on a request to stop.

A loop offers its state after each step. All processes decide together whether it is written, so
that they stop at the same step; the next run, on this mesh or another, is resumed from there.
"""

import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from stride_jax.runtime import checkpoint
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.keep import KeepSettings
from stride_jax.runtime.progress import Progress

EXIT_CODE = os.EX_TEMPFAIL
"""75: stopped on request, everything saved; the same command resumes the run."""


class Preempted(SystemExit):
    """Raised once all is saved after a request to stop; the process ends with `EXIT_CODE`."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def __bool__(self) -> bool:
        return self._asked.is_set()

    def listen(self) -> "StopRequest":
        """Take SIGTERM as a request. Call it after `jax.distributed.initialize`, which does too."""
        signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._asked.set()

    def between(self, progress: Progress, together: bool = False) -> Progress:
        """Stop between items of a loop that writes each of them.

        Args:
          progress: wraps the loop.
          together: whether all processes work on each item, so that they stop at the same one; else
            this process decides alone.
        """

        def wrapped(items: Iterable[Any], **options: Any) -> Iterable[Any]:
            for item in progress(items, **options):
                yield item
                if _any(bool(self)) if together else self:
                    raise Preempted

        return wrapped


Report = Callable[[str, int, Mapping[str, Any]], None]
"""Function of a loop's name, its position and numbers, such as `metrics.MetricsWriter`."""


class CheckpointKeep:
    """Checkpoints of the loops of one stage, in a folder of its own."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        mesh: Mesh,
        clock: Callable[[], float],
        settings: KeepSettings = KeepSettings(),
        stop: StopRequest | None = None,
        report: Report | None = None,
    ) -> None:
        self.folder = pathlib.Path(folder)
        self.mesh = mesh
        self.settings = settings
        self.stop = StopRequest() if stop is None else stop
        self._report = report
        self._clock = clock
        self._writers: dict[str, checkpoint.Writer] = {}
        self._saved, self._reported = clock(), (clock(), 0)
        self._every, self._waited, self._met = 1, 0, clock()

    def resume(self, loop: str, state: Any) -> tuple[int, Any]:
        """As in `Keep`; numpy arrays in the state come back as such.

        Raises:
          CheckpointError: a checkpoint that can't be read or has other shapes; names the folder.
        """
        position = 0
        if checkpoint.latest(self.folder / loop) is not None:
            position, state = self._restored(loop, state)
        self._saved, self._reported = self._clock(), (self._clock(), position)
        return position, state

    def _restored(self, loop: str, state: Any) -> tuple[int, Any]:
        named = _named(state)
        like = {name: self._like(v) for name, v in named.items()}
        arrays, note = checkpoint.restore(self.folder / loop, like)
        leaves = [
            np.array(arrays[name]) if isinstance(old, np.ndarray) else arrays[name]
            for name, old in named.items()
        ]
        return int(note["position"]), jax.tree.unflatten(jax.tree.structure(state), leaves)

    def _like(self, v: Any) -> jax.ShapeDtypeStruct:
        where = v.sharding if meshes.mesh_of(v) == self.mesh else meshes.replicated(self.mesh)
        dtype = jax.dtypes.canonicalize_dtype(v.dtype)
        return jax.ShapeDtypeStruct(v.shape, dtype, sharding=where)

    def step(
        self,
        loop: str,
        position: int,
        state: Callable[[], Any],
        metrics: Mapping[str, Any] = {},
        *,
        background: bool = False,
    ) -> None:
        """As in `Keep`.

        Raises:
          Preempted: after saving, if any process was asked to stop.
        """
        now, (then, before) = self._clock(), self._reported
        if self._report and now - then >= self.settings.report_seconds:
            numbers = {name: float(value) for name, value in metrics.items()}
            speed = (position - before) / max(self._clock() - then, 1e-9)
            self._report(loop, position, numbers | {"per_second": speed})
            self._reported = self._clock(), position
        due, asked = self._agreed(now - self._saved >= self.settings.seconds)
        if not (due or asked):
            return
        arrays, folder = meshes.everywhere(_named(state()), self.mesh), self.folder / loop
        if background:
            writer = self._writers.setdefault(loop, checkpoint.Writer(folder))
            writer.save(arrays, {"position": position}, step=position)
        else:
            checkpoint.save(folder, arrays, {"position": position}, step=position, keep_last=1)
        if asked:
            self.settle()
            raise Preempted
        self._saved = self._clock()

    def settle(self) -> None:
        """As in `Keep`.

        Raises:
          CheckpointError: the last state could not be written.
        """
        while self._writers:
            self._writers.popitem()[1].close()

    def _agreed(self, due: bool) -> tuple[bool, bool]:
        """The first process's clock, and any process's request to stop.

        Processes wait for each other to agree, so they do after as many steps as take a second by
        the clock of the first.
        """
        if jax.process_count() == 1:
            return due, bool(self.stop)
        self._waited += 1
        if self._waited < self._every:
            return False, False
        own = np.array([due, bool(self.stop), self._clock() - self._met], np.float32)
        flags = multihost_utils.process_allgather(own)
        self._every = steps_a_second(self._waited, float(flags[0, 2]))
        self._waited, self._met = 0, self._clock()
        return bool(flags[0, 0]), bool(flags[:, 1].any())


def _any(flag: bool) -> bool:
    """Whether a flag is set in any process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def steps_a_second(steps: int, seconds: float) -> int:
    """Steps until processes agree again, if so many took so long: at most twice as many.

    >>> steps_a_second(8, 0.1), steps_a_second(8, 2.0), steps_a_second(1, 60.0)
    (16, 4, 1)
    """
    return max(1, min(2 * steps, int(steps / max(seconds, 1e-6))))


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by their path: orbax does not restore optimisers' named tuples as such."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
