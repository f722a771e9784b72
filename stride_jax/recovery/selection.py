"""Choosing lambda for each query from its own measurements, and saying what they are worth.

Some of the K subsets are held out; a path of lambdas is solved on the others and predicts them. No
retrained model and no ground truth is needed (docs/method.md §7.5).

Letters: F lambdas of the path, H held-out measurements.
"""

import dataclasses
from typing import Any

import numpy as np
import scipy.sparse

from stride_jax.design import Design
from stride_jax.recovery.columns import LassoState, init
from stride_jax.recovery.lasso import checked, finish, open_queries, solve
from stride_jax.recovery.result import Recovery
from stride_jax.recovery.settings import LassoSettings
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.progress import Progress, silent
from stride_jax.runtime.settings import check_types

# Share of the memory that a part of a design may take to be held; there are four of them.
_HELD = 32


@dataclasses.dataclass(frozen=True)
class SelectionSettings:
    """How lambda is chosen.

    Attributes:
      rule: `fixed` takes `LassoSettings.lambda_fraction` for every query and holds nothing out;
        `best` the lambda that predicts held-out measurements best; `one_se` the largest one that
        predicts them as well up to one standard error of the best one's mean squared error.
      fractions: lambdas tried, as fractions of lambda_max, from large to small.
      folds: the K subsets are dealt into this many folds.
      splits: how many of the folds are held out in turn.
      relative_gap: duality gap on the way.
      seed: of the deal.
    """

    rule: str = "fixed"
    fractions: tuple[float, ...] = (0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.035, 0.025, 0.015)
    folds: int = 5
    splits: int = 2
    relative_gap: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        if self.rule not in ("fixed", "best", "one_se"):
            raise ValueError(f"rule={self.rule!r}: use 'fixed', 'best' or 'one_se'")
        if not 1 <= self.splits <= self.folds or self.folds < 2:
            raise ValueError(
                f"folds={self.folds}, splits={self.splits}: need 2 folds or more, and between one "
                "split and as many as there are folds"
            )
        if not 0 < self.relative_gap < 1:
            raise ValueError(f"relative_gap={self.relative_gap} must lie in (0, 1)")
        grid = np.array(self.fractions)
        if len(grid) == 0 or not ((grid > 0) & (grid < 1)).all() or not (np.diff(grid) < 0).all():
            raise ValueError(f"fractions={self.fractions} must fall from below 1 to above 0")


@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """What each query's measurements are worth.

    Attributes:
      fraction_Q: lambda over lambda_max; 1 for a query without signal.
      held_out_r2_Q: share of the held-out measurements' variance that is predicted there; None
        where nothing was held out.
      signal_Q: false where held-out measurements are not predicted, or, where nothing was held out,
        where measurements do not vary: scores are then all zero.
      stability_Q: overlap (Jaccard) of the supports recovered from two halves of the measurements;
        None where nothing was held out.
      support_Q: influences that are not zero.
      relative_gap_Q: certified duality gap.
    """

    fraction_Q: np.ndarray
    held_out_r2_Q: np.ndarray | None
    signal_Q: np.ndarray
    stability_Q: np.ndarray | None
    support_Q: np.ndarray
    relative_gap_Q: np.ndarray


def recover(
    state: LassoState,
    y_QxK: np.ndarray,
    lasso: LassoSettings = LassoSettings(),
    settings: SelectionSettings = SelectionSettings(),
    *,
    progress: Progress = silent,
) -> tuple[Recovery, Diagnostics]:
    """Choose each query's lambda without ground truth, then solve.

    Args:
      state: from `init`.
      y_QxK: `[Q, K]` measurements.
      lasso: settings of the recovery; its `lambda_fraction` serves the rule `fixed` alone.
      settings: how lambda is chosen.
      progress: wraps splits and queries.

    Returns:
      The recovery, and what each query's measurements are worth.

    Raises:
      ValueError: as `solve`, or too few measurements to hold some out.
    """
    if settings.rule == "fixed":
        recovery = solve(state, y_QxK, lasso, progress=progress)
        signal = recovery.lambda_Q > 0
        fraction = np.where(signal, lasso.lambda_fraction, 1.0)
        stability = r2 = None
    else:
        errors = held_out_errors(state, y_QxK, lasso, settings, progress)
        chosen, r2 = choose(errors, settings.rule)
        signal = (chosen > 0) & (r2 > 0)
        opened = open_queries(state, y_QxK, lasso)
        opened.top_Q[~signal] = 0.0
        fraction = np.where(signal, np.array([1.0, *settings.fractions])[chosen], 1.0)
        recovery = finish(state, opened, fraction, lasso, progress)
        overlap = _stability(state, checked(state, y_QxK), fraction, lasso, settings.seed)
        stability = np.where(signal, overlap, 0.0)
    return recovery, Diagnostics(
        fraction, r2, signal, stability, recovery.support_Q, recovery.relative_gap_Q
    )


def keep_subsets(state: LassoState, mask_K: np.ndarray) -> LassoState:
    """The design of fewer measurements: subsets in the mask, in their order.

    Small ones are held, so that the next question finds them prepared.
    """
    if (held := state.parts.get(mask_K.tobytes())) is not None:
        return held
    count = int(mask_K.sum())
    new_L = np.full(state.num_subsets + 1, count, np.int32)
    new_L[:-1][mask_K] = np.arange(count)
    table = new_L[np.asarray(state.table_Pxd)[: state.num_train]]
    weights = state.penalty_P
    part = init(
        Design(count, 1), table, shard_columns=state.sharded, one_hot=state.one_hot,
        penalty_N=None if weights is None else np.asarray(weights)[: state.num_train],
        execution=Execution(mesh=state.mesh, memory=state.memory),
    )  # fmt: skip
    if part.table_Pxd.nbytes <= state.memory // _HELD:
        state.parts[mask_K.tobytes()] = part
    return part


def _sparse_rows(state: LassoState) -> Any:  # scipy's stubs lose the product's type
    """`Mᵀ`, `[N, K + 1]`; the last column gathers the padding."""
    table = np.asarray(state.table_Pxd)[: state.num_train].astype(np.int32)
    n, degree = table.shape
    return scipy.sparse.csr_array(
        (np.ones(table.size), table.reshape(-1), np.arange(0, table.size + 1, degree)),
        shape=(n, state.num_subsets + 1),
    )


def held_out_errors(
    state: LassoState,
    y_QxK: np.ndarray,
    lasso: LassoSettings,
    settings: SelectionSettings,
    progress: Progress = silent,
) -> np.ndarray:
    """Squared errors of predictions of held-out measurements.

    Returns:
      `[1 + fractions, Q, H]` float64 over all H held-out measurements; the first row predicts the
      mean (lambda_max).

    Raises:
      ValueError: fewer measurements than folds.
    """
    y, k = checked(state, y_QxK), state.num_subsets
    if k < max(4, settings.folds):
        raise ValueError(
            f"rule={settings.rule!r} holds out one of folds={settings.folds} of K={k} measurements:"
            " too few; use rule='fixed', or a design of more subsets"
        )
    fold_K = np.random.default_rng(settings.seed).permutation(k) % settings.folds
    loose = dataclasses.replace(lasso, relative_gap=settings.relative_gap)
    columns = _sparse_rows(state)
    errors = []
    for split in progress(range(settings.splits), desc="choose lambda", total=settings.splits):
        fitted = fold_K != split
        part = keep_subsets(state, fitted)
        opened = open_queries(part, y[:, fitted], loose)
        rows = []
        for fraction in (1.0, *settings.fractions):
            predicted = np.zeros_like(y)
            if fraction < 1:
                recovery = finish(part, opened, np.full(len(y), fraction), loose)
                predicted = (recovery.sparse.astype(float) @ columns).toarray()[:, :-1]
            miss = y - predicted
            if lasso.intercept:
                miss = miss - miss[:, fitted].mean(axis=1, keepdims=True)
            rows.append(miss[:, ~fitted] ** 2)
        errors.append(np.stack(rows))
    return np.concatenate(errors, axis=2)


def choose(errors_FxQxH: np.ndarray, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Row of the chosen lambda for each query, 0 for none, and its held-out R².

    Args:
      errors_FxQxH: from `held_out_errors`.
      rule: `best` or `one_se`.
    """
    mean_FxQ = errors_FxQxH.mean(axis=2)
    best_Q = mean_FxQ.argmin(axis=0)
    at = np.arange(mean_FxQ.shape[1])
    chosen_Q = best_Q
    if rule == "one_se":
        best_QxH = errors_FxQxH[best_Q, at]
        error_Q = best_QxH.std(axis=1) / np.sqrt(best_QxH.shape[1])
        chosen_Q = (mean_FxQ <= best_QxH.mean(axis=1) + error_Q).argmax(axis=0)
    r2_Q = 1 - mean_FxQ[chosen_Q, at] / np.maximum(mean_FxQ[0], 1e-300)
    return chosen_Q, r2_Q


def _stability(
    state: LassoState, y_QxK: np.ndarray, fraction_Q: np.ndarray, lasso: LassoSettings, seed: int
) -> np.ndarray:
    half_K = np.random.default_rng(seed).permutation(state.num_subsets) % 2 == 0
    supports = []
    for mask in (half_K, ~half_K):
        part = keep_subsets(state, mask)
        opened = open_queries(part, y_QxK[:, mask], lasso)
        supports.append(finish(part, opened, fraction_Q, lasso).sparse != 0)
    both = supports[0].multiply(supports[1]).sum(axis=1)
    either = (supports[0] + supports[1]).sum(axis=1)
    return np.asarray(both / np.maximum(either, 1))
