"""How far influences are from optimal: a duality gap in float64 that float32 cannot flatter.

The pass over all N columns runs in float32, everything else here in float64 on the support. The
dual point is the very float32 residual that the pass read, shrunk until every column's correlation
is within its penalty. The pass adds d numbers per column, or as many of each of the three parts of
a float32, so its result is within `(d + 1) u Σ|r_k| <= (d + 1) d u max|r|` of the true one,
u = 2⁻²⁴ (Higham, Accuracy and Stability of Numerical Algorithms, §4.2): the largest correlation is
raised by that bound before it is used. So the dual point is feasible and the gap is an upper bound,
whatever the rounding (docs/method.md §7.4).

Letter: Z examples of a query's support.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

_UNIT = 2.0**-24


class Support(NamedTuple):
    """A query's influences that are not zero.

    Attributes:
      rows_Zxd: subsets of the examples, K for padding.
      w_Z: their influences.
      lambda_Z: their penalties, `lambda penalty_i`.
    """

    rows_Zxd: np.ndarray
    w_Z: np.ndarray
    lambda_Z: np.ndarray


class ColumnPass(NamedTuple):
    """A pass over all N columns.

    Attributes:
      r_K: the float32 residual that it read.
      largest: the largest `|m_iᵀ r| / penalty_i` that it returned; of `m_iᵀ r` for influences that
        are not negative.
    """

    r_K: np.ndarray
    largest: float


class Terms(NamedTuple):
    """The problem that is certified.

    Attributes:
      penalty: lambda.
      gamma: of the elastic net, 0 without.
      least_weight: smallest penalty weight of the design.
      intercept: whether one is fitted.
    """

    penalty: float
    gamma: float = 0.0
    least_weight: float = 1.0
    intercept: bool = True


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Proof of one query's influences.

    Attributes:
      relative_gap: primal minus dual objective, over `½ ||y||²` of the (centred) measurements.
      kkt: largest violation of the optimality conditions over all N, in units of lambda.
    """

    relative_gap: float
    kkt: float


def certify(support: Support, y_K: np.ndarray, passed: ColumnPass, terms: Terms) -> Certificate:
    """Certify one query's influences.

    Args:
      support: what was recovered.
      y_K: measurements.
      passed: the pass over all columns with its residual.
      terms: of the problem.

    Returns:
      Gap and violation.
    """
    k, degree = len(y_K), support.rows_Zxd.shape[1]
    y, r_pass, w = (v.astype(np.float64) for v in (y_K, passed.r_K, support.w_Z))
    total = np.bincount(support.rows_Zxd.reshape(-1), np.repeat(w, degree), minlength=k + 1)[:k]
    r = y - total
    mean = 0.0
    if terms.intercept:
        y, r, mean = y - y.mean(), r - r.mean(), r_pass.mean()
    rounding = (degree + 1) * degree * _UNIT * np.abs(r_pass).max(initial=0.0)
    rounding += degree * abs(mean)
    ridge = support.lambda_Z * terms.gamma * w
    rounding += 8 * _UNIT * np.abs(ridge).max(initial=0.0)
    bound = passed.largest * (1 + 4 * _UNIT) + rounding / terms.least_weight
    shrink = terms.penalty / max(bound, terms.penalty)
    theta = shrink * (r_pass - mean)
    primal = 0.5 * r @ r + support.lambda_Z @ np.abs(w) + 0.5 * ridge @ w
    dual = 0.5 * y @ y - 0.5 * (y - theta) @ (y - theta) - 0.5 * shrink**2 * ridge @ w
    inside = np.append(r, 0.0)[support.rows_Zxd].sum(axis=1) - ridge
    inside -= support.lambda_Z * np.sign(w)
    violation = max(
        passed.largest / terms.penalty - 1, np.abs(inside / support.lambda_Z).max(initial=0.0), 0.0
    )
    return Certificate(float((primal - dual) / max(0.5 * y @ y, 1e-300)), float(violation))
