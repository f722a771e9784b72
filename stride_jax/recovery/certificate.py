"""How far influences are from optimal: a duality gap in float64 that float32 cannot flatter.

The pass over all N columns runs in float32, everything else here in float64 on the support. The
dual point is the very float32 residual that the pass saw, shrunk until every column's correlation
is within its penalty. The pass adds d numbers a column, so its result is within
`(d − 1) u Σ|r_k| <= (d − 1) d u max|r|` of the true one, u = 2⁻²⁴ (Higham, Accuracy and Stability
of Numerical Algorithms, §4.2): the largest correlation is raised by that bound before it is used.
So the dual point is feasible and the gap is an upper bound, whatever the rounding.
"""

import dataclasses

import numpy as np

_UNIT = 2.0**-24


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Proof of one query's influences.

    Attributes:
      relative_gap: primal minus dual objective, over `½ ||y||²` of the (centred) measurements.
      kkt: largest violation of the optimality conditions over all N, in units of lambda.
    """

    relative_gap: float
    kkt: float


def certify(
    rows_SxD: np.ndarray,
    w_S: np.ndarray,
    y_K: np.ndarray,
    r_K: np.ndarray,
    most: float,
    lambda_S: np.ndarray,
    penalty: float,
    gamma: float = 0.0,
    *,
    least_weight: float = 1.0,
    signed: bool = False,
    intercept: bool = True,
) -> Certificate:
    """Certify one query.

    Args:
      rows_SxD: subsets of the support's examples, K for padding.
      w_S: their influences, not zero.
      y_K: measurements.
      r_K: the float32 residual that the pass over all columns saw.
      most: the pass's largest `|m_iᵀ r| / penalty_i`.
      lambda_S: penalties of the support, `lambda penalty_i`.
      penalty: lambda.
      gamma: of the elastic net, 0 without.
      least_weight: smallest penalty weight of the design.
      signed: influences are not negative, and `most` is of `m_iᵀ r`.
      intercept: whether one is fitted.

    Returns:
      Gap and violation.
    """
    k, degree = len(y_K), rows_SxD.shape[1]
    y, seen, w = y_K.astype(np.float64), r_K.astype(np.float64), w_S.astype(np.float64)
    total = np.bincount(rows_SxD.reshape(-1), np.repeat(w, degree), minlength=k + 1)[:k]
    r = y - total
    mean = 0.0
    if intercept:
        y, r, mean = y - y.mean(), r - r.mean(), seen.mean()
    rounding = (degree - 1) * degree * _UNIT * np.abs(seen).max(initial=0.0) + degree * abs(mean)
    ridge = lambda_S * gamma * w
    rounding += 8 * _UNIT * np.abs(ridge).max(initial=0.0)
    bound = most * (1 + 4 * _UNIT) + rounding / least_weight
    shrink = penalty / max(bound, penalty)
    theta = shrink * (seen - mean)
    primal = 0.5 * r @ r + lambda_S @ np.abs(w) + 0.5 * ridge @ w
    dual = 0.5 * y @ y - 0.5 * (y - theta) @ (y - theta) - 0.5 * shrink**2 * ridge @ w
    inside = np.append(r, 0.0)[rows_SxD].sum(axis=1) - ridge - lambda_S * np.sign(w)
    violation = max(most / penalty - 1, np.abs(inside / lambda_S).max(initial=0.0), 0.0)
    return Certificate(float((primal - dual) / max(0.5 * y @ y, 1e-300)), float(violation))
