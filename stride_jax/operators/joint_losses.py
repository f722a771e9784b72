"""The published losses of joint training, of all K operators at once."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from stride_jax.design import subset_sum
from stride_jax.observed import Observed
from stride_jax.operators.basis import features
from stride_jax.operators.losses import fidelity, linearity, loss_drop, stability
from stride_jax.operators.steering import Context, Site, all_logit_shifts, logit_shift


@dataclasses.dataclass(frozen=True)
class JointSettings:
    """Losses, optimiser and memory of joint training.

    Attributes:
      steps: Adam steps.
      learning_rate: of the steering matrices.
      basis_learning_rate: of the basis; 0 keeps its principal components.
      fidelity, stability, linearity: weights of the losses.
      stability_batch: examples in the batch that all subsets share at a step.
      sketch: q, columns of the Johnson-Lindenstrauss sketch.
      gamma: ridge of the linearity loss, relative to the sketch's mean squared singular value.
      max_bytes: largest temporary; subsets are taken in chunks to stay below it.
      seed: of batches and sketch.
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
    max_bytes: int = 1 << 30
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.learning_rate <= 0 or self.stability_batch < 1:
            raise ValueError(
                f"steps={self.steps}, learning_rate={self.learning_rate}, "
                f"stability_batch={self.stability_batch}: all must be positive"
            )
        if min(self.fidelity, self.stability, self.linearity, self.basis_learning_rate) < 0:
            raise ValueError("loss weights and basis_learning_rate can't be negative")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """Everything the loss reads and no step changes."""

    observed: Observed
    context: Context
    x_NxTxD: jax.Array  # standardised activations, or the features where the basis is kept
    subsets_Nxd: jax.Array
    rows_KxS: jax.Array
    mask_KxS: jax.Array
    sketch_Kxq: jax.Array


def jl_sketch(subsets_Nxd: jax.Array, num_subsets: int, q: int, key: jax.Array) -> jax.Array:
    """Johnson-Lindenstrauss sketch of the design, `M̃ = M R`, R Gaussian of variance 1/q, `[K, q]`.

    The rows of R are drawn and added up one chunk of examples at a time.
    """
    chunk = 65_536
    total = jnp.zeros((num_subsets, q))
    for i, start in enumerate(range(0, subsets_Nxd.shape[0], chunk)):
        part = subsets_Nxd[start : start + chunk]
        noise = jax.random.normal(jax.random.fold_in(key, i), (part.shape[0], q)) / math.sqrt(q)
        total += subset_sum(part, noise, num_subsets)
    return total


def _chunk_losses(
    site: Site, problem: Problem, b_NxTxR: jax.Array, batch_B: jax.Array, subset_args: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Fidelity `[c]`, stability `[c]` and batch measurements `[c, B]` of a chunk of subsets."""
    a_cxRxO, rows_cxS, mask_cxS, subset_c = subset_args
    seen = problem.observed

    def member_loss(a: jax.Array, rows: jax.Array, mask: jax.Array) -> jax.Array:
        own = {name: value[rows] for name, value in problem.context.items()}
        shift = logit_shift(site, a, b_NxTxR[rows], own)
        return fidelity(
            shift, seen.logits_NxTxC[rows], seen.labels_NxT[rows], seen.weights_NxT[rows], mask
        )

    shared = {name: value[batch_B] for name, value in problem.context.items()}
    logits_BxTxC, weights_BxT = seen.logits_NxTxC[batch_B], seen.weights_NxT[batch_B]
    shift_cxBxTxC = all_logit_shifts(site, a_cxRxO, b_NxTxR[batch_B], shared)
    outside_cxB = ~(problem.subsets_Nxd[batch_B][None] == subset_c[:, None, None]).any(axis=-1)
    kl_c = jax.vmap(lambda s, m: stability(s, logits_BxTxC, weights_BxT, m))(
        shift_cxBxTxC, outside_cxB.astype(jnp.float32)
    )
    drop_cxBxT = jax.vmap(lambda s: loss_drop(s, logits_BxTxC, seen.labels_NxT[batch_B]))(
        shift_cxBxTxC
    )
    y_cxB = (drop_cxBxT * weights_BxT[None]).sum(axis=-1)
    return jax.vmap(member_loss)(a_cxRxO, rows_cxS, mask_cxS), kl_c, y_cxB


def total_loss(
    trained: dict[str, Any],
    site: Site,
    problem: Problem,
    batch_B: jax.Array,
    settings: JointSettings,
    num_chunks: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    learn_basis = "basis" in trained
    b_NxTxR = features(trained["basis"], problem.x_NxTxD) if learn_basis else problem.x_NxTxD
    a_KxRxO = trained["a"]
    k = a_KxRxO.shape[0]
    args = (a_KxRxO, problem.rows_KxS, problem.mask_KxS, jnp.arange(k))
    run = functools.partial(_chunk_losses, site, problem, b_NxTxR, batch_B)
    if num_chunks == 1:
        fit_K, kl_K, y_KxB = run(args)
    else:
        split = jax.tree.map(lambda v: v.reshape(num_chunks, k // num_chunks, *v.shape[1:]), args)
        fit_K, kl_K, y_KxB = jax.tree.map(
            lambda v: v.reshape(k, *v.shape[2:]), jax.lax.map(jax.checkpoint(run), split)
        )
    # Sums, so that an operator is trained the same whatever other operators there are.
    terms = {"fidelity": fit_K.sum(), "stability": kl_K.sum()}
    if settings.linearity:
        sketch = problem.sketch_Kxq
        gamma = settings.gamma * (sketch**2).sum() / sketch.shape[1]
        terms["linearity"] = linearity(y_KxB.T, sketch, gamma)
    total = sum(getattr(settings, name) * value for name, value in terms.items())
    return jnp.asarray(total), terms


def num_chunks(
    num_subsets: int, largest: int, observed: Observed, rank: int, settings: JointSettings
) -> int:
    """Into how many equal chunks the subsets must be cut for temporaries to stay in `max_bytes`.

    The temporaries of a subset: features of its members, and about four arrays of shifts of its
    members and of the shared batch.
    """
    _, tokens, classes = observed.logits_NxTxC.shape
    shifts = 4 * (largest + settings.stability_batch) * tokens * classes
    bytes_each = 4 * (largest * tokens * rank + shifts)
    wanted = math.ceil(num_subsets * bytes_each / settings.max_bytes)
    return next(n for n in range(min(wanted, num_subsets), num_subsets + 1) if num_subsets % n == 0)
