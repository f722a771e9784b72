"""What averaging several models gains over one, and what calibration does, at which cost.

    python -m benchmarks.ensembles --config=configs/mnist5k.py --workdir=runs/leaderboard/mnist5k

Scores of a method are averaged over models trained from other seeds, over the last checkpoints of
one training run, or over one model's dropout masks, whose rate is chosen on the bank's first half
of subsets (Deng et al., *Efficient ensembles improve training data attribution*, 2024); STRIDE
draws another design for each. Every figure is from the second half. n models cost n fits and
n times the questions; other seeds cost n - 1 trainings besides. Opponents have the settings that
their board chose (`docs/boards`). Rows go to `docs/results/boards.json`.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from benchmarks.contestants import contestants
from benchmarks.cost_curves import board_of, chosen
from benchmarks.house import BOARDS, Row, record
from benchmarks.leaderboard import LeaderboardSettings, on_bank_of
from benchmarks.methods import Method, Stride, ensemble
from benchmarks.program import Asked, Program, listed
from stride_jax import evaluation
from stride_jax.baselines.model import Model
from stride_jax.run.pipeline import Run
from stride_jax.runtime.progress import bars

RATES = (0.05, 0.1, 0.2, 0.4)
"""Shares of the hidden units that a dropout mask leaves out."""


def dropped(model: Model, rate: float, seed: int, num_inputs: int) -> Model:
    """The model behind one dropout mask: units that a linear layer reads, left out or made larger.

    A mask of a layer's inputs is one of its kernel's rows, so every method sees a model as any
    other. Layers that read the data keep all of them.

    Args:
      model: of one checkpoint, the base model.
      rate: share of units left out; the others count `1 / (1 - rate)` times.
      seed: of the mask.
      num_inputs: numbers in an input.
    """
    rng = np.random.default_rng(seed)
    leaves = traverse_util.flatten_dict(model.params)
    for path, kernel in sorted(leaves.items()):
        if path[-1] == "kernel" and kernel.ndim == 2 and len(kernel) != num_inputs:
            kept_I = rng.random(len(kernel)) >= rate
            leaves[path] = kernel * (kept_I / (1 - rate)).astype(np.float32)[:, None]
    return with_params(model, traverse_util.unflatten_dict(leaves))


def with_params(model: Model, params: Any) -> Model:
    """The model with these parameters, and no other checkpoint."""
    return dataclasses.replace(
        model, checkpoints=(params,), learning_rates=model.learning_rates[-1:]
    )


def members(run: Run, sizes: Sequence[int]) -> Iterator[tuple[str, list[list[Model]]]]:
    """Kinds of averages, each with the lists of models to choose from."""
    model, num_inputs = run.model, math.prod(run.train.inputs.shape[1:])
    for size in sizes:
        yield f"{size} seeds", [[model, *(run.another(i).model for i in range(1, size))]]
    stored = [with_params(model, params) for params in model.checkpoints]
    for size in sizes:
        if size <= len(stored):
            yield f"last {size} checkpoints", [stored[-size:]]
    for size in sizes:
        masks = [[dropped(model, r, i, num_inputs) for i in range(size)] for r in RATES]
        yield f"{size} dropout masks", masks


def compare(method: Method, settings: Any, run: Run, sizes: Sequence[int]) -> dict[str, np.ndarray]:
    """Scores of one model, of it as trained, and of every kind of average, `{kind: [Q, N]}`."""
    tuning = run.bank.halves()[0]

    def scores(models: Sequence[Model]) -> np.ndarray:
        own = ensemble(method, models, settings)
        state = own.fit(run.model, run.train, settings)
        return own.score(state, run.model, run.train, run.query, settings)

    out = {"one model": scores([run.model])}
    if method.calibrates:
        out["temperature 1"] = scores([dataclasses.replace(run.model, temperature=1.0)])
    for kind, choices in bars(list(members(run, sizes)), desc=method.name):
        tried = [scores(models) for models in choices]
        out[kind] = max(tried, key=lambda own: evaluation.lds(own, tuning).lds)
    return out


def rows(name: str, method: str, scores: dict[str, np.ndarray], half: evaluation.Bank) -> list[Row]:
    """LDS of every kind, and what it gains over one model, paired over queries."""
    alone, out = evaluation.lds(scores["one model"], half), []
    for kind, own in scores.items():
        score = evaluation.lds(own, half)
        label = f"ensemble, {name}: {method}, {kind}"
        out.append(Row(f"{label}, LDS", score.lds, "higher", score.ci95))
        if kind != "one model":
            gain, ends = evaluation.lds_difference(score, alone)
            out.append(Row(f"{label}, gain", gain, "higher", ends))
    return out


def main(asked: Asked) -> None:
    """Measure, print, write the rows down."""
    flags, name = asked.flags, pathlib.Path(asked.flags.config).stem
    if asked.settings.is_text:
        raise ValueError(f"config={flags.config!r} is of texts: give a board of classes")
    if min(flags.sizes) < 2:
        raise ValueError(
            f"--sizes={flags.sizes} has an average of fewer than two models: give 2 or more"
        )
    board = board_of(name)
    contest = asked.section("leaderboard", LeaderboardSettings)
    run = Run(on_bank_of(contest, asked.settings), asked.workdir, bars)
    names = jax.eval_shape(run.tapped.forward, run.model.params, run.train.inputs[:1])[1]
    methods = contestants(sorted(names), Stride.of(run.settings), only=flags.methods)
    half = run.bank.halves()[1]
    for method, settings in list(chosen(methods, board)):  # refused before anything is averaged
        measured = rows(name, method.name, compare(method, settings, run, flags.sizes), half)
        for row in measured:
            print(f"{row.name}: {row.value:.3f} {row.interval}", flush=True)
        record(measured, path=BOARDS)


if __name__ == "__main__":
    program = Program("ensembles", __doc__, {"leaderboard": LeaderboardSettings})
    program.flag("methods", "Methods to average.", type=listed(str), default=("stride", "trak"))
    program.flag("sizes", "Models averaged.", type=listed(int), default=(2, 5))
    program.run(main)
