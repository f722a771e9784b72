"""Joint training of the basis and all K operators, with the published losses.

As published (method §2), with the remedies that make the members' effect visible above the noise
(method §4.1): fidelity over all members at every step, from cached features; one stability batch,
the same for all subsets, at each step; an optimiser without per-subset randomness.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from stride_jax.design import Design, members, subset_sum
from stride_jax.operators.basis import Basis, features, standardise
from stride_jax.operators.losses import fidelity, linearity, loss_drop, stability
from stride_jax.operators.steering import Context, Operators, Site, all_logit_shifts, logit_shift
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.durable import Keep, nowhere
from stride_jax.runtime.progress import Progress, silent
from stride_jax.taps import Observed


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
class _Problem:
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
    site: Site, problem: _Problem, b_NxTxR: jax.Array, batch_B: jax.Array, subset_args: Any
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


def _total_loss(
    trained: dict[str, Any],
    site: Site,
    problem: _Problem,
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


def train_jointly(
    design: Design,
    subsets_Nxd: jax.Array,
    site: Site,
    basis: Basis,
    observed: Observed,
    context: Context,
    settings: JointSettings,
    *,
    start_KxRxO: jax.Array | None = None,
    mesh: Mesh | None = None,
    progress: Progress = silent,
    keep: Keep = nowhere,
    loop: str = "training",
) -> tuple[Operators, dict[str, np.ndarray]]:
    """Train K operators on cached features of the frozen model.

    `Σ_k [w_f fidelity_k + w_s stability_k] + w_l linearity`, minimised by Adam.

    Args:
      design: K.
      subsets_Nxd: membership of the training examples.
      site: logit or residual.
      basis: where psi starts.
      observed: the frozen model on the training examples.
      context: `steering.context` of the site for the same examples.
      settings: losses and optimiser.
      start_KxRxO: where the steering matrices start; zero by default.
      mesh: the K axis is split over `subset`.
      progress: wraps the steps.
      keep: where parameters, optimiser and losses are kept on the way.
      loop: the name they are kept under.

    Returns:
      The operators, and the losses by term, each `[steps]`.

    Raises:
      ValueError: K not divisible by the mesh axis; a loss that is not finite (names the step).
    """
    mesh = meshes.mesh_for(design.num_subsets) if mesh is None else mesh
    meshes.check_divisible("num_subsets", design.num_subsets, mesh, meshes.SUBSET)
    rows, mask = members(subsets_Nxd, design.num_subsets)
    draw_key, sketch_key = jax.random.split(jax.random.key(settings.seed))
    x_NxTxD = standardise(basis, observed.activations)
    learn_basis = settings.basis_learning_rate > 0
    q = settings.sketch if settings.linearity else 1
    problem = _Problem(
        dataclasses.replace(observed, activations={}),
        context,
        x_NxTxD if learn_basis else features(basis.weights, x_NxTxD),
        subsets_Nxd,
        jnp.asarray(rows),
        jnp.asarray(mask),
        jl_sketch(subsets_Nxd, design.num_subsets, q, sketch_key),
    )
    split, whole = meshes.over_subsets(mesh), meshes.replicated(mesh)
    problem_sharding = jax.tree.map(lambda _: whole, problem)
    problem = meshes.place(
        problem, dataclasses.replace(problem_sharding, rows_KxS=split, mask_KxS=split)
    )
    site, basis = meshes.everywhere((site, basis), mesh)
    trained: dict[str, Any] = {
        "a": jax.ShapeDtypeStruct((design.num_subsets, basis.rank, site.width), jnp.float32)
    }
    if learn_basis:
        trained["basis"] = basis.weights
    tx = optax.partition(
        {
            "a": optax.adam(settings.learning_rate),
            "basis": optax.adam(settings.basis_learning_rate or 1.0),
        },
        lambda tree: {name: name for name in tree},
    )
    chunks = num_chunks(
        design.num_subsets // mesh.shape[meshes.SUBSET], rows.shape[1], observed, basis.rank,
        settings,
    )  # fmt: skip

    def start() -> tuple[Any, Any]:
        zero = jnp.zeros(trained["a"].shape, jnp.float32)
        tree = {**trained, "a": zero if start_KxRxO is None else start_KxRxO}
        return tree, tx.init(tree)

    shapes = jax.eval_shape(start)
    shardings = jax.tree.map(lambda v: split if v.shape == trained["a"].shape else whole, shapes)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, whole))
    def step(state: Any, problem: _Problem, site: Site, key: jax.Array) -> Any:
        tree, moments = state
        count = problem.subsets_Nxd.shape[0]
        batch_B = jax.random.choice(
            key, count, (min(settings.stability_batch, count),), replace=False
        )
        grads, terms = jax.grad(_total_loss, has_aux=True)(
            tree, site, problem, batch_B, settings, chunks
        )
        updates, moments = tx.update(grads, moments, tree)
        return (optax.apply_updates(tree, updates), moments), terms

    state = jax.jit(start, out_shardings=shardings)()
    names = ("fidelity", "stability", *(("linearity",) if settings.linearity else ()))
    log = {name: np.zeros(settings.steps, np.float32) for name in names}
    begin, (state, log) = keep.resume(loop, (state, log))
    late: list[tuple[int, dict[str, jax.Array]]] = []

    def kept() -> tuple[Any, dict[str, np.ndarray]]:
        while late:
            i, terms = late.pop()
            for name, value in terms.items():
                log[name][i] = float(value)
        return state, log

    for i in progress(range(begin, settings.steps), desc="operators"):
        state, terms = step(state, problem, site, jax.random.fold_in(draw_key, i))
        late.append((i, terms))
        keep.step(loop, i + 1, kept, terms)
    state, log = kept()
    for name, values in log.items():
        if not np.isfinite(values).all():
            raise ValueError(
                f"the {name} loss is not finite from step {int(np.argmin(np.isfinite(values)))} "
                f"on; lower learning_rate={settings.learning_rate}"
            )
    tree = state[0]
    weights = tree.get("basis", basis.weights)
    ones_K = jnp.ones(design.num_subsets)
    return Operators(dataclasses.replace(basis, weights=weights), tree["a"], ones_K), log
