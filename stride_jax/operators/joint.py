"""Joint training of the basis and all K operators, with the published losses (docs/method.md §4).

Three choices keep the members' effect above the noise: fidelity over all members at every step,
from cached features; one stability batch per step for all subsets; an optimiser without randomness
per subset.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from stride_jax.design import Design, members
from stride_jax.observed import Source
from stride_jax.operators.basis import Basis, features, standardise
from stride_jax.operators.joint_losses import (
    JointSettings,
    Problem,
    jl_sketch,
    num_chunks,
    total_loss,
)
from stride_jax.operators.sites import Site
from stride_jax.operators.steering import Operators
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.keep import Keep
from stride_jax.runtime.precision import precise
from stride_jax.runtime.programs import Program, shape, shapes_everywhere, shapes_like


def shardings(problem: Problem, mesh: Mesh) -> Problem:
    """Shardings of a problem: members by subset over `subset`, the rest on every device."""
    split, whole = meshes.over_subsets(mesh), meshes.replicated(mesh)
    everywhere = jax.tree.map(lambda _: whole, problem)
    return dataclasses.replace(everywhere, rows_KxS=split, mask_KxS=split)


class Training(NamedTuple):
    """Compiled training.

    Attributes:
      start: `(basis weights) -> state`.
      step: `(state, problem, site, key) -> (state, terms)`; the state is donated.
      state: shapes and shardings of the state.
    """

    start: Any
    step: Any
    state: Any


def training(
    num_subsets: int, width: int, basis: Basis, settings: JointSettings, chunks: int, mesh: Mesh
) -> Training:
    """Adam on `total_loss`; matrices and their moments split over `subset`.

    Args:
      num_subsets: K.
      width: O of the site.
      basis: initial psi.
      settings: losses and optimiser.
      chunks: number of chunks of subsets, from `num_chunks`.
      mesh: devices.
    """
    size = num_subsets, basis.rank, width
    tx = optax.partition(
        {
            "a": optax.adam(settings.learning_rate),
            "basis": optax.adam(settings.basis_learning_rate or 1.0),
        },
        lambda tree: {name: name for name in tree},
    )

    def start(weights: dict[str, jax.Array]) -> tuple[Any, Any]:
        tree: dict[str, Any] = {"a": jnp.zeros(size, jnp.float32)}
        if settings.basis_learning_rate > 0:
            tree["basis"] = weights
        return tree, tx.init(tree)

    split, whole = meshes.over_subsets(mesh), meshes.replicated(mesh)
    shapes = jax.eval_shape(start, basis.weights)
    where = jax.tree.map(lambda v: split if v.shape == size else whole, shapes)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(where, whole))
    @precise
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

    return Training(jax.jit(start, out_shardings=where), step, shapes_like(shapes, where))


def program(
    design: Design,
    site: Site,
    basis: Basis,
    source: Source,
    settings: JointSettings,
    execution: Execution,
) -> Program:
    """The compiled step of training on all the source's examples, or on their shapes.

    The largest of K random subsets has about `mean + 4 sqrt(mean)` members; training itself counts
    them.
    """
    mesh, k, count = execution.mesh_for(design.num_subsets), design.num_subsets, source.num_rows
    mean = count * design.degree / k
    largest = min(count, math.ceil(mean + 4 * mean**0.5))

    def problem_of(data: Any, basis: Basis, subsets_Nxd: Any, *rest: Any) -> Problem:
        *tables, key = rest
        own = source._replace(data=data)
        return _problem(design, subsets_Nxd, tuple(tables), basis, own, (settings, key))

    problem = jax.eval_shape(
        problem_of, shapes_like(source.data), shapes_like(basis),
        shape((count, design.degree), jnp.int32), shape((k, largest), jnp.int32),
        shape((k, largest)), jax.eval_shape(lambda: jax.random.key(0)),
    )  # fmt: skip
    problem = shapes_like(problem, shardings(problem, mesh))
    own = k // mesh.shape[meshes.SUBSET]
    chunks = num_chunks(
        own, largest, problem, basis.rank, settings.stability_batch, execution.memory
    )
    compiled = training(k, site.width, basis, settings, chunks, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    site = shapes_everywhere(site, meshes.replicated(mesh))
    return Program(compiled.step, (compiled.state, problem, site, key), {}, settings.steps)


def _problem(
    design: Design,
    subsets_Nxd: jax.Array,
    tables: tuple[Any, Any],
    basis: Basis,
    source: Source,
    drawn: tuple[JointSettings, jax.Array],
) -> Problem:
    """What the losses read; `tables` come from `design.members`, `drawn` gives the sketch."""
    settings, key = drawn
    observed, context = source.data
    x_NxTxD = standardise(basis, observed.activations)
    return Problem(
        source.params,
        observed.without_taps(),
        context,
        x_NxTxD if settings.basis_learning_rate > 0 else features(basis.weights, x_NxTxD),
        subsets_Nxd,
        jnp.asarray(tables[0]),
        jnp.asarray(tables[1]),
        jl_sketch(
            subsets_Nxd, design.num_subsets, settings.sketch if settings.linearity else 1, key
        ),
    )


def train_jointly(
    design: Design,
    subsets_Nxd: jax.Array,
    site: Site,
    basis: Basis,
    source: Source,
    settings: JointSettings,
    execution: Execution = Execution(),
) -> tuple[Operators, dict[str, np.ndarray]]:
    """Train K operators on cached features of the frozen model.

    `Σ_k [w_f fidelity_k + w_s stability_k] + w_l linearity`, minimised by Adam.

    Args:
      design: K.
      subsets_Nxd: membership of the training examples.
      site: where operators act.
      basis: initial psi.
      source: the observed training examples (`observed_source`).
      settings: losses and optimiser.
      execution: devices, over whose `subset` axis the K axis is split; where parameters, optimiser
        and losses are saved between steps.

    Returns:
      The operators, and the losses by term, each `[steps]`.

    Raises:
      ValueError: K not divisible by the mesh axis; a loss that is not finite (names the step).
    """
    mesh, k = execution.mesh_for(design.num_subsets), design.num_subsets
    meshes.check_divisible("num_subsets", k, mesh, meshes.SUBSET)
    draw_key, sketch_key = jax.random.split(jax.random.key(settings.seed))
    tables = members(subsets_Nxd, k)
    problem = _problem(design, subsets_Nxd, tables, basis, source, (settings, sketch_key))
    problem = meshes.place(problem, shardings(problem, mesh))
    site, basis = meshes.everywhere((site, basis), mesh)
    own, largest = k // mesh.shape[meshes.SUBSET], tables[0].shape[1]
    chunks = num_chunks(
        own, largest, problem, basis.rank, settings.stability_batch, execution.memory
    )
    start, step, _ = training(k, site.width, basis, settings, chunks, mesh)
    step = functools.partial(step, problem=problem, site=site)
    keys = functools.partial(jax.random.fold_in, draw_key)
    state, log = _minimise(start(basis.weights), step, keys, settings, execution, site.name)
    for name, values in log.items():
        if not np.isfinite(values).all():
            raise ValueError(
                f"the {name} loss is not finite from step {int(np.argmin(np.isfinite(values)))} "
                f"on; lower learning_rate={settings.learning_rate}"
            )
    tree = state[0]
    basis = dataclasses.replace(basis, weights=tree.get("basis", basis.weights))
    return Operators(basis, tree["a"], jnp.ones(k, jnp.float32)), log


def _minimise(
    state: Any, step: Any, keys: Any, settings: JointSettings, execution: Execution, loop: str
) -> tuple[Any, dict[str, np.ndarray]]:
    """All steps, resumed from the last saved one; the losses by term."""
    names = ("fidelity", "stability", *(("linearity",) if settings.linearity else ()))
    log = {name: np.zeros(settings.steps, np.float32) for name in names}
    keep: Keep = execution.keep
    begin, (state, log) = keep.resume(loop, (state, log))
    waiting: list[tuple[int, dict[str, jax.Array]]] = []

    def complete() -> tuple[Any, dict[str, np.ndarray]]:
        while waiting:
            i, terms = waiting.pop()
            for name, value in terms.items():
                log[name][i] = float(value)
        return state, log

    for i in execution.progress(range(begin, settings.steps), desc="operators"):
        state, terms = step(state, key=keys(i))
        waiting.append((i, terms))
        keep.step(loop, i + 1, complete, terms)
    return complete()
