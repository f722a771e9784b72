"""From a frozen model and its training set to operators (docs/method.md §3 – 5)."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax import operators as ops
from stride_jax.design import Membership
from stride_jax.examples import Examples
from stride_jax.frozen import Chunk, FrozenModel, evenly_spaced, on_one_device
from stride_jax.groups import Groups, sizes
from stride_jax.index import Index
from stride_jax.inputs import read_rows
from stride_jax.observed import (
    Context,
    Observed,
    activations_of,
    as_training,
    counted_tokens,
)
from stride_jax.operators import content as contents
from stride_jax.operators import kept as stores
from stride_jax.operators import passes
from stride_jax.operators.closed_form import curvature_shapes, solve_program
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.keep import nowhere
from stride_jax.runtime.memory import memory_bytes
from stride_jax.runtime.precision import precise
from stride_jax.runtime.programs import Program
from stride_jax.taps import Activations, Params, only

Bases = dict[str, ops.Basis]
Operators = dict[str, ops.Operators]
Moments = dict[str, ops.Moments]
Members = jax.Array | np.ndarray | Membership
"""Membership `[N, d]`, held or drawn as it is asked for."""

# Examples per cluster in the sample that centroids are fitted on.
_PER_CLUSTER = 8
# Bytes of the store of kept examples, where the settings leave them out.
_KEPT = 2**22


class Fixed(NamedTuple):
    """What is fitted on a sample, and stays as it is when examples are appended.

    Attributes:
      bases: `{site: basis of its features}`.
      curvatures: `{site: its form, with the eigenvectors that it needs}`.
      content: what assigns examples to clusters; None where a hash does.
    """

    bases: Bases
    curvatures: dict[str, ops.Curvature]
    content: ops.Content | None


@dataclasses.dataclass(frozen=True)
class Passed:
    """What a pass over examples makes of them.

    Attributes:
      moments: `{site: sums}`.
      residual_N: `||e_i||`, doubted as the closed form does.
      norm_N: `||g_i||` at the first site.
      cluster_N: the subset of each, where content chose it; else None.
      kept: `{site: the heaviest tokens}`.
    """

    moments: Moments
    residual_N: np.ndarray
    norm_N: np.ndarray
    cluster_N: np.ndarray | None
    kept: dict[str, ops.Kept]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Operators and all that an index stores beside them.

    Attributes:
      operators: by site.
      passed: what the pass made; without moments where operators were trained.
      content: what assigned examples to clusters; None where a hash did.
    """

    operators: Operators
    passed: Passed
    content: ops.Content | None


def fit_operators(
    frozen: FrozenModel,
    examples: Examples,
    subsets_Nxd: Members | None,
    execution: Execution = Execution(),
    labels: ops.Labels | None = None,
) -> Fitted:
    """Fit every site's basis, then its K operators, in closed form or by training.

    Args:
      frozen: the model.
      examples: the training set.
      subsets_Nxd: membership; None where content decides it.
      execution: devices, bars, memory, checkpoints.
      labels: named groups, summed in the same pass; of the closed form alone.
    """
    if frozen.settings.fit == "joint":
        assert subsets_Nxd is not None, "trained operators have a hash design"
        return _train(frozen, examples, jnp.asarray(subsets_Nxd), execution)
    few = evenly_spaced(examples, frozen.settings.basis.sample)
    alone, content = on_one_device(frozen.params, execution), None
    if subsets_Nxd is None:
        sample = list(frozen.chunks(few, alone, "basis"))
        bases = _fit_bases(frozen, few, [one.observed.activations for one in sample])
        content = _fit_content(frozen, examples, bases, sample, execution)
        del sample
    else:
        read = only(frozen.tapped, frozen.settings.every_tap())
        bases = _fit_bases(frozen, few, [activations_of(read, frozen.params, few, alone)])
    fixed = Fixed(bases, _curvatures(frozen, examples, bases, execution), content)
    passed = pass_over(frozen, examples, subsets_Nxd, fixed, execution, labels)
    return Fitted(solve_operators(frozen, bases, passed.moments), passed, content)


def made(
    fitted: Fitted,
    examples: Examples,
    frozen: FrozenModel,
    model: str,
    named: tuple[np.ndarray, ops.Labels] | None = None,
) -> Index:
    """The index of what was fitted, without moments.

    Args:
      fitted: from `fit_operators`.
      examples, frozen: the training set and the model.
      model: fingerprint of its parameters.
      named: names of groups, and the group of each example, that `fit_operators` was told.
    """
    own, settings = fitted.passed, frozen.settings
    groups = None
    if named is not None:
        solved = group_operators(frozen, bases_of(fitted.operators), own.moments)
        groups = Groups(named[0], sizes(named[1]), solved)
    return Index(
        fitted.operators, examples.ids, own.residual_N, settings, own.norm_N, own.cluster_N,
        fishers(own.moments, frozen), own.kept, examples.keys, fitted.content, None, model,
        groups=groups, objective=frozen.tapped.objective.name,
    )  # fmt: skip


def bases_of(operators: Operators) -> Bases:
    """The bases that operators were fitted in."""
    return {name: own.basis for name, own in operators.items()}


def fishers(moments: Moments, frozen: FrozenModel) -> dict[str, ops.Fisher]:
    """Every site's curvature, in the precision it is kept in."""
    invariant = frozen.tapped.objective.invariant
    return {
        name: ops.fisher_of(sums, frozen.settings.precision, invariant=invariant)
        for name, sums in moments.items()
    }


def _train(
    frozen: FrozenModel, examples: Examples, subsets_Nxd: jax.Array, execution: Execution
) -> Fitted:
    settings = frozen.settings
    _refuse_unheld(frozen, examples)
    chunk = frozen.observe(examples, execution)
    observed = chunk.observed
    bases = settings.by_site(
        lambda taps: ops.fit_basis({n: observed.activations[n] for n in taps}, settings.basis)
    )
    operators = {}
    for name, site in frozen.sites.items():
        source = frozen.observed_source(name, chunk)
        operators[name], _ = ops.train_jointly(
            settings.design, subsets_Nxd, site, bases[name], source, settings.joint, execution
        )
    residual_N = np.asarray(as_training(observed, settings.closed_form.doubt).residuals())
    return Fitted(operators, Passed({}, residual_N, residual_N, None, {}), None)


def _refuse_unheld(frozen: FrozenModel, examples: Examples) -> None:
    """Refuse joint training of more outputs than memory has room for, before the model runs.

    Raises:
      ValueError: with the bytes that they take, and the remedy.
    """
    one = read_rows(examples.inputs, slice(0, 1))
    leaves = jax.tree.leaves(jax.eval_shape(frozen.tapped.forward, frozen.params, one))
    # Batches on the host, and the array that they are joined to.
    needed, room = 2 * 4 * len(examples) * sum(leaf.size for leaf in leaves), memory_bytes()
    if room is not None and needed > room:
        raise ValueError(
            f"fit='joint' holds the model's outputs for all {len(examples)} examples, "
            f"{needed / 2**30:.1f} GiB, and this process may have {room / 2**30:.1f} GiB: use "
            f"fit='closed_form', which streams, or at most {len(examples) * room // needed} "
            "examples"
        )


def _fit_bases(frozen: FrozenModel, few: Examples, sample: list[Activations]) -> Bases:
    """The bases of all sites, from the tokens of a sample that count."""
    settings = frozen.settings
    counted = counted_tokens(frozen.tapped.objective, few)
    whole = {n: np.concatenate([np.asarray(v[n]) for v in sample]) for n in settings.every_tap()}
    own = {n: v[counted][:, None] for n, v in whole.items()}
    return settings.by_site(lambda taps: ops.fit_basis({n: own[n] for n in taps}, settings.basis))


def _fit_content(
    frozen: FrozenModel,
    examples: Examples,
    bases: Bases,
    sample: list[Chunk],
    execution: Execution,
) -> ops.Content:
    """Clusters of the first site's gradients, from a sample of the training set."""
    settings = frozen.settings
    name, site = next(iter(frozen.sites.items()))
    basis = bases[name]

    def pieces(chunk: Chunk) -> tuple[jax.Array, jax.Array]:
        observed = as_training(chunk.observed, settings.closed_form.doubt)
        return _pieces(site, frozen.params, basis, observed, chunk.contexts[name])

    norms = np.concatenate([np.ravel(contents.token_norms(*pieces(one))) for one in sample])
    shape = examples.token_shape
    places = {n: store_of(frozen, own, n, shape).places for n, own in bases.items()}
    share = places[name] / math.prod(shape)
    fresh = contents.unfitted(norms, share, site.width, settings.design.seed)
    # Where all is kept, every score is exact, and clusters say nothing: K examples stand for them.
    all_kept = min(places.values()) >= math.prod(shape)
    wanted = min(len(examples), (1 if all_kept else _PER_CLUSTER) * settings.design.num_subsets)
    chunks: Any = sample
    if sum(len(one.observed) for one in sample) < wanted:
        rows = np.unique(np.linspace(0, len(examples) - 1, wanted).astype(int))
        execution = dataclasses.replace(execution, keep=nowhere)
        chunks = frozen.chunks(examples.take(rows), execution, "clusters")
    sketched = [contents.sketches(fresh, *pieces(one)) for one in chunks]
    return contents.fit_content(fresh, sketched, settings.design, refined=not all_kept)


@jax.jit
@precise
def _pieces(
    site: ops.Site, params: Params, basis: ops.Basis, observed: Observed, context: Context
) -> tuple[jax.Array, jax.Array]:
    """Features and weighted errors of observed examples."""
    errors = site.errors(params, observed, context)
    return ops.example_features(basis, observed.activations), errors


def store_of(frozen: FrozenModel, basis: ops.Basis, site: str, shape: tuple[int, ...]) -> ops.Store:
    """The store of kept tokens of one site, as large as the settings allow.

    Args:
      frozen: the model.
      basis: features.
      site: its name.
      shape: of the labels, `(N,)` or `(N, T)`.
    """
    examples, tokens = shape[0], math.prod(shape)
    settings, width = frozen.settings, frozen.sites[site].width
    size = settings.kept
    if size is None:
        size = _KEPT if tokens == examples else 0
    size //= len(frozen.sites)
    places = stores.capacity(size, basis.rank, width, settings.precision, tokens)
    return ops.Store(places, settings.precision)


def curvatures_of(frozen: FrozenModel, moments: Moments) -> dict[str, ops.Curvature]:
    """Forms of curvature in which more examples can be added to moments."""
    rows = frozen.settings.closed_form.rows
    return {
        name: ops.Curvature(frozen.forms[name], own.rotation, own.strongest_M, rows)
        for name, own in moments.items()
    }


def _curvatures(
    frozen: FrozenModel, examples: Examples, bases: Bases, execution: Execution
) -> dict[str, ops.Curvature]:
    """Forms of curvature; eigenvectors that they need before the pass are of the same sample."""
    made = {name: ops.Curvature(form) for name, form in frozen.forms.items()}
    wanting = [name for name, form in frozen.forms.items() if form in ("eigen", "coupled")]
    if not wanting:
        return made
    few = evenly_spaced(examples, frozen.settings.basis.sample)
    execution = dataclasses.replace(on_one_device(frozen.params, execution), keep=nowhere)
    source, settings = frozen.source(few, training=True), frozen.settings.closed_form
    for name in wanting:
        factors = ops.accumulate(
            frozen.settings.design, None, frozen.sites[name], bases[name], source,
            ops.Curvature("kronecker"), execution,
        )  # fmt: skip
        made[name] = ops.rotated(
            frozen.forms[name], frozen.sites[name], factors.moments, settings.pairs, settings.rows
        )
    return made


def pass_over(
    frozen: FrozenModel,
    examples: Examples,
    subsets_Nxd: Members | None,
    fixed: Fixed,
    execution: Execution,
    labels: ops.Labels | None = None,
) -> Passed:
    """One pass over the examples for each site; content is asked at the first one."""
    source, design = frozen.source(examples, training=True), frozen.settings.design
    members: Any = fixed.content if subsets_Nxd is None else subsets_Nxd
    made: dict[str, ops.Pass] = {}
    for name, curvature in fixed.curvatures.items():
        made[name] = ops.accumulate(
            design, members, frozen.sites[name], fixed.bases[name], source,
            curvature, execution,
            store_of(frozen, fixed.bases[name], name, examples.token_shape), labels,
        )  # fmt: skip
        if subsets_Nxd is None and members is fixed.content:
            members = made[name].cluster_N[:, None]
    first = next(iter(made.values()))
    return Passed(
        {name: own.moments for name, own in made.items()},
        first.residual_N,
        first.norm_N,
        first.cluster_N if subsets_Nxd is None else None,
        {name: own.kept for name, own in made.items() if own.kept is not None},
    )


def group_operators(frozen: FrozenModel, bases: Bases, moments: Moments) -> Operators:
    """One operator per named group at every site."""
    return solve_operators(frozen, bases, {n: ops.of_groups(v) for n, v in moments.items()})


def solve_operators(frozen: FrozenModel, bases: Bases, moments: Moments) -> Operators:
    """Operators from moments, in the precision they are kept in."""
    settings = frozen.settings.closed_form
    made = {
        name: ops.closed_form(
            bases[name], sums, settings, frozen.signs_C if name == "logit" else None
        )
        for name, sums in moments.items()
    }  # fmt: skip
    if frozen.settings.precision == "float32":
        return made
    kind = jnp.dtype(frozen.settings.precision)

    def halved(own: ops.Operators) -> ops.Operators:
        weights = {name: v.astype(kind) for name, v in own.basis.weights.items()}
        basis = dataclasses.replace(own.basis, weights=weights)
        return dataclasses.replace(own, basis=basis, a_KxRxO=own.a_KxRxO.astype(kind))

    return {name: halved(own) for name, own in made.items()}


def fit_programs(
    frozen: FrozenModel,
    name: str,
    basis: ops.Basis,
    one: Examples,
    num_train: int,
    execution: Execution,
) -> dict[str, Program]:
    """The compiled steps that fit one site in closed form, from shapes alone.

    Args:
      frozen: the model; its parameters may be shapes.
      name: of the site.
      basis: its shapes, from `operators.basis_shapes`.
      one: one example.
      num_train: N.
      execution: devices, memory.

    Returns:
      `{"pass": of a batch of the training set, "solve": of all K operators}`.
    """
    site, rank, form = frozen.sites[name], basis.rank, frozen.forms[name]
    design, settings = frozen.settings.design, frozen.settings.closed_form
    content = None
    if design.kind == "clusters" and name == next(iter(frozen.sites)):
        content = contents.shapes(design.num_subsets, rank, site.width)
    one_pass = passes.program(
        design, site, basis, frozen.source(one, training=True),
        curvature_shapes(form, rank, site.width, settings), num_train, execution, content,
        store_of(frozen, basis, name, (num_train, *one.token_shape[1:])),
    )  # fmt: skip
    mesh = execution.mesh_for(design.num_subsets)
    return {
        "pass": one_pass,
        "solve": solve_program(design.num_subsets, rank, site.width, form, settings, mesh),
    }
