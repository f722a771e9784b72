"""Is an attribution true? Retrained models, LDS and its uncertainty."""

from stride_jax.evaluation.bank import Bank, BankSettings, build_bank
from stride_jax.evaluation.lds import Ceiling, Lds, ceiling, lds

__all__ = ["Bank", "BankSettings", "Ceiling", "Lds", "build_bank", "ceiling", "lds"]
