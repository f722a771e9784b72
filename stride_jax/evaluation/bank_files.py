"""The bank on disk: shards of retrained models, trained by one worker or several.

A shard is written as soon as its models are trained, so a killed run loses one shard at most. The
folder is named by a hash of everything that the outputs depend on.

Letters of its own: M retrained subsets.
"""

import dataclasses
import functools
import os
import pathlib
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from stride_jax.evaluation.bank import Bank, BankSettings, Origin, draw_subsets
from stride_jax.evaluation.retrain import (
    Outputs,
    Retraining,
    chunks,
    device_data,
    mesh_of_models,
    model_keys,
    train_and_score,
)
from stride_jax.evaluation.retrain_split import train_and_score_split
from stride_jax.examples import Examples
from stride_jax.ids import row_chunks
from stride_jax.runtime import processes
from stride_jax.runtime.files import (
    UnreadableFileError,
    fingerprint,
    read_arrays,
    write_arrays,
    write_json,
)
from stride_jax.runtime.progress import Progress, silent
from stride_jax.runtime.rows import Rows

Folder = str | os.PathLike[str]


class IncompleteBankError(ValueError):
    """Shards of a bank are still missing."""


def bank_origin(setup: Retraining) -> Origin:
    """Model, recipe and data of a bank, as values that can be compared and written."""
    data = [_fingerprint(e) for e in (setup.train, setup.query)]
    start = "" if setup.start is None else setup.start.digest
    return Origin(repr(setup.module), setup.training, len(setup.train), *data, start=start)


def _fingerprint(examples: Examples) -> str:
    """Hash of examples; of those that are not held, of their ids, which name their content."""
    if not isinstance(examples.inputs, Rows):
        return fingerprint(examples.inputs, examples.labels)
    return fingerprint(*(ids for _, (ids,) in row_chunks(examples.ids)))


def bank_key(origin: Origin, settings: BankSettings) -> str:
    """Hash of everything that the outputs depend on, which leaves out `models_at_once`."""
    return fingerprint(origin, dataclasses.replace(settings, models_at_once=1))


def _shards(
    home: pathlib.Path, settings: BankSettings, setup: Retraining
) -> dict[pathlib.Path, tuple[int, int]]:
    """Path of every shard, and its range of models; one each where a mesh trains them."""
    total = settings.num_subsets * settings.num_seeds
    size = min(settings.models_at_once, total) if setup.mesh is None else 1
    return {
        home / f"models-{start:05d}-{stop:05d}.npz": (start, stop)
        for start, stop in chunks(total, size)
    }


def fill_bank(
    setup: Retraining,
    settings: BankSettings,
    folder: Folder,
    *,
    worker: tuple[int, int] = (0, 1),
    progress: Progress = silent,
    clock: Callable[[], float] | None = None,
) -> None:
    """Train the models of one worker's shards that are not there yet.

    Args:
      setup: model, data and recipe.
      settings: subsets and seeds.
      folder: folder of banks; this one is in `folder/<bank_key>`, one file per shard of models.
      worker: `(i, n)`: the i-th of n contiguous ranges of shards. Workers need the same
        `models_at_once` and, to be read as one bank, the same folder. Where a mesh trains each
        model, all its processes are one worker.
      progress: wraps the worker's shards.
      clock: seconds, such as `time.monotonic`; None records no time.

    Raises:
      ValueError: a worker outside its range.

    Warns:
      UserWarning: with the path of a corrupt shard, which is set aside and trained again.
    """
    i, n = worker
    if not 0 <= i < n:
        raise ValueError(f"worker={worker}: use (i, n) with 0 <= i < n")
    members_MxS = draw_subsets(len(setup.train), settings)
    origin = bank_origin(setup)
    home = pathlib.Path(folder) / bank_key(origin, settings)
    if processes.leads() or setup.mesh is None:
        write_json(home / "settings.json", {"bank": settings, "origin": origin})
    trained = _together(setup) if setup.mesh is None else _split(setup)
    shards = list(_shards(home, settings, setup).items())
    own = shards[len(shards) * i // n : len(shards) * (i + 1) // n]
    total = settings.num_subsets * settings.num_seeds
    for path, (start, stop) in progress(own, desc="bank", total=len(own)):
        if _is_there(path, (stop - start, len(setup.query)), setup):
            continue
        began = clock() if clock else 0.0
        # Every shard has one shape: the last one repeats its last model.
        size = min(settings.models_at_once, total) if setup.mesh is None else 1
        model = np.minimum(np.arange(start, start + size), total - 1)
        subset, seed = model // settings.num_seeds, model % settings.num_seeds
        out = trained(members_MxS[subset], model_keys(settings.seed, subset, seed))
        losses, margins = (np.asarray(values)[: stop - start] for values in out)
        seconds = (clock() if clock else 0.0) - began
        if processes.leads() or setup.mesh is None:
            write_arrays(path, losses=losses, margins=margins, seconds=seconds)


_Train = Callable[[np.ndarray, jax.Array], Outputs]


def _together(setup: Retraining) -> _Train:
    """Models of a shard under `vmap`, on data that each device holds."""
    data = device_data(setup)

    def trained(subsets_BxS: np.ndarray, keys_B: jax.Array) -> Outputs:
        return train_and_score(
            data, jnp.asarray(subsets_BxS), keys_B,
            module=setup.module, training=setup.training, mesh=mesh_of_models(len(subsets_BxS)),
        )  # fmt: skip

    return trained


def _split(setup: Retraining) -> _Train:
    """Models of a shard one after the other, each over the mesh."""
    return functools.partial(train_and_score_split, setup)


def _is_there(path: pathlib.Path, shape: tuple[int, int], setup: Retraining) -> bool:
    """Whether a shard is finished; the first process decides where all work together."""
    if setup.mesh is None or processes.count() == 1:
        return _read_shard(path, shape) is not None
    there = processes.leads() and _read_shard(path, shape) is not None
    return bool(multihost_utils.broadcast_one_to_all(np.array(there)))


def read_bank(setup: Retraining, settings: BankSettings, folder: Folder) -> Bank:
    """The bank that `fill_bank` wrote, from the same arguments.

    A bank whose training was killed and resumed has the bytes of one that was not, if
    `models_at_once` and the devices are the same: XLA may round differently for another batch of
    models.

    Raises:
      IncompleteBankError: with the names of the shards that are missing.
      ValueError: a model diverged.

    Warns:
      UserWarning: with the path of a corrupt shard, which is set aside and counts as missing.
    """
    origin = bank_origin(setup)
    home = pathlib.Path(folder) / bank_key(origin, settings)
    shards = {
        path: _read_shard(path, (stop - start, len(setup.query)))
        for path, (start, stop) in _shards(home, settings, setup).items()
    }
    done = [shard for shard in shards.values() if shard]
    if len(done) < len(shards):
        missing = [path.name for path, shard in shards.items() if not shard]
        raise IncompleteBankError(
            f"{len(missing)} of {len(shards)} shards are missing in {home}: {', '.join(missing)}; "
            "run fill_bank for the workers of these shards, all with this models_at_once "
            f"({settings.models_at_once})"
        )
    shape = (settings.num_subsets, settings.num_seeds, len(setup.query))
    losses, margins = (
        np.concatenate([shard[name] for shard in done]).reshape(shape)
        for name in ("losses", "margins")
    )
    if not np.isfinite(losses).all():
        raise ValueError(
            "retrained models diverged: lower the recipe's learning_rate="
            f"{setup.training.learning_rate}"
        )
    seconds = sum(float(shard["seconds"]) for shard in done)
    return Bank(
        draw_subsets(len(setup.train), settings), losses, margins, settings, origin, seconds
    )


def _read_shard(path: pathlib.Path, shape: tuple[int, int]) -> dict[str, np.ndarray] | None:
    """A finished shard, or None; one that can't be read is named and set aside."""
    try:
        shard = read_arrays(path)
        if shard["losses"].shape == shard["margins"].shape == shape and "seconds" in shard:
            return shard
        reason = f"its arrays are not of {shape[0]} models and {shape[1]} queries"
    except FileNotFoundError:
        return None
    except (UnreadableFileError, KeyError) as error:
        reason = str(error)
    aside = path.rename(path.with_suffix(".corrupt"))
    warnings.warn(
        f"corrupt shard {path} ({reason}): set aside as {aside.name}, to be trained again",
        stacklevel=3,
    )
    return None
