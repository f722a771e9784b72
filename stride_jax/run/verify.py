"""Whether what a run wrote is still what it wrote, stage by stage; and whether two runs agree."""

import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import scipy.sparse

from stride_jax import attribution, evaluation
from stride_jax import index as indices
from stride_jax.data import map_splits
from stride_jax.data.prepared import check_files
from stride_jax.model_checks import Finding
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import used
from stride_jax.run.stages import BASELINES
from stride_jax.runtime import checkpoint
from stride_jax.runtime.files import UnreadableFileError, plain, read_json, reading
from stride_jax.scores import Scores

Values = dict[str, Scores]


def verify(run: Run) -> Iterator[Finding]:
    """Read every product that is there, with its digests; nothing is computed.

    Yields:
      A finding for each stage: `ok`; `note` where it is not there; `error` with what is wrong.
    """
    for stage, (there, read) in _stages(run).items():
        if not there():
            yield Finding(stage, "note", "not there: run the config to have it made")
            continue
        try:
            arrays = read()
        except ValueError as error:
            measured, _, remedy = str(error).rpartition("; ")
            yield Finding(stage, "error", measured or str(error), remedy)
        except Exception as error:  # whole files of arrays that are others than the stage's
            said = f"{run.products.path(stage)}* can't be used ({type(error).__name__}: {error})"
            yield Finding(stage, "error", said, f"remove it to have the stage {stage!r} run again")
        else:
            size = sum(_stored(v).nbytes for v in arrays.values())
            yield Finding(stage, "ok", f"{len(arrays)} arrays, {size / 2**20:.1f} MiB, as written")


def compare(run: Run, other: Run, tolerance: float) -> Iterator[Finding]:
    """Products of two runs side by side, each array's largest difference over its largest value.

    Args:
      run, other: of the same settings, on two machines, say.
      tolerance: above it a stage is an `error`.
    """
    theirs = _stages(other)
    for stage, (there, read) in _stages(run).items():
        if not (there() and theirs[stage][0]()):
            yield Finding(stage, "note", "not in both runs")
            continue
        own, own_other = read(), theirs[stage][1]()
        if own.keys() != own_other.keys() or any(own[n].shape != own_other[n].shape for n in own):
            yield Finding(stage, "error", "other arrays or shapes", "compare runs of one config")
            continue
        worst = max((_difference(v, own_other[name]), name) for name, v in own.items())
        said = f"differs by {worst[0]:.2g} of its size at most, in {worst[1]}"
        if worst[0] > tolerance:
            yield Finding(stage, "error", said, f"above tolerance={tolerance:g}")
        else:
            yield Finding(stage, "ok", said)


def set_aside(run: Run, stage: str) -> list[pathlib.Path]:
    """Rename a stage's product, so that the next run makes it again; where it is now.

    Args:
      run: its run.
      stage: name of the stage.
    """
    path = run.products.path(stage)
    mark = time.strftime(".bad-%Y%m%d-%H%M%S")
    found = [p for p in (path, path.with_suffix(".npz")) if p.exists()]
    return [p.rename(p.with_name(p.name + mark)) for p in found]


def _stored(values: Scores) -> np.ndarray:
    """An array itself, or the cells that compressed rows store."""
    return values if isinstance(values, np.ndarray) else values.data


def _difference(a: Scores, b: Scores) -> float:
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        apart, size = abs(scipy.sparse.csr_array(a) - scipy.sparse.csr_array(b)), abs(a).max()
        return float(apart.max() / max(size, 1e-30))
    if a.dtype.kind not in "fiub":
        return float((a != b).any())
    a, b = a.astype(np.float64), b.astype(np.float64)
    other = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    finite = np.isfinite(a) & np.isfinite(b)
    if (other & ~finite).any():
        return float("inf")
    moved = np.abs(a[other] - b[other]).max(initial=0)
    return float(moved / max(np.abs(a[finite]).max(initial=0), 1e-30))


def _stages(run: Run) -> dict[str, tuple[Callable[[], bool], Callable[[], Values]]]:
    """Whether each stage's product is there, and what reads it."""

    def checkpointed(stage: str) -> Callable[[], bool]:
        return lambda: checkpoint.latest(run.products.path(stage)) is not None

    def filed(stage: str) -> Callable[[], bool]:
        return run.products.path(stage).with_suffix(".npz").exists

    def baseline(name: str) -> Callable[[], Values]:
        return lambda: {"scores": run.baseline(name)}

    stages = {
        "data": (lambda: True, lambda: _data(run)),
        "model": (checkpointed("model"), lambda: _leaves(run.model.checkpoints)),
        "operators": (checkpointed("operators"), lambda: _leaves(indices.to_arrays(run.index))),
        "measurements": (filed("measurements"), lambda: {"y": run.measurements}),
        "recovery": (filed("recovery"), lambda: {"scores": run.influences}),
    }
    stages |= {name: (filed(name), baseline(name)) for name in BASELINES}
    if run.settings.groups:
        stages["groups"] = (filed("groups"), lambda: {"y": np.asarray(run.group_measurements)})
    if run.settings.unit is not None:
        stages["unit"] = (filed("unit"), lambda: {"unit": np.array(run.unit)})
    if run.settings.bank is not None:
        stages["bank"] = (lambda: any((run.workdir / "bank").glob("*/*.npz")), lambda: _bank(run))
    file, told = run.workdir / "attribution.parquet", run.workdir / "summary.json"
    stages["attribution"] = (file.exists, lambda: _attribution(run, file))
    stages["summary"] = (told.exists, lambda: _summary(run, told))
    return stages


def _data(run: Run) -> Values:
    if run.settings.shards is not None:
        check_files(pathlib.Path(run.settings.shards.folder))  # too large to be held
        return {}
    if run.mapped.exists():
        map_splits(run.mapped)
    splits = run.data[0].items()
    return {f"{role}.{name}": v for role, own in splits for name, v in
            (("labels", np.asarray(own.labels)), ("ids", own.ids))}  # fmt: skip


def _leaves(tree: Any) -> Values:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _bank(run: Run) -> Values:
    assert run.settings.bank is not None, "asked where there is one"
    bank = evaluation.read_bank(run.retraining, run.settings.bank, run.workdir / "bank")
    return {"losses": bank.losses_MxExQ, "margins": bank.margins_MxExQ}


def _summary(run: Run, file: pathlib.Path) -> Values:
    told = read_json(file)
    if "digest" not in json.loads(file.read_text(encoding="utf-8")):
        raise UnreadableFileError(f"{file} has no digest; run the config to have it written again")
    with reading(file, "a summary", "run the config to have it written again"):
        _refuse_foreign(run, told["settings"], file)
        return {"lds": np.array(np.nan if told["lds"] is None else told["lds"], np.float64)}


def _attribution(run: Run, file: pathlib.Path) -> Values:
    stored = attribution.Attribution.load(file)
    _refuse_foreign(run, stored.settings, file)
    return {"scores": stored.scores}


def _refuse_foreign(run: Run, settings: Any, file: pathlib.Path) -> None:
    """Refuse a whole file of a run of other settings."""
    if settings not in (plain(used(run.resolved)), plain(used(run.settings))):
        raise UnreadableFileError(
            f"{file} is of a run of other settings: it was moved here; run the config to have it "
            "written again"
        )
