"""Checkpoints by orbax: save a pytree with its settings, restore it onto any sharding.

Orbax keeps no digest of what it writes, so checksums of the arrays travel with the settings, in an
envelope that has one of its own.

Orbax is imported in the functions: it takes a second, and only runs need it.
"""

import contextlib
import functools
import logging
import math
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from stride_jax.runtime import digests
from stride_jax.runtime.files import UnreadableFileError, first_line, naming, plain
from stride_jax.runtime.machine import refuse_unpacked
from stride_jax.runtime.memory import is_about_memory


class CheckpointError(UnreadableFileError):
    """A checkpoint that is missing, unreadable or of another shape."""


def save(
    path: str | os.PathLike[str],
    tree: Any,
    config: Any,
    *,
    step: int = 0,
    keep_last: int | None = None,
) -> None:
    """Write `tree` (arrays) and `config` (JSON values) as one checkpoint; orbax renames at the end.

    Every process calls it and writes its own shards.

    Args:
      path: folder of the checkpoint series.
      tree: pytree of arrays.
      config: settings behind the arrays, dataclasses and JSON values.
      step: number of this checkpoint in the series.
      keep_last: number of last checkpoints that stay; all by default.
    """
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=keep_last, enable_async_checkpointing=False)
    folder = pathlib.Path(path).absolute()
    with _writing(folder, step), ocp.CheckpointManager(folder, options=options) as manager:
        manager.save(step, args=_items(tree, config))


class Writer:
    """The last checkpoint of a series, written while the work goes on.

    Orbax renames it when it is whole, and only then removes the one before: a kill leaves one.

    Args:
      path: folder of the checkpoint series.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._folder = pathlib.Path(path).absolute()
        self._manager: Any = None
        self._step = 0

    def save(self, tree: Any, config: Any, *, step: int) -> None:
        """As `save`, but returns once the arrays are on the host and the last one is whole."""
        import orbax.checkpoint as ocp

        self.wait()
        self._step = step
        with _writing(self._folder, step):
            if self._manager is None:
                options = ocp.CheckpointManagerOptions(max_to_keep=1)
                self._manager = ocp.CheckpointManager(self._folder, options=options)
            self._manager.save(step, args=_items(tree, config))

    def wait(self) -> None:
        """Return once the last checkpoint is whole.

        Raises:
          CheckpointError: it could not be written.
        """
        if self._manager is not None:
            with _writing(self._folder, self._step):
                self._manager.wait_until_finished()
                self._manager.check_for_errors()

    def close(self) -> None:
        """`wait`, and let go of the threads."""
        try:
            self.wait()
        finally:
            manager, self._manager = self._manager, None
            if manager is not None:
                manager.close()


def _items(tree: Any, config: Any) -> Any:
    import orbax.checkpoint as ocp

    return ocp.args.Composite(
        params=ocp.args.StandardSave(tree),  # pyright: ignore[reportCallIssue]
        config=ocp.args.JsonSave(_enveloped(tree, config)),  # pyright: ignore[reportCallIssue]
    )


@contextlib.contextmanager
def _writing(folder: pathlib.Path, step: int) -> Iterator[None]:
    """Errors of a write, with the folder and the remedy."""
    logging.getLogger("absl").addFilter(_not_told_twice)
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise many kinds
        if is_about_memory(error):
            raise
        sys.excepthook = functools.partial(_but_closed_loops, sys.excepthook)
        raise CheckpointError(
            f"checkpoint {step} can't be written to {folder} ({first_line(error)}): make room or "
            "give a folder that can be written to, and run the same command again"
        ) from error


def latest(path: str | os.PathLike[str]) -> int | None:
    """Number of the last finished checkpoint in a folder; None without one."""
    folder = pathlib.Path(path).absolute()
    if not folder.is_dir():
        return None
    import orbax.checkpoint as ocp

    with (
        naming(folder, "checkpoints", "delete the folder to make it again"),
        ocp.CheckpointManager(folder) as manager,
    ):
        return manager.latest_step()


def shapes(path: str | os.PathLike[str]) -> Any:
    """Shapes and dtypes of the arrays in the last checkpoint of a folder.

    Raises:
      CheckpointError: nothing there, or it can't be read; names the folder and the remedy.
    """
    import orbax.checkpoint as ocp

    folder = pathlib.Path(path).absolute()
    try:
        with ocp.CheckpointManager(folder, item_handlers=_handlers()) as manager:
            step = manager.latest_step()
            tree = manager.item_metadata(step)["params"].tree
        _refuse_claims(folder, tree)
        return tree
    except Exception as error:  # orbax raises many kinds; the remedy is the same
        if is_about_memory(error):
            raise
        raise CheckpointError(
            f"the checkpoint in {folder} can't be read ({first_line(error)}); delete the folder "
            "to make it again"
        ) from error


def restore(path: str | os.PathLike[str], like: Any, *, step: int | None = None) -> tuple[Any, Any]:
    """Read a checkpoint back.

    Args:
      path: folder of the checkpoint series.
      like: pytree of arrays or `jax.ShapeDtypeStruct`s; shardings they carry are used.
      step: number of the checkpoint; the latest by default.

    Returns:
      `(tree, config)` as saved.

    Raises:
      CheckpointError: nothing there, it does not fit `like`, or it is not what was written; names
        the folder and the remedy.

    Warns:
      UserWarning: an earlier version wrote it, without checksums.
    """
    import orbax.checkpoint as ocp

    folder = pathlib.Path(path).absolute()
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}: train the model first")
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)),
        like,
    )
    step = latest(folder) if step is None else step
    with ocp.CheckpointManager(folder, item_handlers=_handlers()) as manager:
        if step is None:
            raise CheckpointError(f"{folder} holds no finished checkpoint: delete it and run again")
        try:
            # Compared before restoring: orbax leaves its readers open where shapes differ.
            saved = manager.item_metadata(step)["params"]
            if difference := _difference(saved, shapes):
                raise ValueError(difference)
            _refuse_claims(folder, saved.tree)
            out = manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(shapes),  # pyright: ignore[reportCallIssue]
                    config=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:  # orbax raises many kinds; the remedy is the same
            if is_about_memory(error):
                raise
            raise CheckpointError(
                f"checkpoint {step} in {folder} can't be restored into the expected shapes "
                f"({error}); delete the folder to make it again, or restore with its own settings"
            ) from error
    return out["params"], _verified(folder, step, out["params"], out["config"])


def _not_told_twice(record: logging.LogRecord) -> bool:
    """Whether a log record is not of an error that orbax' threads log before they raise it.

    Nor says that one write waits for another, as it does where there are many on purpose.
    """
    return not any(own in str(record.msg) for own in ("_SignalingThread", "Waiting for previous"))


def _but_closed_loops(
    hook: Callable[..., Any], kind: type[BaseException], error: BaseException, trace: Any
) -> None:
    """What is printed of uncaught errors, without those of writes that a failed one left behind."""
    if str(error) != "Event loop is closed":
        hook(kind, error, trace)


def read_config(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str], int]:
    """What lies beside the arrays of the last checkpoint of a folder; no array is read.

    Returns:
      The config as saved, the arrays' checksums by path, and the checkpoint's number.

    Raises:
      CheckpointError: nothing there, damaged, or written by a version without checksums.
    """
    import orbax.checkpoint as ocp

    folder = pathlib.Path(path).absolute()
    try:
        with ocp.CheckpointManager(folder, item_handlers=_handlers()) as manager:
            step = manager.latest_step()
            if step is None:
                raise ValueError("no finished checkpoint")
            args = ocp.args.Composite(config=ocp.args.JsonRestore())  # pyright: ignore[reportCallIssue]
            content = digests.opened(manager.restore(step, args=args)["config"])
    except Exception as error:  # orbax raises many kinds; the remedy is the same
        if is_about_memory(error):
            raise
        raise CheckpointError(
            f"the checkpoint in {folder} can't be read ({first_line(error)}): copy it anew, or "
            "make it again"
        ) from error
    return content["config"], content["arrays"], step


def restore_one(path: str | os.PathLike[str], like: Any, position: int | None) -> Any:
    """Read one tree of the last checkpoint of a folder: the whole, or one of a list of trees.

    Args:
      path: folder of the checkpoint series.
      like: the tree as `jax.ShapeDtypeStruct`s with shardings.
      position: its place in the list; None where the checkpoint is the tree itself.

    Raises:
      CheckpointError: it can't be read, or is not what was written.
    """
    import orbax.checkpoint as ocp

    folder = pathlib.Path(path).absolute()
    _, written, step = read_config(folder)
    wanted: Any = like
    args = ocp.checkpoint_utils.construct_restore_args(like)
    if position is not None:
        stored = shapes(folder)
        wanted = [jax.tree.map(lambda _: ocp.PLACEHOLDER, tree) for tree in stored]
        wholes: list[Any] = [jax.tree.map(lambda _: ocp.RestoreArgs(), tree) for tree in stored]
        wanted[position], wholes[position] = like, args
        args = wholes
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            restore = ocp.args.PyTreeRestore(item=wanted, restore_args=args)  # pyright: ignore[reportCallIssue]
            tree = reader.restore(folder / str(step) / "params", args=restore)
    except Exception as error:  # orbax raises many kinds; the remedy is the same
        if is_about_memory(error):
            raise
        raise CheckpointError(
            f"checkpoint {step} in {folder} can't be restored ({first_line(error)}): copy it anew, "
            "or make it again"
        ) from error
    prefix = "" if position is None else f"[{position}]"
    tree = tree if position is None else tree[position]
    own = {n.removeprefix(prefix): v for n, v in written.items() if n.startswith(prefix)}
    if bad := digests.differing(tree, own):
        raise CheckpointError(
            f"checkpoint {step} in {folder} is not what was written: {prefix}{bad[0]} differs: a "
            "disk or a copy damaged it; copy it anew, or make it again"
        )
    return tree


def _enveloped(tree: Any, config: Any) -> dict[str, Any]:
    """The settings, and checksums of the arrays that they are of."""
    return digests.sealed({"config": plain(config), "arrays": digests.by_path(tree)})


def _verified(folder: pathlib.Path, step: int, tree: Any, envelope: Any) -> Any:
    """The settings behind arrays that are what was written."""
    if not digests.is_sealed(envelope):
        warnings.warn(
            f"checkpoint {step} in {folder} was written by an earlier version, without checksums: "
            "damage to it can't be told",
            stacklevel=3,
        )
        return envelope
    remedy = "a disk or a copy damaged it; delete the folder to make it again, or copy it anew"
    try:
        content = digests.opened(envelope)
    except ValueError as error:
        raise CheckpointError(
            f"the settings of checkpoint {step} in {folder} are damaged ({error}): {remedy}"
        ) from error
    if bad := digests.differing(tree, content["arrays"]):
        raise CheckpointError(
            f"checkpoint {step} in {folder} is not what was written: {len(bad)} of "
            f"{len(content['arrays'])} arrays differ, first {bad[0]}: {remedy}"
        )
    return content["config"]


def _handlers() -> dict[str, Any]:
    """Handlers by item, from which the manager knows the shapes that it holds."""
    import orbax.checkpoint as ocp

    return {"params": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}


def _refuse_claims(folder: pathlib.Path, saved: Any) -> None:
    """Refuse arrays of more than a checkpoint's bytes can hold, and pieces larger than the whole.

    Args:
      folder: of the checkpoint.
      saved: metadata of its arrays, which may be anybody's.

    Raises:
      ValueError: memory would be taken out of proportion; orbax ends the process where it can't be.
    """
    leaves = jax.tree.leaves(saved, is_leaf=lambda x: hasattr(x, "shape"))
    for leaf in leaves:
        piece = getattr(leaf.storage, "chunk_shape", None) or leaf.shape
        if any(own > max(whole, 1) for own, whole in zip(piece, leaf.shape, strict=True)):
            raise ValueError(f"{leaf.name} is {leaf.shape}, in pieces of {tuple(piece)}")
    needed = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)
    stored = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    refuse_unpacked(needed, stored, f"its {len(leaves)} arrays")


def _difference(saved: Any, wanted: Any) -> str | None:
    """The first array that two trees do not share, in words; None where all shapes agree."""

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
        return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}

    ours, theirs = shapes(wanted), shapes(saved)
    for name in sorted(ours | theirs):
        if ours.get(name) != theirs.get(name):
            return f"{name} is {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here"
    return None
