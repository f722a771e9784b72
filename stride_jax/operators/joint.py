"""Joint training of the basis and all K operators, with the published losses.

As published (method §2), with the remedies that make the members' effect visible above the noise
(method §4.1): fidelity over all members at every step, from cached features; one stability batch,
the same for all subsets, at each step; an optimiser without per-subset randomness.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from stride_jax.design import Design, members
from stride_jax.observed import Observed
from stride_jax.operators.basis import Basis, features, standardise
from stride_jax.operators.joint_losses import (
    JointSettings,
    Problem,
    jl_sketch,
    num_chunks,
    total_loss,
)
from stride_jax.operators.steering import Context, Operators, Site
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.keep import Keep, nowhere
from stride_jax.runtime.progress import Progress, silent


def shardings(problem: Problem, mesh: Mesh) -> Problem:
    """Where a problem lives: members by subset over `subset`, the rest on every device."""
    split, whole = meshes.over_subsets(mesh), meshes.replicated(mesh)
    everywhere = jax.tree.map(lambda _: whole, problem)
    return dataclasses.replace(everywhere, rows_KxS=split, mask_KxS=split)


class Program(NamedTuple):
    """Compiled training.

    Attributes:
      start: `(basis weights) -> state`.
      step: `(state, problem, site, key) -> (state, terms)`; takes the state over.
      state: its shapes, with where they live.
    """

    start: Any
    step: Any
    state: Any


def program(
    num_subsets: int,
    width: int,
    basis: Basis,
    settings: JointSettings,
    chunks: int,
    mesh: Mesh,
    start_KxRxO: jax.Array | None = None,
) -> Program:
    """Adam on `total_loss`; matrices and their moments split over `subset`.

    Args:
      num_subsets: K.
      width: O of the site.
      basis: where psi starts.
      settings: losses and optimiser.
      chunks: from `num_chunks`.
      mesh: devices.
      start_KxRxO: where the steering matrices start; zero by default.
    """
    shape = num_subsets, basis.rank, width
    tx = optax.partition(
        {
            "a": optax.adam(settings.learning_rate),
            "basis": optax.adam(settings.basis_learning_rate or 1.0),
        },
        lambda tree: {name: name for name in tree},
    )

    def start(weights: dict[str, jax.Array]) -> tuple[Any, Any]:
        tree: dict[str, Any] = {"a": jnp.zeros(shape) if start_KxRxO is None else start_KxRxO}
        if settings.basis_learning_rate > 0:
            tree["basis"] = weights
        return tree, tx.init(tree)

    split, whole = meshes.over_subsets(mesh), meshes.replicated(mesh)
    shapes = jax.eval_shape(start, basis.weights)
    where = jax.tree.map(lambda v: split if v.shape == shape else whole, shapes)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(where, whole))
    def step(state: Any, problem: Problem, site: Site, key: jax.Array) -> Any:
        tree, moments = state
        count = problem.subsets_Nxd.shape[0]
        batch_B = jax.random.choice(
            key, count, (min(settings.stability_batch, count),), replace=False
        )
        grads, terms = jax.grad(total_loss, has_aux=True)(
            tree, site, problem, batch_B, settings, chunks
        )
        updates, moments = tx.update(grads, moments, tree)
        return (optax.apply_updates(tree, updates), moments), terms

    state = jax.tree.map(
        lambda v, s: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=s), shapes, where
    )
    return Program(jax.jit(start, out_shardings=where), step, state)


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
    problem = Problem(
        dataclasses.replace(observed, activations={}),
        context,
        x_NxTxD if learn_basis else features(basis.weights, x_NxTxD),
        subsets_Nxd,
        jnp.asarray(rows),
        jnp.asarray(mask),
        jl_sketch(subsets_Nxd, design.num_subsets, q, sketch_key),
    )
    problem = meshes.place(problem, shardings(problem, mesh))
    site, basis = meshes.everywhere((site, basis), mesh)
    chunks = num_chunks(
        design.num_subsets // mesh.shape[meshes.SUBSET], rows.shape[1], observed, basis.rank,
        settings,
    )  # fmt: skip
    start, step, _ = program(
        design.num_subsets, site.width, basis, settings, chunks, mesh, start_KxRxO
    )
    state = start(basis.weights)
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
