"""A run's end: every method against retrained models, and what is written for people."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax import attribution, evaluation
from stride_jax.models.train import cross_entropy
from stride_jax.run.pipeline import Run
from stride_jax.runtime import processes
from stride_jax.runtime.files import plain, read_json, write_json

_TOGETHER = ("stride_settings", "operators", "measurements", "recovery", "bank")
"""Stages that all processes work on; the rest is the first one's."""


def write(run: Run) -> dict[str, Any]:
    """Run everything; write `attribution.parquet` and `summary.json`; return the summary."""
    for stage in _TOGETHER:
        getattr(run, stage)
    if processes.leads():
        summary = plain(summarise(run))
        path = run.workdir / "attribution.parquet"
        attribution.save(path, run.attribution(), run.settings.top_k or None)
        write_json(run.workdir / "summary.json", summary)
    processes.wait("summary written")
    return read_json(run.workdir / "summary.json")


def summarise(run: Run) -> dict[str, Any]:
    """Run everything and return what `summary.json` holds."""
    scores = {"stride": run.influences.toarray()}
    scores |= {name: run.baseline(name) for name in ("grad-dot", "feature-cosine", "random")}
    bank, noise = run.bank, evaluation.ceiling(run.bank)
    ours = ("operators", "measurements", "recovery")
    results = {}
    for name, values in scores.items():
        result = evaluation.lds(values, bank)
        stages = ours if name == "stride" else (name,)
        for stage in stages if name == "stride" else ():
            getattr(run, stage)  # a stage read from its file knows what it took
        results[name] = {
            "lds": result.lds,
            "lds_ci95": result.ci95,
            "seconds": sum(run.products.seconds[stage] for stage in stages),
        }
    return {
        "lds": results["stride"]["lds"],
        "lds_ci95": results["stride"]["lds_ci95"],
        "ceiling": noise.reliability,
        "ceiling_detail": noise,
        "methods": results,
        "stages": run.products.seconds,
        **_held_out(run),
        "temperature": run.model[1],
        "recovery": {
            "max_relative_gap": float(run.recovery.relative_gap_Q.max()),
            "mean_support": float(run.recovery.support_Q.mean()),
            "mean_iterations": float(run.recovery.iterations_Q.mean()),
        },
        "settings": run.resolved,
        "versions": attribution.versions(),
        "device": str(jax.devices()[0].device_kind),
        "num_train": len(run.train),
        "num_queries": len(run.query),
    }


def _held_out(run: Run) -> dict[str, float]:
    """The base model on the queries: share of labels it gets right, nats a label it loses."""
    logits = run.tapped(run.model[0], jnp.asarray(run.query.inputs))[0]
    labels = run.query.labels
    right = np.asarray(logits.argmax(axis=-1)) == labels
    loss = np.asarray(cross_entropy(logits, jnp.asarray(labels)))
    return {"accuracy": float(right[labels >= 0].mean()),
            "held_out_loss": float(loss[labels >= 0].mean())}  # fmt: skip
