"""Sparse recovery of influences from measurements."""

from stride_jax.recovery.lasso import (
    LassoSettings,
    LassoState,
    Recovery,
    init,
    init_rows,
    solve,
)

__all__ = ["LassoSettings", "LassoState", "Recovery", "init", "init_rows", "solve"]
