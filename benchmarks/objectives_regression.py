"""Rows about losses of numbers: linear regression against its exact influence, networks, labels.

Of every board the bank's first half of subsets chooses settings, six for each method, and the
second half judges. STRIDE is there untuned too; `stride-tuned` chooses among three dampings, its
features those of the chosen tap or of all. A linear model is trained with all examples
in a batch until it is the closed-form ridge regression, of which a row tells the distance.

Letters of its own: D columns of a table.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.contestants import contestants
from benchmarks.house import Row
from benchmarks.leaderboard import contest
from benchmarks.methods import Method, Stride, changed, fit_stride, score_stride
from benchmarks.pointing_figures import Note, lds_row, open_run
from stride_jax import evaluation
from stride_jax.baselines import trak
from stride_jax.data import DataSettings, Examples
from stride_jax.evaluation import BankSettings
from stride_jax.models import ModelSettings, TrainSettings
from stride_jax.run.pipeline import Run

DECAY = 0.01
"""Weight decay of the linear models: the ridge penalty, in shares of the examples."""

_LINEAR = TrainSettings(
    epochs=1000, batch_size=100_000, learning_rate=0.2, weight_decay=DECAY,
    objective="squared_error",
)  # fmt: skip

DATA = {
    "diabetes": (DataSettings("diabetes"), _LINEAR),
    # Its columns are independent: it converges sooner.
    "synthetic": (DataSettings("linear_numbers"), dataclasses.replace(_LINEAR, epochs=200)),
}
"""Data of each linear regression, and its training."""

ALPHAS = (0.5, 0.9)
"""Shares of the training set that the linear models are retrained on."""


def regression(workdir: pathlib.Path, note: Note, only: str = "") -> None:
    """Linear regression against its exact influence function, and an MLP against opponents.

    Args:
      workdir: folder of the runs.
      note: writes rows down.
      only: text in the names of the cases wanted; all for none.
    """
    for name in DATA:
        for alpha in ALPHAS:
            if only in (case := f"linear regression, {name}, alpha {alpha:g}"):
                note(_linear(case, name, alpha, workdir))
    if only in (case := "MLP, diabetes"):
        bank = BankSettings(num_subsets=200, num_seeds=10, models_at_once=50)
        note(_board(case, open_run("diabetes", workdir, bank=bank), ("grad-dot", "ekfac")))


def multilabel(workdir: pathlib.Path, note: Note, only: str = "") -> None:
    """Digits with the seven segments of a display as labels: an MLP against opponents."""
    if only in (case := "MLP, digits' segments"):
        bank = BankSettings(num_subsets=200, num_seeds=5, models_at_once=50)
        run = open_run("digits_segments", workdir, bank=bank)
        note(_board(case, run, ("grad-dot", "trak", "trak-margins"), (_summed_margins(),)))


# ── linear regression ────────────────────────────────────────────────────────────────────────────


def _linear(case: str, name: str, alpha: float, workdir: pathlib.Path) -> list[Row]:
    data, training = DATA[name]
    bank = BankSettings(num_subsets=200, alpha=alpha, num_seeds=2, models_at_once=20)
    run = open_run(
        "diabetes", workdir, data=data, train=training, model=ModelSettings("mlp", widths=()),
        bank=bank, num_checkpoints=1,
    )  # fmt: skip
    # Of a linear model trained to its optimum curvature is known: the ridge, and no more damping.
    exactly = {"read.exact.budget": len(run.train), "index.closed_form.damping": DECAY}
    base = changed(Stride.of(run.settings), exactly)
    run = Run(
        dataclasses.replace(run.settings, index=base.index, read=base.read), run.workdir,
        run.progress,
    )  # fmt: skip
    theta_D, influence_QxN = exact_influence(run.train, run.query, DECAY)
    outputs = np.asarray(run.tapped(run.model.params, run.query.inputs)[0])[:, 0]
    distance = np.abs(outputs - with_one(run.query.inputs) @ theta_D).max()
    halves = run.bank.halves()
    exact = evaluation.lds(influence_QxN, halves[1])
    rows = [
        Row(f"{case}: largest distance of outputs from numpy's ridge regression", float(distance),
            "lower"),
        lds_row(f"{case}: LDS of the exact influence function (numpy)", influence_QxN, halves[1]),
    ]  # fmt: skip
    scores = _scores(run, halves, ("stride", "stride-direct", "grad-dot", "ekfac"))
    asked = {"stride": 0.95}
    rows += [
        lds_row(f"{case}: LDS of {method}", own, halves[1], asked.get(method))
        for method, own in scores.items()
    ]
    ours = evaluation.lds(scores["stride"], halves[1])
    value, interval = evaluation.lds_difference(ours, exact)
    name = f"{case}: LDS of stride less that of the exact influence function"
    return [*rows, Row(name, value, "higher", interval, -0.01), _ceiling(case, halves[1])]


def with_one(inputs: np.ndarray) -> np.ndarray:
    """A table with a column of ones, float64."""
    rows = inputs.astype(np.float64)
    return np.concatenate([rows, np.ones((len(rows), 1))], axis=1)


def exact_influence(
    train: Examples, query: Examples, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression with its intercept, and how much each example lowers each query's loss.

    `theta = C^{-1} Xᵀy / N`, `w_{q,i} = e_q x_qᵀ C^{-1} x_i e_i / N`, `C = XᵀX / N + decay`.

    Returns:
      `[D + 1]` and `[Q, N]`.

    >>> line = Examples(np.array([[-1.0], [1.0]]), np.array([-1.0, 1.0]))
    >>> exact_influence(line, line, 1e-9)[0].round(3).tolist()
    [1.0, 0.0]
    """
    x_NxD, x_QxD = with_one(train.inputs), with_one(query.inputs)
    y_N, y_Q = (e.labels.astype(np.float64) for e in (train, query))
    curvature_DxD = x_NxD.T @ x_NxD / len(y_N) + decay * np.eye(x_NxD.shape[1])
    theta_D = np.linalg.solve(curvature_DxD, x_NxD.T @ y_N / len(y_N))
    steps_DxN = np.linalg.solve(curvature_DxD, (x_NxD * (y_N - x_NxD @ theta_D)[:, None]).T)
    return theta_D, (x_QxD * (y_Q - x_QxD @ theta_D)[:, None]) @ steps_DxN / len(y_N)


# ── boards ───────────────────────────────────────────────────────────────────────────────────────


def _tuned(base: Stride, taps: Sequence[str]) -> Method:
    """STRIDE with as many settings to choose from as its opponents have."""
    grid = [
        [changed(base, {"index.taps": own, "index.closed_form.damping": damping})]
        for own in ((), tuple(taps))
        for damping in (0.1, 0.3, 1.0)
    ]
    return Method("stride-tuned", fit_stride, score_stride, grid)


def _summed_margins() -> Method:
    """TRAK of the sum of an example's margins."""
    grid = [trak.TrakSettings(damping=d, each=False) for d in (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)]
    return Method("trak-margins", trak.fit, trak.score, [grid])


def _board(case: str, run: Run, asked: Sequence[str], besides: Sequence[Method] = ()) -> list[Row]:
    """LDS of every method on the second half of the bank, and ours less the others'."""
    halves = run.bank.halves()
    names = ("stride", "stride-direct", "grad-dot", "grad-cos", "trak", "logra", "ekfac", "less",
             "feature-cosine")  # fmt: skip
    taps = sorted(run.tapped(run.model.params, run.train.inputs[:1])[1])
    besides = (_tuned(Stride.of(run.settings), taps), *besides)
    scores = _scores(run, halves, names, besides)
    made = {name: evaluation.lds(own, halves[1]) for name, own in scores.items()}
    rows = [lds_row(f"{case}: LDS of {name}", own, halves[1]) for name, own in scores.items()]
    ours = ("stride-tuned", "stride")
    for own in ours:
        for other in [name for name in made if name not in (*ours, "stride-direct")]:
            value, interval = evaluation.lds_difference(made[own], made[other])
            wanted = 0.0 if own == "stride-tuned" and other in asked else None
            name = f"{case}: LDS of {own} less that of {other}"
            rows.append(Row(name, value, "higher", interval, wanted))
    return [*rows, _ceiling(case, halves[1])]


def _scores(
    run: Run,
    halves: tuple[evaluation.Bank, evaluation.Bank],
    names: Sequence[str],
    besides: Sequence[Method] = (),
) -> Mapping[str, np.ndarray]:
    """Scores of each method with the settings that the first half chose, `{name: [Q, N]}`."""
    taps = sorted(run.tapped(run.model.params, run.train.inputs[:1])[1])
    methods = contestants(taps, Stride.of(run.settings), only=names)
    folder = run.workdir / "methods"
    return {
        method.name: contest(method, run, halves, folder, False).scores_QxN
        for method in (*methods, *besides)
    }


def _ceiling(case: str, half: evaluation.Bank) -> Row:
    """What a perfect predictor would score, and of which models."""
    own, settings = evaluation.ceiling(half), half.settings
    subsets = f"{len(half.members_MxS)} subsets, alpha {half.alpha:g}, {settings.num_seeds} seeds"
    name = f"{case}: LDS of a perfect predictor ({subsets})"
    return Row(name, own.perfect_predictor, "higher", own.perfect_predictor_ci95)
