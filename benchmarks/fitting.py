"""What fitting costs, in forward passes over the corpus; and that the index does not grow with it.

    python -m benchmarks.fitting --config=configs/bible_gpt.py --workdir=runs/fitting

A forward pass runs the model on every training example and sums its loss. Fitting is everything
from the frozen model to the operators: basis, one pass, factorisation. Forward and fit take turns,
after a round that compiles.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.program import Asked, Program, listed
from stride_jax import attribution, stride
from stride_jax.cli.doors import at_least
from stride_jax.data import Examples
from stride_jax.objectives import cross_entropy
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import plain, write_json
from stride_jax.runtime.progress import bars


def forward_pass(run: Run, train: Examples, batch: int = 512) -> Callable[[], float]:
    """The model's loss on all examples, one batch after the other."""

    @jax.jit
    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(run.tapped.forward(params, x)[0], y).sum()

    def once() -> float:
        parts = [
            loss(run.model.params, train.inputs[i : i + batch], train.labels[i : i + batch])
            for i in range(0, len(train), batch)
        ]
        return float(np.sum(parts))

    return once


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of a call."""
    began = time.monotonic()
    jax.block_until_ready(work())
    return time.monotonic() - began


def row(run: Run, train: Examples, site: str, rounds: int) -> dict[str, Any]:
    """One site at one N."""
    settings = dataclasses.replace(run.settings.index, sites=(site,))
    fitted: list[Any] = []

    def fit() -> Any:
        index = stride.fit(
            run.tapped, run.model.params, train.inputs, train.labels, settings, ids=train.ids
        )
        fitted[:] = [index]
        return [own.a_KxRxO for own in index.operators.values()]

    forward = forward_pass(run, train)
    times = [(seconds(forward), seconds(fit)) for _ in range(rounds + 1)][1:]
    ratios = [fitted / plain_pass for plain_pass, fitted in times]
    return {
        "num_train": len(train),
        "site": site,
        "forward_seconds": statistics.median(plain_pass for plain_pass, _ in times),
        "fit_seconds": statistics.median(fitted for _, fitted in times),
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
        "index_bytes": fitted[0].nbytes,
    }


def main(asked: Asked) -> None:
    """Time every site at every N, write `fitting.json`, print a table."""
    settings, workdir = asked.settings, asked.workdir
    if settings.text is None:
        raise SystemExit(f"config={asked.flags.config!r} is not of text: give configs/bible_gpt.py")
    model = Run(settings, workdir, bars)
    rows = []
    for size in asked.flags.sizes:
        # The same model throughout: what it was trained on does not change what a pass costs.
        text = dataclasses.replace(settings.text, max_train=size)
        train = Run(dataclasses.replace(settings, text=text), workdir).train
        rows += [row(model, train, site, asked.flags.rounds) for site in asked.flags.sites]
    board = {
        "rows": rows,
        "settings": plain(settings),
        "device": str(jax.devices()[0].device_kind),
        "versions": attribution.versions(),
    }
    write_json(workdir / "fitting.json", plain(board))
    print(
        "| N | site | forward s | fit s | ratio (spread) | index bytes |\n|---|---|---|---|---|---|"
    )
    for r in rows:
        low, high = r["ratio_spread"]
        print(
            f"| {r['num_train']:,} | {r['site']} | {r['forward_seconds']:.2f} | "
            f"{r['fit_seconds']:.2f} | {r['ratio']:.2f} ({low:.2f} … {high:.2f}) | "
            f"{r['index_bytes']:,} |"
        )


if __name__ == "__main__":
    program = Program("fitting", __doc__)
    sizes, sites = (1024, 4096, 16384), ("logit", "final")
    program.flag("sizes", "Training examples N.", type=listed(int), default=sizes)
    program.flag("sites", "Sites, each fitted by itself.", type=listed(str), default=sites)
    program.flag("rounds", "Timed rounds.", type=at_least(1), default=3)
    program.run(main)
