"""Costs of a run from shapes alone: memory, arithmetic and traffic of its real programs."""

from stride_jax.run.planning.chips import CHIPS, Chip, chip_of
from stride_jax.run.planning.costs import Stage, StageCost, cost, cost_of, gib, lowered
from stride_jax.run.planning.memory import Need, needs
from stride_jax.run.planning.modules import Work, work_of
from stride_jax.run.planning.programs import plan, planned_stages
from stride_jax.run.planning.refusal import OutOfMemoryError, named_stage, refuse_too_large
from stride_jax.run.planning.sizes import Bytes, Names
from stride_jax.run.planning.speed import model_speed, with_speed
from stride_jax.run.planning.stages import Extent, extent_of, index_bytes
from stride_jax.run.planning.topology import chip_in, devices_of
from stride_jax.runtime.flops import count_flops

__all__ = [
    "CHIPS",
    "Bytes",
    "Chip",
    "Extent",
    "Names",
    "Need",
    "OutOfMemoryError",
    "Stage",
    "StageCost",
    "Work",
    "chip_in",
    "chip_of",
    "cost",
    "cost_of",
    "count_flops",
    "devices_of",
    "extent_of",
    "gib",
    "index_bytes",
    "lowered",
    "model_speed",
    "named_stage",
    "needs",
    "plan",
    "planned_stages",
    "refuse_too_large",
    "with_speed",
    "work_of",
]
