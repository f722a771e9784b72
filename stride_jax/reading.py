"""From an index to measurements, and from measurements to scores (docs/method.md §6 – 8)."""

import dataclasses
import warnings
from collections.abc import Mapping

import numpy as np
import scipy.sparse

from stride_jax import design as designs
from stride_jax import operators as ops
from stride_jax.examples import Examples
from stride_jax.frozen import FrozenModel
from stride_jax.index import Index
from stride_jax.measure import MeasureSettings, measure
from stride_jax.recovery import Diagnostics, LassoState, Recovery, init
from stride_jax.runtime.execution import Execution
from stride_jax.settings import ReadSettings


def measure_all(
    frozen: FrozenModel,
    operators: dict[str, ops.Operators],
    examples: Examples,
    settings: MeasureSettings,
    execution: Execution = Execution(),
) -> np.ndarray:
    """Measurements of queries, summed over sites, `[Q, K]` nats; of token groups, `[Q G, K]`."""
    source = frozen.source(examples)
    parts = [
        measure(site, operators[name], source, settings, execution)
        for name, site in frozen.sites.items()
    ]
    return np.sum(parts, axis=0)


def penalty_weights(residual_N: np.ndarray, prior: float) -> np.ndarray | None:
    """Penalty weights of the Lasso, `||e_i||^-p` over their mean, `[N]`; None without a prior.

    >>> penalty_weights(np.array([1.0, 16.0]), 0.25).tolist()
    [1.3333333333333333, 0.6666666666666666]
    """
    if prior == 0:
        return None
    weights_N = np.maximum(residual_N, 1e-6) ** -prior
    return weights_N / weights_N.mean()


def lasso_state(
    index: Index, settings: ReadSettings, execution: Execution = Execution()
) -> LassoState:
    """The index' design with its penalty weights, ready for any measurements."""
    design = index.settings.design
    subsets_Nxd = designs.membership(design, index.train_ids)
    weights_N = penalty_weights(index.residual_N, settings.prior)
    return init(design, subsets_Nxd, penalty_N=weights_N, execution=execution)


def influences_by_query(recovery: Recovery, num_queries: int) -> scipy.sparse.csr_array:
    """Influences of queries, those of their token groups added up, `[Q, N]`."""
    rows = np.arange(len(recovery.lambda_Q))
    groups = len(rows) // num_queries
    if groups == 1:
        return recovery.sparse
    adds = scipy.sparse.csr_array(
        (np.ones(len(rows), np.float32), (rows // groups, rows)), shape=(num_queries, len(rows))
    )
    return scipy.sparse.csr_array(adds @ recovery.sparse)


def say_where_no_signal(y_QxK: np.ndarray, query_ids: np.ndarray) -> None:
    """Warn of queries whose K measurements are all the same, whatever their lambda."""
    # As recovery has it: what varies by less than a float32 of its size is rounding.
    signal = np.ptp(y_QxK, axis=1) > 1e-7 * np.abs(y_QxK).max(axis=1)
    silent_Q = ~signal.reshape(len(query_ids), -1).any(axis=1)
    if silent_Q.any():
        warnings.warn(
            f"{int(silent_Q.sum())} of {len(query_ids)} queries have no measurable signal, first "
            f"{query_ids[silent_Q.argmax()]}: no operator changes their loss, so their scores are "
            "all zero; a saturated prediction (p = 1 in float32) does this: calibrate the model "
            "with taps.with_temperature",
            stacklevel=3,
        )


def named_diagnostics(diagnostics: Diagnostics) -> dict[str, np.ndarray]:
    """Diagnostics by name, without those that the rule of lambda did not measure."""
    fields = {f.name: getattr(diagnostics, f.name) for f in dataclasses.fields(diagnostics)}
    return {name.removesuffix("_Q"): v for name, v in fields.items() if v is not None}


def diagnostics_by_query(
    named: Mapping[str, np.ndarray], num_queries: int
) -> dict[str, np.ndarray]:
    """Diagnostics of queries, `[Q]`: the mean over a query's token groups, of gaps the largest."""
    rows = {name: np.asarray(v, np.float64).reshape(num_queries, -1) for name, v in named.items()}
    return {
        name: v.max(axis=1) if name == "relative_gap" else v.mean(axis=1)
        for name, v in rows.items()
    }
