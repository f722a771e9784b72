"""Sparse recovery of influences from measurements."""

from stride_jax.recovery.columns import LassoState, init, init_rows
from stride_jax.recovery.lasso import lambda_max, solve
from stride_jax.recovery.result import Recovery, joined
from stride_jax.recovery.rounds import program
from stride_jax.recovery.selection import Diagnostics, SelectionSettings, recover
from stride_jax.recovery.settings import LassoSettings

__all__ = [
    "Diagnostics",
    "LassoSettings",
    "LassoState",
    "Recovery",
    "SelectionSettings",
    "init",
    "init_rows",
    "joined",
    "lambda_max",
    "program",
    "recover",
    "solve",
]
