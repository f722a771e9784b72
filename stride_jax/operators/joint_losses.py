"""The published losses of joint training, of all K operators at once.

Letters of its own: c subsets of a chunk, q columns of the Johnson-Lindenstrauss sketch.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from stride_jax.design import subset_sum
from stride_jax.inputs import take_rows
from stride_jax.observed import Context, Observed
from stride_jax.operators.basis import features
from stride_jax.operators.losses import fidelity, linearity, stability
from stride_jax.operators.sites import Site
from stride_jax.runtime.settings import check_types
from stride_jax.taps import Params


@dataclasses.dataclass(frozen=True)
class JointSettings:
    """Losses and optimiser of joint training.

    Attributes:
      steps: Adam steps.
      learning_rate: learning rate of the steering matrices.
      basis_learning_rate: learning rate of the basis; 0 leaves its principal components fixed.
      fidelity, stability, linearity: weights of the losses.
      stability_batch: examples per step in the batch that all subsets share.
      sketch: q, columns of the Johnson-Lindenstrauss sketch.
      gamma: ridge of the linearity loss, relative to the sketch's mean squared singular value.
      seed: random seed of batches and sketch.
    """

    steps: int = 60
    learning_rate: float = 1e-3
    basis_learning_rate: float = 0.0
    fidelity: float = 1.0
    stability: float = 10.0
    linearity: float = 0.0
    stability_batch: int = 256
    sketch: int = 64
    gamma: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        if self.steps < 1 or self.learning_rate <= 0 or self.stability_batch < 1:
            raise ValueError(
                f"steps={self.steps}, learning_rate={self.learning_rate}, "
                f"stability_batch={self.stability_batch}: all must be positive"
            )
        if min(self.fidelity, self.stability, self.linearity, self.basis_learning_rate) < 0:
            raise ValueError(
                f"fidelity={self.fidelity}, stability={self.stability}, linearity={self.linearity},"
                f" basis_learning_rate={self.basis_learning_rate}: none may be negative"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """Everything the loss reads and no step changes."""

    params: Params  # of the layers after a residual site's tap
    observed: Observed
    context: Context
    x_NxTxD: jax.Array  # standardised activations, or the features of a fixed basis
    subsets_Nxd: jax.Array
    rows_KxS: jax.Array
    mask_KxS: jax.Array
    sketch_Kxq: jax.Array


def jl_sketch(subsets_Nxd: jax.Array, num_subsets: int, q: int, key: jax.Array) -> jax.Array:
    """Johnson-Lindenstrauss sketch, `[K, q]`: M times a Gaussian matrix of variance 1/q.

    The rows of the Gaussian matrix are drawn and added up one chunk of examples at a time.
    """
    chunk = 65_536
    total = jnp.zeros((num_subsets, q), jnp.float32)
    for i, start in enumerate(range(0, subsets_Nxd.shape[0], chunk)):
        part = subsets_Nxd[start : start + chunk]
        noise = jax.random.normal(jax.random.fold_in(key, i), (part.shape[0], q), jnp.float32)
        noise = noise / math.sqrt(q)
        total += subset_sum(part, noise, num_subsets)
    return total


def _chunk_losses(
    site: Site, problem: Problem, b_NxTxR: jax.Array, batch_B: jax.Array, subset_args: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Fidelity `[c]`, stability `[c]` and batch measurements `[c, B]` of a chunk of subsets."""
    a_cxRxO, rows_cxS, mask_cxS, subset_c = subset_args
    params, observed = problem.params, problem.observed

    def member_loss(a: jax.Array, rows: jax.Array, mask: jax.Array) -> jax.Array:
        own = take_rows(problem.context, rows)
        shift = site.shift(params, a, b_NxTxR[rows], own)
        return fidelity(shift, observed.rows(rows), mask)

    shared = take_rows(problem.context, batch_B)
    batch = observed.rows(batch_B)
    shift_cxBxTxC = site.shifts(params, a_cxRxO, b_NxTxR[batch_B], shared)
    outside_cxB = ~(problem.subsets_Nxd[batch_B][None] == subset_c[:, None, None]).any(axis=-1)
    moved_c = jax.vmap(lambda s, m: stability(s, batch, m))(
        shift_cxBxTxC, outside_cxB.astype(jnp.float32)
    )
    drop_cxBxT = jax.vmap(
        lambda s: observed.objective.drop(s, batch.logits_NxTxC, batch.labels_NxT)
    )(shift_cxBxTxC)
    y_cxB = (drop_cxBxT * batch.weights_NxT[None]).sum(axis=-1)
    return jax.vmap(member_loss)(a_cxRxO, rows_cxS, mask_cxS), moved_c, y_cxB


def total_loss(
    trained: dict[str, Any],
    site: Site,
    problem: Problem,
    batch_B: jax.Array,
    settings: JointSettings,
    num_chunks: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of the losses over all subsets, and each loss by name.

    Args:
      trained: steering matrices `a`, and the basis' weights `basis` where it is trained.
      site: where operators act.
      problem: what no step changes.
      batch_B: rows of the stability batch.
      settings: weights of the losses.
      num_chunks: chunks of subsets that are computed one after the other.
    """
    learn_basis = "basis" in trained
    b_NxTxR = features(trained["basis"], problem.x_NxTxD) if learn_basis else problem.x_NxTxD
    a_KxRxO = trained["a"]
    k = a_KxRxO.shape[0]
    args = (a_KxRxO, problem.rows_KxS, problem.mask_KxS, jnp.arange(k))
    run = functools.partial(_chunk_losses, site, problem, b_NxTxR, batch_B)
    if num_chunks == 1:
        fit_K, moved_K, y_KxB = run(args)
    else:
        split = jax.tree.map(lambda v: v.reshape(num_chunks, k // num_chunks, *v.shape[1:]), args)
        fit_K, moved_K, y_KxB = jax.tree.map(
            lambda v: v.reshape(k, *v.shape[2:]), jax.lax.map(jax.checkpoint(run), split)
        )
    # Sums, so that an operator's training does not depend on the other operators.
    terms = {"fidelity": fit_K.sum(), "stability": moved_K.sum()}
    if settings.linearity:
        sketch = problem.sketch_Kxq
        gamma = settings.gamma * (sketch**2).sum() / sketch.shape[1]
        terms["linearity"] = linearity(y_KxB.T, sketch, gamma)
    total = sum(getattr(settings, name) * value for name, value in terms.items())
    return jnp.asarray(total), terms


def num_chunks(
    num_subsets: int, largest: int, problem: Problem, rank: int, batch: int, memory: int
) -> int:
    """Number of equal chunks of subsets whose temporaries fit the memory.

    The temporaries of a subset: features of its members, and about four arrays of shifts of its
    members and of the shared batch.

    Args:
      num_subsets: subsets per device.
      largest: members of the largest subset.
      problem: the examples, or their shapes.
      rank: R.
      batch: `JointSettings.stability_batch`.
      memory: `Execution.memory`, bytes.
    """
    _, tokens, classes = problem.observed.logits_NxTxC.shape
    shifts = 4 * (largest + batch) * tokens * classes
    bytes_each = 4 * (largest * tokens * rank + shifts)
    wanted = math.ceil(num_subsets * bytes_each / memory)
    return next(n for n in range(min(wanted, num_subsets), num_subsets + 1) if num_subsets % n == 0)
