"""A run's summary and attribution, as far as the run went."""

import datetime
import pathlib
import shlex
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

from stride_jax import attribution, evaluation
from stride_jax.run import grouping
from stride_jax.run.outputs import outputs
from stride_jax.run.pipeline import Run
from stride_jax.run.planning import named_stage
from stride_jax.run.room import refuse_too_large
from stride_jax.run.settings import used
from stride_jax.run.stages import BASELINES, STAGES, through
from stride_jax.runtime import processes
from stride_jax.runtime.files import plain, read_json, without_nan, write_json
from stride_jax.runtime.machine import device_name, rounding
from stride_jax.unit import words

# With fewer, intervals are wider than the differences between methods.
_LEAST_SUBSETS, _LEAST_QUERIES = 30, 100
_MEANS = ("support", "exact", "explained", "agreement", "relative_error")


def write(run: Run, until: str | None = None) -> dict[str, Any]:
    """Run the stages up to one of them, all by default; write and return `summary.json`.

    `attribution.parquet` is written by the stage `attribution`. Figures that were not computed are
    null.

    Args:
      run: the run.
      until: its last stage, one of `stages.STAGES`.

    Raises:
      ValueError: no such stage.
    """
    wanted = through(until)
    _work(run, wanted)
    if processes.leads():
        with named_stage(wanted[-1]):
            made = _summary(run, wanted)
        write_json(run.workdir / "summary.json", without_nan(plain(made)))
    processes.wait("summary written")
    return read_json(run.workdir / "summary.json")


def read(run: Run, until: str | None = None) -> dict[str, Any] | None:
    """The summary that a folder holds, if its run got that far with these settings; nothing is run.

    Products are looked for, not read: `stride-jax verify` reads them.

    Args:
      run: the run.
      until: its last stage, one of `stages.STAGES`; all by default.

    Raises:
      UnreadableFileError: the summary is not what was written.
      ValueError: no such stage.
    """
    wanted, file = through(until), run.workdir / "summary.json"
    if not file.exists():
        return None
    told, products = read_json(file), _products(run, wanted)
    there = all(
        told["products"].get(stage) == path and (run.workdir / path).exists()
        for stage, path in products.items()
    )
    return told if there and told["until"] in STAGES[len(wanted) - 1 :] else None


def _work(run: Run, wanted: tuple[str, ...]) -> None:
    """Every stage that all processes work on, and the files that the first one writes."""
    read = {
        "data": lambda: (run.data, run.groups),
        "model": lambda: run.model,
        "operators": lambda: run.index,
        "measurements": lambda: (run.measurements, run.group_measurements),
        "recovery": lambda: run.reading,
        "unit": lambda: run.unit,
        "attribution": lambda: _write_attribution(run),
        "evaluation": lambda: None if run.settings.bank is None else run.bank,
    }
    for stage in wanted:
        with named_stage(stage):
            read[stage]()
        if stage == "data":
            refuse_too_large(run, wanted)


def _write_attribution(run: Run) -> None:
    if processes.leads():
        path = run.workdir / "attribution.parquet"
        run.attribution().save(path, run.settings.top_k or None)
        path = run.workdir / "groups.parquet"
        if (own := run.group_attribution()) is not None:
            own.save(path)
        else:
            path.unlink(missing_ok=True)  # of settings that were taken over with --reuse


def _summary(run: Run, wanted: tuple[str, ...]) -> dict[str, Any]:
    figures = _figures(run) if "evaluation" in wanted and run.settings.bank else {}
    model = _held_out(run) if "model" in wanted else {}
    taps_known = "operators" in wanted
    return {
        "lds": figures.get("lds"),
        "lds_ci95": figures.get("lds_ci95"),
        "perfect_predictor": figures.get("perfect_predictor"),
        "too_small": figures.get("too_small"),
        "methods": figures.get("methods", {}),
        "noise": figures.get("noise"),
        "accuracy": model.get("accuracy"),
        "held_out_loss": model.get("held_out_loss"),
        "explained_variance": model.get("explained_variance"),
        "temperature": model.get("temperature"),
        "noise_variance": model.get("noise_variance"),
        "recovery": _recovery(run) if "recovery" in wanted else None,
        "groups": _groups(run) if "attribution" in wanted else None,
        "unit": run.unit if "unit" in wanted else None,
        "scores": words(run.unit) if "unit" in wanted else None,
        "until": wanted[-1],
        "stages": run.products.seconds,
        "seconds": sum(run.products.seconds.values()),
        "products": _products(run, wanted),
        "num_train": len(run.train),
        "num_queries": len(run.query),
        "settings": used(run.resolved if taps_known else run.settings),
        "versions": attribution.versions(),
        "device": device_name(),
        "rounding": rounding(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _figures(run: Run) -> dict[str, Any]:
    """Every method against the bank, one after the other: their scores are `[Q, N]` each."""
    target = run.settings.read.measure.question  # retrained models answer what was asked
    noise, methods = evaluation.ceiling(run.bank, target=target), {}
    for name in ("stride", *BASELINES):
        scores = run.influences if name == "stride" else run.baseline(name)
        result = evaluation.lds(scores, run.bank, target=target)
        stages = ("operators", "measurements", "recovery") if name == "stride" else (name,)
        methods[name] = {
            "lds": result.lds,
            "lds_ci95": result.ci95,
            "seconds": sum(run.products.seconds[stage] for stage in stages),
        }
    return {
        "lds": methods["stride"]["lds"],
        "lds_ci95": methods["stride"]["lds_ci95"],
        "perfect_predictor": noise.perfect_predictor,
        "noise": noise,
        "too_small": too_small(len(run.bank.members_MxS), len(run.query)),
        "methods": methods,
    }


def too_small(num_subsets: int, num_queries: int) -> str | None:
    """The reason why figures of a bank can't rank methods; None where they can.

    >>> too_small(100, 400) is None
    True
    """
    if num_subsets >= _LEAST_SUBSETS and num_queries >= _LEAST_QUERIES:
        return None
    return (
        f"{num_subsets} retrained subsets and {num_queries} queries are too few to rank methods: "
        f"use at least {_LEAST_SUBSETS} and {_LEAST_QUERIES}"
    )


def _held_out(run: Run) -> dict[str, float]:
    """The base model on the queries: nats per label, and what its objective has besides.

    That is the share of correct labels, or the share of the numbers' variance that is explained,
    and what was fitted to calibrate it.
    """
    model, labels = run.model, run.query.labels
    parts = []
    for some, logits, loss in outputs(run, run.query):
        made = logits.argmax(axis=-1) == labels[some] if model.objective.classes else logits
        parts.append((made, loss))
    made, loss = (np.concatenate(own) for own in zip(*parts, strict=True))
    if model.objective.classes:
        return {
            "accuracy": float(made[labels >= 0].mean()),
            "held_out_loss": float(loss[labels >= 0].mean()),
            "temperature": model.temperature,
        }
    logits = made
    targets, own = labels.reshape(logits.shape), {"held_out_loss": float(loss.mean())}
    if model.objective.name == "sigmoid":
        right = (logits > 0) == (targets > 0.5)
        return own | {"accuracy": float(right.mean()), "temperature": model.temperature}
    if model.objective.name.startswith("squared_error"):
        precision = model.objective.hessian(jnp.ones(1), jnp.ones(1)).diagonal
        own["noise_variance"] = 1 / float(np.asarray(precision)[0])
        spread = ((targets - targets.mean(axis=0)) ** 2).sum()
        own["explained_variance"] = 1 - float(((targets - logits) ** 2).sum() / spread)
    return own


def _recovery(run: Run) -> dict[str, float]:
    """The certificates in short: means over queries, the largest gap, shares of the verdicts."""
    own = run.reading.diagnostics
    said = {f"mean_{name}": float(np.nanmean(own[name])) for name in _MEANS if name in own}
    if "relative_gap" in own:
        said["max_relative_gap"] = float(own["relative_gap"].max())
    names = ("found", "partly_found", "not_found")
    return said | {name: float((own["verdict"] == i).mean()) for i, name in enumerate(names)}


def _groups(run: Run) -> dict[str, Any] | None:
    """What each group does to the queries; None without groups."""
    own, groups = run.group_attribution(), run.index.groups
    if own is None or groups is None:
        return None
    return {"by": run.settings.groups, **grouping.table(groups, own.scores_QxN)}


def _products(run: Run, wanted: tuple[str, ...]) -> dict[str, str]:
    """Path of each stage's product, relative to the workdir."""
    products = {}
    for stage in wanted:
        if stage in ("model", "operators"):
            products[stage] = run.products.path(stage)
        elif stage in ("measurements", "recovery") or (stage == "unit" and run.settings.unit):
            products[stage] = run.products.path(stage).with_suffix(".npz")
        elif stage == "attribution":
            if run.settings.groups:
                products["groups"] = run.workdir / "groups.parquet"
            products[stage] = run.workdir / "attribution.parquet"
        elif stage == "evaluation" and run.settings.bank is not None:
            products["bank"] = run.workdir / "bank"
    return {name: str(path.relative_to(run.workdir)) for name, path in products.items()}
