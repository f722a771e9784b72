"""The contest: every method on one checkpoint and one bank of retrained models.

    python -m benchmarks.leaderboard --config=configs/mnist5k.py --workdir=runs/leaderboard/mnist5k

Settings of each method are chosen by LDS on the bank's first half of subsets; every figure shown is
from the second half. Finished methods are stored in the workdir and not run again.
"""

import dataclasses
import functools
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import report
from benchmarks.contestants import contestants
from benchmarks.house import APPLICATIONS, BOARDS, ROOT, commit_of, record, this_command
from benchmarks.meter import Cost, Meter, index_bytes
from benchmarks.methods import Method, Stride, ensemble
from benchmarks.program import Asked, Program
from stride_jax import attribution, evaluation
from stride_jax.baselines import datamodels
from stride_jax.baselines import encoder as encoders
from stride_jax.baselines import trained_encoder as trained_encoders
from stride_jax.baselines.encoder import EncoderSettings
from stride_jax.baselines.model import Model
from stride_jax.evaluation import CounterfactualResult, CounterfactualSettings
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import RunSettings
from stride_jax.runtime.files import fingerprint, plain, read_arrays, write_arrays, write_json
from stride_jax.runtime.progress import bars

_RESULTS = {"applications": APPLICATIONS, "boards": BOARDS}
"""Files that rows of a board without a page go to."""


@dataclasses.dataclass(frozen=True)
class LeaderboardSettings:
    """How much work the contest is.

    Attributes:
      num_subsets: of the bank; one half tunes, the other scores.
      repeats: timed rounds; each runs every method once. With 0 there are no seconds.
      timed_seconds: a method that took as long in all its rounds so far is left out of the next.
      methods: contestants; all for none.
      uncalibrated: whether to tune and judge each method at temperature 1 as well.
      ensemble: base models of the ensembles; 0 leaves them out.
      removal_queries: queries of the counterfactual removal, evenly spaced; 0 leaves it out.
      removal_top_k: examples removed.
      encoder: folder of a sentence encoder, for texts (`make encoder`); empty to leave it out.
    """

    num_subsets: int = 200
    repeats: int = 5
    timed_seconds: float = 30.0
    methods: tuple[str, ...] = ()
    uncalibrated: bool = True
    ensemble: int = 5
    removal_queries: int = 20
    removal_top_k: tuple[int, ...] = (50, 500)
    encoder: str = ""


def on_bank_of(settings: LeaderboardSettings, run: RunSettings) -> RunSettings:
    """A run's settings with as many retrained subsets as the contest needs."""
    bank = run.bank or evaluation.BankSettings()
    return dataclasses.replace(
        run, bank=dataclasses.replace(bank, num_subsets=settings.num_subsets)
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A method's best settings and what they gave.

    Attributes:
      settings: chosen on the tuning half.
      tried: number of settings.
      scores_QxN: of the calibrated model.
      uncalibrated: LDS at temperature 1, tuned alike; None where it does not matter.
      compile_seconds: of all settings together.
      index_bytes: what `fit` keeps.
    """

    settings: Any
    tried: int
    scores_QxN: np.ndarray
    uncalibrated: float | None
    compile_seconds: float
    index_bytes: int


def tune(
    method: Method, model: Model, run: Run, half: evaluation.Bank
) -> tuple[Any, np.ndarray, int]:
    """The settings of the best LDS on a half of the bank, their scores, and bytes of the state."""
    best: tuple[float, Any, Any, int] = (-np.inf, None, None, 0)
    for group in method.grid:
        state = method.fit(model, run.train, group[0])
        for settings in group:
            scores = method.score(state, model, run.train, run.query, settings)
            figure = evaluation.lds(scores, half).lds
            best = max(best, (figure, settings, scores, index_bytes(state)), key=lambda b: b[0])
    return best[1:]


def contest(
    method: Method,
    run: Run,
    halves: tuple[evaluation.Bank, evaluation.Bank],
    folder: pathlib.Path,
    uncalibrated_too: bool = True,
) -> Outcome:
    """Tune a method, calibrated and not; its scores are stored on disk."""
    tried = [settings for group in method.grid for settings in group]
    half = halves[0]
    key = fingerprint(
        run.products.key("model"), method.name, tried, half.identity, half.members_MxS
    )
    path = folder / f"{method.name}-{key}.npz"
    if not path.exists():
        with Meter() as cost:
            settings, scores, state_bytes = tune(method, run.model, run, half)
            uncalibrated = np.nan
            if method.calibrates and uncalibrated_too:
                plain_model = dataclasses.replace(run.model, temperature=1.0)
                _, other, _ = tune(method, plain_model, run, half)
                uncalibrated = evaluation.lds(other, halves[1]).lds
        write_arrays(
            path,
            scores=scores,
            chosen=tried.index(settings),
            uncalibrated=uncalibrated,
            compile_seconds=cost.compile_seconds,
            index_bytes=state_bytes,
        )
    stored = read_arrays(path)
    uncalibrated = float(stored["uncalibrated"])
    return Outcome(
        tried[int(stored["chosen"])],
        len(tried),
        stored["scores"],
        None if np.isnan(uncalibrated) else uncalibrated,
        float(stored["compile_seconds"]),
        int(stored["index_bytes"]),
    )


def ensembles(
    methods: Sequence[Method], outcomes: dict[str, Outcome], run: Run, size: int
) -> list[Method]:
    """STRIDE and its strongest opponents over several base models, the same for all."""
    if size < 2:
        return []
    members = [run.model, *(run.another(i).model for i in range(1, size))]
    return [
        ensemble(m, members, outcomes[m.name].settings)
        for m in methods
        if m.name in ("stride", "trak", "logra", "ekfac")
    ]


def upper_reference(halves: tuple[evaluation.Bank, evaluation.Bank], num_train: int) -> Outcome:
    """Datamodels fitted on the tuning half; their penalty is chosen within that half."""
    half = halves[0]
    inner, rest = _parted(half)
    grid = [datamodels.DatamodelSettings(x) for x in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)]

    def figure(settings: datamodels.DatamodelSettings) -> float:
        scores = datamodels.score(inner.members_MxS, inner.target_QxM, num_train, settings)
        return evaluation.lds(scores, rest).lds

    settings = max(grid, key=figure)
    scores = datamodels.score(half.members_MxS, half.target_QxM, num_train, settings)
    return Outcome(settings, len(grid), scores, None, 0.0, scores.nbytes)


def trained_encoder(
    halves: tuple[evaluation.Bank, evaluation.Bank], run: Run, settings: EncoderSettings
) -> Outcome:
    """The encoder trained on the tuning half; its steps are chosen within that half."""
    inner, rest = _parted(halves[0])
    encoder, train_NxD = encoders.fit(None, run.train, settings)
    query_QxD = encoders.vectors(encoder, run.query, settings)
    grid = [trained_encoders.TrainedEncoderSettings(steps) for steps in (10, 30, 100, 300)]

    def scored(half: evaluation.Bank, own: trained_encoders.TrainedEncoderSettings) -> np.ndarray:
        return trained_encoders.score(query_QxD, train_NxD, half.members_MxS, half.target_QxM, own)

    best = max(grid, key=lambda own: evaluation.lds(scored(inner, own), rest).lds)
    return Outcome(best, len(grid), scored(halves[0], best), None, 0.0, train_NxD.nbytes)


def _parted(half: evaluation.Bank) -> tuple[evaluation.Bank, evaluation.Bank]:
    """Four fifths of a half to fit on, and the rest to choose settings by."""
    count = len(half.members_MxS)
    return half.take(np.arange(count * 4 // 5)), half.take(np.arange(count * 4 // 5, count))


def timings(
    methods: Sequence[Method], outcomes: dict[str, Outcome], run: Run, own: LeaderboardSettings
) -> dict[str, list[tuple[Cost, Cost]]]:
    """Fit and score every method once per round, compiled code reused: `{method: [(fit, score)]}`.

    A round before the first is not counted: it compiles.
    """
    costs: dict[str, list[tuple[Cost, Cost]]] = {m.name: [] for m in methods}
    for _ in bars(range(own.repeats + 1), desc="timing"):
        for method in methods:
            counted = costs[method.name][1:]
            if sum(cost.seconds for pair in counted for cost in pair) > own.timed_seconds:
                continue
            settings = outcomes[method.name].settings
            with Meter() as fit_cost:
                state = method.fit(run.model, run.train, settings)
            with Meter() as score_cost:
                method.score(state, run.model, run.train, run.query, settings)
            costs[method.name].append((fit_cost, score_cost))
    return {name: rounds[1:] for name, rounds in costs.items()}


def cost_columns(
    name: str, times: dict[str, list[tuple[Cost, Cost]]], members: int = 1
) -> dict[str, Any]:
    """Medians of a method's rounds, and the ratio to gradient dot round by round.

    An ensemble runs one model's code `members` times, and is taken to cost as much.
    """
    rounds = times[name]
    totals = [members * (fit.seconds + score.seconds) for fit, score in rounds]
    base = [fit.seconds + score.seconds for fit, score in times["grad-dot"]]
    ratios = [a / b for a, b in zip(totals, base, strict=False)]  # dear methods have fewer rounds
    return {
        "train_seconds": members * statistics.median(fit.seconds for fit, _ in rounds),
        "query_seconds": members * statistics.median(score.seconds for _, score in rounds),
        "peak_bytes": max(max(fit.peak_bytes, score.peak_bytes) for fit, score in rounds),
        "ratio_to_grad_dot": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
    }


def removals(
    outcomes: dict[str, Outcome], run: Run, settings: LeaderboardSettings
) -> dict[str, dict[str, Any]]:
    """Counterfactual removal for every method, and random removal as its control."""
    if settings.removal_queries == 0:
        return {}
    rows = np.linspace(0, len(run.query) - 1, settings.removal_queries).astype(int)
    chosen = run.query.take(rows)
    removal = CounterfactualSettings(
        settings.removal_top_k, num_seeds=1, models_at_once=run.bank.settings.models_at_once
    )
    recipe = run.settings.train
    setup = run.retraining._replace(query=chosen)
    asked = fingerprint(repr(run.module), recipe, run.train.inputs, chosen.inputs, removal)

    def stored(name: str, key: str, work: Callable[[], CounterfactualResult]) -> dict[str, Any]:
        path = run.workdir / "removal" / f"{name}-{key}.npz"
        if not path.exists():
            write_arrays(path, **dataclasses.asdict(work()))
        return read_arrays(path)

    @functools.cache
    def reference() -> evaluation.CounterfactualReference:
        return evaluation.counterfactual_reference(setup, removal)

    def remove(scores_QxN: np.ndarray) -> CounterfactualResult:
        return evaluation.counterfactual_removal(setup, scores_QxN, removal, reference())

    out = {"control": stored("control", asked, lambda: reference().random)}
    for name, outcome in bars(outcomes.items(), desc="removal"):
        scores = outcome.scores_QxN[rows]
        out[name] = stored(name, fingerprint(asked, scores), functools.partial(remove, scores))
    columns = {"top_k": "top_k", "drop": "drop_Z", "drop_ci95": "drop_ci95"}
    return {
        name: {column: r[key].tolist() for column, key in columns.items()}
        for name, r in out.items()
    }


def _costs(name: str, times: dict[str, list[tuple[Cost, Cost]]]) -> dict[str, Any]:
    """Cost columns of a method, or of an ensemble named after one."""
    single, _, members = name.rpartition("-")
    if not times:
        return {"train_seconds": None, "query_seconds": None, "peak_bytes": None}
    if name in times:
        return cost_columns(name, times)
    return cost_columns(single, times, int(members))


def _rows(
    outcomes: dict[str, Outcome], costs: dict[str, dict[str, Any]], half: evaluation.Bank,
    forgotten: dict[str, dict[str, Any]],
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of the board, by LDS on the scoring half."""
    ours, rows = evaluation.lds(outcomes["stride"].scores_QxN, half), []
    for name, outcome in outcomes.items():
        result = evaluation.lds(outcome.scores_QxN, half)
        rows.append(
            {
                "method": name,
                "lds": result.lds,
                "lds_ci95": result.ci95,
                "lds_minus_stride_ci95": evaluation.lds_difference(result, ours)[1],
                "lds_uncalibrated": outcome.uncalibrated,
                "counterfactual": forgotten.get(name),
                **costs[name],
                "compile_seconds": outcome.compile_seconds,
                "index_bytes": outcome.index_bytes,
                "settings": plain(outcome.settings),
                "settings_tried": outcome.tried,
            }
        )
    return sorted(rows, key=lambda row: -row["lds"])


def hold(run: Run, settings: LeaderboardSettings) -> dict[str, Any]:
    """Run the contest and return what `leaderboard.json` holds."""
    bank = run.bank
    halves = bank.halves()
    names = jax.eval_shape(run.tapped.forward, run.model.params, run.train.inputs[:1])[1]
    base = Stride.of(run.settings)
    encoder = None
    if settings.encoder:
        encoder = EncoderSettings(settings.encoder, str(run.text.folder / "tokenizer.json"))
    is_text = run.settings.is_text
    methods = contestants(
        sorted(names), base, is_text=is_text, only=settings.methods, encoder=encoder,
        checkpoints=len(run.model.checkpoints),
    )  # fmt: skip
    folder = run.workdir / "methods"
    too = settings.uncalibrated
    outcomes = {m.name: contest(m, run, halves, folder, too) for m in bars(methods, desc="methods")}
    several = ensembles(methods, outcomes, run, settings.ensemble)
    outcomes |= {m.name: contest(m, run, halves, folder) for m in bars(several, desc="ensembles")}
    times = timings(methods, outcomes, run, settings) if settings.repeats else {}
    on_bank = {"datamodels": lambda: upper_reference(halves, len(run.train))}
    if encoder is not None:
        on_bank["encoder-trained"] = lambda: trained_encoder(halves, run, encoder)
    retrained = {}
    for name, fitted in on_bank.items():
        began = time.monotonic()
        outcomes[name] = fitted()
        # Their price is the retraining of their half of the bank.
        seconds = halves[0].seconds + time.monotonic() - began
        retrained[name] = {"train_seconds": seconds, "query_seconds": 0.0, "peak_bytes": 0}
    forgotten = removals(outcomes, run, settings)
    costs = {name: retrained.get(name) or _costs(name, times) for name in outcomes}
    rows = _rows(outcomes, costs, halves[1], forgotten)
    return {
        "rows": rows,
        "ceiling": evaluation.ceiling(halves[1]),
        "bank": {
            **halves[1].identity,
            "num_subsets": len(halves[1].members_MxS),
            "tuned_on": len(halves[0].members_MxS),
            "train_seconds": bank.seconds,
        },
        "counterfactual_control": forgotten.get("control"),
        "data": run.settings.data,
        "num_train": len(run.train),
        "num_queries": len(run.query),
        "temperature": run.model.temperature,
        "device": str(jax.devices()[0].device_kind),
        "versions": attribution.versions(),
        "commit": commit_of(ROOT),
        "command": this_command(),
    }


def main(asked: Asked) -> None:
    """Hold the contest, write the results."""
    settings = asked.section("leaderboard", LeaderboardSettings)
    run = Run(on_bank_of(settings, asked.settings), asked.workdir, bars)
    board = plain(hold(run, settings))
    write_json(asked.workdir / "leaderboard.json", board)
    print(report.table(board))
    if name := asked.flags.rows:
        record(report.rows(board, name), path=_RESULTS[asked.flags.results])
        return
    docs, name = pathlib.Path(asked.flags.docs), asked.workdir.name
    (docs / "boards").mkdir(parents=True, exist_ok=True)
    write_json(docs / "boards" / f"{name}.json", board)
    record(report.rows(board, name), path=docs / "results/boards.json")
    print(f"written: {asked.workdir / 'leaderboard.json'}, {report.write(docs)}")


if __name__ == "__main__":
    program = Program("leaderboard", __doc__, {"leaderboard": LeaderboardSettings})
    program.flag("docs", "Where leaderboard.md and its plots are written.", default="docs")
    program.flag("rows", "Name of the board among the results, in place of a page.", default="")
    program.flag("results", "Where these rows go.", choices=tuple(_RESULTS), default="applications")
    program.run(main)
