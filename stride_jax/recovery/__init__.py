"""Sparse recovery of influences from measurements."""

from stride_jax.recovery.columns import LassoState, init, init_rows
from stride_jax.recovery.lasso import LassoSettings, lambda_max, solve
from stride_jax.recovery.result import Recovery

__all__ = ["LassoSettings", "LassoState", "Recovery", "init", "init_rows", "lambda_max", "solve"]
