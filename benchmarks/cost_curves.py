"""What STRIDE and its opponents cost as N and Q grow, and where STRIDE's own seconds go.

    python -m benchmarks.cost_curves --config=configs/mnist5k.py --workdir=runs/leaderboard/mnist5k

Opponents have the settings that their board chose (`docs/boards`). Methods and sizes take turns;
figures are medians of the rounds after a first one, which compiles. Nothing else may run meanwhile.
Rows go to `docs/results/boards.json`.
"""

import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.contestants import contestants
from benchmarks.fitting import forward_pass, seconds
from benchmarks.house import BOARDS, ROOT, Row, record
from benchmarks.meter import Meter
from benchmarks.methods import Method, Stride, changed, fit_stride, score_stride
from benchmarks.program import Asked, Program, listed
from stride_jax import asking, fitting
from stride_jax.cli.doors import at_least
from stride_jax.design import known_membership
from stride_jax.frozen import freeze
from stride_jax.run.pipeline import Run
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import plain, read_json
from stride_jax.runtime.progress import bars

Sizes = tuple[int, int]
"""N and Q."""

ASKED = {"logra": {"mnist5k": 1.0, "bible_gpt": 0.25}, "ekfac": 0.125, "trak": 0.125}
"""Most seconds of STRIDE over an opponent's, on one board or on all."""


def board_of(name: str) -> dict[str, Any]:
    """The board of a config of this name.

    Raises:
      ValueError: there is none yet.
    """
    path = ROOT / f"docs/boards/{name}.json"
    if not path.exists():
        raise ValueError(f"config {name!r} has no board in docs/boards: hold it first")
    return read_json(path)


def chosen(methods: Sequence[Method], board: Mapping[str, Any]) -> Iterator[tuple[Method, Any]]:
    """Methods with the settings that a board has for them.

    Raises:
      ValueError: a method without a row there, or of settings that are no longer in its grid.
    """
    rows = {row["method"]: row["settings"] for row in board["rows"]}
    for method in methods:
        grid = [settings for group in method.grid for settings in group]
        # What has one setting, as STRIDE, needs no board to choose it.
        own = [s for s in grid if len(grid) == 1 or plain(s) == rows.get(method.name)]
        if not own:
            raise ValueError(f"--methods has {method.name!r}, which the board has no settings for")
        yield method, own[0]


def cells(num_train: int, num_queries: int, fixed: int, least: int) -> list[Sizes]:
    """An eighth of N to all of it at fixed Q, then a sixteenth of Q to all of it at the whole N.

    No part of N is smaller than `least`, K of a design that fewer examples would leave empty.

    >>> cells(4500, 400, 100, 1000)
    [(1125, 100), (2250, 100), (4500, 100), (4500, 25), (4500, 400)]
    """
    parts = [part for part in (8, 4, 2, 1) if part == 1 or num_train // part >= least]
    of_n = [(num_train // part, fixed) for part in parts]
    return of_n + [(num_train, num_queries // part) for part in (16, 1)]


def curves(
    run: Run, methods: Sequence[tuple[Method, Any]], sizes: Sequence[Sizes], rounds: int
) -> dict[tuple[str, Sizes], list[float]]:
    """Seconds of fit and all queries without compilation, of every method and size, by round."""
    times: dict[tuple[str, Sizes], list[float]] = {}
    for _ in bars(range(rounds + 1), desc="rounds"):
        for own in sizes:
            train, query = run.train.take(np.arange(own[0])), run.query.take(np.arange(own[1]))
            for method, settings in methods:
                with Meter() as cost:
                    state = method.fit(run.model, train, settings)
                    method.score(state, run.model, train, query, settings)
                times.setdefault((method.name, own), []).append(cost.seconds)
    return {key: own[1:] for key, own in times.items()}


def stages(run: Run, settings: Stride) -> dict[str, Callable[[], Any]]:
    """Stages of STRIDE's fit and query, each to be timed; later ones hold earlier ones.

    `fit` is basis, sums and solve; `measured` measures, `recovered` recovers too, `scored` scores
    the shortlists exactly besides.
    """
    model, train, query = run.model, run.train, run.query
    index = fit_stride(model, train, settings)
    frozen = freeze(model.tapped, model.params, train, index.settings)
    subsets_Nxd = known_membership(index.settings.design, train.ids, train.keys)
    bases = fitting.bases_of(index.operators)
    sums = fitting.fit_operators(frozen, train, subsets_Nxd).passed.moments
    fixed = fitting.Fixed(bases, fitting.curvatures_of(frozen, sums), index.content)
    no_exact = changed(settings, {"read.exact.budget": 0})

    def solved() -> Any:
        made = fitting.solve_operators(frozen, bases, sums)
        return [own.a_KxRxO for own in made.values()]

    def queried(how: Stride) -> Callable[[], Any]:
        return lambda: score_stride(index, model, train, query, how)

    return {
        "forward": forward_pass(run, train),
        "fit": lambda: [
            own.a_KxRxO for own in fit_stride(model, train, settings).operators.values()
        ],
        "sums": lambda: (
            fitting.pass_over(frozen, train, subsets_Nxd, fixed, Execution()).residual_N
        ),
        "solve": solved,
        "measured": lambda: asking.measure_all(
            frozen, index.operators, query, settings.read.measure
        ),
        "recovered": queried(no_exact),
        "scored": queried(settings),
    }


def split(works: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each part by round: what a stage takes beyond what it holds of earlier ones.

    "Basis" is all that comes before the sums: checks and the choice of a tap too. Stages are timed
    one by one, so that a part smaller than their noise may come out below nought.
    """
    every = [{name: seconds(work) for name, work in works.items()} for _ in range(rounds + 1)][1:]
    return {
        "a forward pass over the corpus": [own["forward"] for own in every],
        "fit, basis": [own["fit"] - own["sums"] - own["solve"] for own in every],
        "fit, sums": [own["sums"] for own in every],
        "fit, solve": [own["solve"] for own in every],
        "query, measure": [own["measured"] for own in every],
        "query, recovery": [own["recovered"] - own["measured"] for own in every],
        "query, exact": [own["scored"] - own["recovered"] for own in every],
    }


def ratios(name: str, times: Mapping[tuple[str, Sizes], Sequence[float]]) -> list[Row]:
    """Seconds of STRIDE over those of opponents that a bound is given for, at the whole N and Q.

    Medians of the rounds' ratios, with the least and the most of them; none if STRIDE is not there.

    >>> times = {("stride", (9, 9)): [1.0, 3.0, 2.0], ("trak", (9, 9)): [4.0, 6.0, 4.0]}
    >>> (row,) = ratios("a", times)
    >>> row.value, row.interval, row.asked
    (0.5, (0.25, 0.5), 0.125)
    """
    largest = max(sizes for _, sizes in times)
    ours, out = times.get(("stride", largest)), []
    for opponent, bound in ASKED.items():
        if ours and (theirs := times.get((opponent, largest))):
            own = [a / b for a, b in zip(ours, theirs, strict=True)]
            asked = bound.get(name) if isinstance(bound, dict) else bound
            label, ends = f"{name}: seconds, stride over {opponent}", (min(own), max(own))
            out.append(Row(label, statistics.median(own), "lower", ends, asked))
    return out


def rows(
    name: str, times: Mapping[tuple[str, Sizes], Sequence[float]],
    parts: Mapping[str, Sequence[float]],
) -> list[Row]:  # fmt: skip
    """Medians, with the least and the most of the rounds."""

    def median(label: str, own: Sequence[float]) -> Row:
        ends = min(own), max(own)
        return Row(f"cost, {name}: {label}, seconds", statistics.median(own), "lower", ends)

    out = [median(f"{m}, N = {n:,}, Q = {q}", own) for (m, (n, q)), own in times.items()]
    return out + [median(f"stride, {part}", own) for part, own in parts.items()]


def main(asked: Asked) -> None:
    """Measure, print, write the rows down."""
    flags, name = asked.flags, pathlib.Path(asked.flags.config).stem
    board = board_of(name)
    run = Run(asked.settings, asked.workdir, bars)
    if flags.fixed > len(run.query):
        raise ValueError(f"--fixed={flags.fixed} is more than the {len(run.query)} queries")
    names = jax.eval_shape(run.tapped.forward, run.model.params, run.train.inputs[:1])[1]
    base = Stride.of(run.settings)
    methods = contestants(
        sorted(names), base, only=flags.methods, checkpoints=len(run.model.checkpoints)
    )
    began = time.monotonic()
    least = run.settings.index.design.num_subsets
    sizes = cells(len(run.train), len(run.query), flags.fixed, least)
    times = curves(run, list(chosen(methods, board)), sizes, flags.rounds)
    parts = split(stages(run, base), flags.rounds)
    measured = ratios(name, times) + rows(name, times, parts)
    for row in measured:
        print(f"{row.name}: {row.value:.3g}")
    record(measured, path=BOARDS)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    program = Program("cost_curves", __doc__)
    some = ("stride", "stride-direct", "logra", "ekfac", "trak", "grad-dot")
    program.flag("methods", "Methods to time.", type=listed(str), default=some)
    program.flag("fixed", "Q while N grows.", type=at_least(1), default=100)
    program.flag("rounds", "Timed rounds.", type=at_least(1), default=3)
    program.run(main)
