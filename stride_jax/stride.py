"""STRIDE from end to end, in memory: a model and arrays in, an attribution out.

`fit` makes the index (basis and operators) from the training set once; `attribute` reads queries
against it. The pipeline calls the same steps one by one, with files in between.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from stride_jax import design as designs
from stride_jax import operators as ops
from stride_jax import taps
from stride_jax.attribution import Attribution
from stride_jax.data.examples import content_ids
from stride_jax.index import Index, StrideSettings, penalty_weights
from stride_jax.measure import measure
from stride_jax.recovery import Recovery, init, solve
from stride_jax.runtime.files import plain
from stride_jax.runtime.progress import Progress, silent


@dataclasses.dataclass(frozen=True)
class Seen:
    """A frozen model's view of a set of examples, ready for any site.

    Attributes:
      observed: taps, logits and labels.
      sites: `{site: (where operators act, what it needs of these examples)}`.
    """

    observed: taps.Observed
    sites: dict[str, tuple[ops.Site, ops.Context]]


def choose_taps(
    tapped: taps.TappedModel,
    params: Any,
    inputs: np.ndarray,
    labels: np.ndarray,
    settings: StrideSettings,
    *,
    sample: int = 1024,
    mesh: Mesh | None = None,
) -> StrideSettings:
    """Settings with their taps named: chosen from evenly spaced training examples if none are.

    Raises:
      ValueError: a tap or site that the model does not have.
    """
    rows = np.unique(np.linspace(0, len(inputs) - 1, min(sample, len(inputs))).astype(int))
    few = np.asarray(inputs)[rows]
    names = list(jax.eval_shape(tapped.forward, params, few[:1])[1])
    taps.select(
        dict.fromkeys(names), [*settings.taps, *(s for s in settings.sites if s != "logit")]
    )
    if settings.taps:
        return settings
    if tapped.suffix is None:
        return dataclasses.replace(settings, taps=tuple(sorted(names)))
    seen = taps.observe(tapped, params, few, np.asarray(labels)[rows], mesh=mesh)
    chosen = ops.choose_tap(ops.tap_energies(tapped, params, seen, few))
    return dataclasses.replace(settings, taps=(chosen,))


def look(
    tapped: taps.TappedModel,
    params: Any,
    inputs: np.ndarray,
    labels: np.ndarray,
    settings: StrideSettings,
    *,
    weights: np.ndarray | None = None,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> Seen:
    """One forward pass over examples, keeping what the named taps and sites need."""
    residual = [site for site in settings.sites if site != "logit"]
    names = tuple(dict.fromkeys([*settings.taps, *residual]))
    observed = taps.observe(
        taps.only(tapped, names), params, inputs, labels, weights, mesh=mesh, progress=progress
    )
    sites = {}
    for name in settings.sites:
        site = (
            ops.logit_site(observed)
            if name == "logit"
            else ops.residual_site(tapped, params, observed, np.asarray(inputs[:1]), name)
        )
        sites[name] = site, ops.context(site, observed, inputs)
    return Seen(observed, sites)


def fit(
    tapped: taps.TappedModel,
    params: Any,
    inputs: np.ndarray,
    labels: np.ndarray,
    settings: StrideSettings = StrideSettings(),
    *,
    ids: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    keep_moments: bool = False,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> Index:
    """Learn K steering operators for a frozen model and its training set (method §2, §4).

    Args:
      tapped: the model, from one of the constructors in `taps`.
      params: its parameters.
      inputs: `[N, ...]` training inputs.
      labels: `[N]` classes, or `[N, T]` next tokens.
      settings: the method's settings.
      ids: `[N]` example names; hashes of the content by default.
      weights: token weights omega like `labels`; ones by default.
      keep_moments: keep the closed form's sums, for `append` and `direct`.
      mesh: devices; all of this process by default.
      progress: wraps long loops.

    Returns:
      The index.
    """
    ids = content_ids(np.asarray(inputs), np.asarray(labels)) if ids is None else np.asarray(ids)
    subsets = designs.membership(settings.design, ids)
    settings = choose_taps(tapped, params, inputs, labels, settings, mesh=mesh)
    seen = look(
        tapped, params, inputs, labels, settings, weights=weights, mesh=mesh, progress=progress
    )
    operators, moments = make_operators(settings, subsets, seen, mesh=mesh, progress=progress)
    residual_N = residuals(settings, seen)
    return Index(operators, ids, residual_N, settings, moments if keep_moments else None)


def residuals(settings: StrideSettings, seen: Seen) -> np.ndarray:
    """`||e_i||` of training examples, doubted as the closed form does, `[N]`."""
    return ops.residual_sizes(ops.doubted(seen.observed, settings.closed_form))


def recover(
    settings: StrideSettings,
    train_ids: np.ndarray,
    residual_N: np.ndarray,
    y_QxK: np.ndarray,
    *,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> Recovery:
    """Influences and their certificates from measurements, by the Lasso of the settings."""
    subsets = designs.membership(settings.design, train_ids)
    weights_N = penalty_weights(residual_N, settings)
    state = init(settings.design, subsets, penalty_N=weights_N, mesh=mesh)
    return solve(state, y_QxK, settings.lasso, progress=progress)


def make_operators(
    settings: StrideSettings,
    subsets_Nxd: jax.Array,
    seen: Seen,
    *,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> tuple[dict[str, ops.Operators], dict[str, ops.Moments]]:
    """Fit the basis, then every site's K operators, in closed form or by training.

    Returns:
      Operators and moments by site; joint training has no moments.
    """
    observed = seen.observed
    basis = ops.fit_basis({n: observed.activations[n] for n in settings.taps}, settings.basis)
    operators, moments = {}, {}
    for name, (site, context) in seen.sites.items():
        if settings.fit == "joint":
            operators[name], _ = ops.train_jointly(
                settings.design, subsets_Nxd, site, basis, observed, context, settings.joint,
                mesh=mesh, progress=progress,
            )  # fmt: skip
            continue
        moments[name] = _accumulate(settings, subsets_Nxd, seen, name, basis, mesh, progress)
        operators[name] = ops.closed_form(basis, moments[name], settings.closed_form)
    return operators, moments


def _accumulate(
    settings: StrideSettings,
    subsets_Nxd: jax.Array,
    seen: Seen,
    name: str,
    basis: ops.Basis,
    mesh: Mesh | None,
    progress: Progress,
    rotation: tuple[jax.Array, jax.Array] | None = None,
) -> ops.Moments:
    site, context = seen.sites[name]
    how = settings.closed_form
    observed = ops.doubted(seen.observed, how)
    return ops.accumulate(
        settings.design.num_subsets, subsets_Nxd, site, basis, observed, context,
        form=how.form(basis.rank, site.width, site.tap is not None), rotation=rotation,
        batch_size=how.batch_size, mesh=mesh, progress=progress,
    )  # fmt: skip


def append(
    tapped: taps.TappedModel,
    params: Any,
    index: Index,
    inputs: np.ndarray,
    labels: np.ndarray,
    *,
    ids: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> Index:
    """The index of the old training examples and these, without a pass over the old ones.

    Sums of the new examples are added to the old sums; the basis stays as it was fitted.

    Args:
      tapped, params: the model the index was fitted on.
      index: from `fit` with `keep_moments`, or from `append`.
      inputs, labels, ids, weights: the new examples, as in `fit`.
      mesh, progress: as in `fit`.

    Raises:
      ValueError: the index kept no moments, or an id is in it already.
    """
    if not index.moments:
        raise ValueError(
            "this index kept no moments, so nothing can be added: fit it in closed form with "
            "keep_moments=True"
        )
    ids = content_ids(np.asarray(inputs), np.asarray(labels)) if ids is None else np.asarray(ids)
    everyone = np.concatenate([index.train_ids, ids])
    # The design of all examples: those of the old ones come out as they were.
    subsets = designs.membership(index.settings.design, everyone)[len(index.train_ids) :]
    seen = look(
        tapped, params, inputs, labels, index.settings,
        weights=weights, mesh=mesh, progress=progress,
    )  # fmt: skip
    operators, moments = {}, {}
    for name, old in index.moments.items():
        basis = index.operators[name].basis
        new = _accumulate(index.settings, subsets, seen, name, basis, mesh, progress, old.rotation)
        moments[name] = ops.add(old, new)
        operators[name] = ops.closed_form(basis, moments[name], index.settings.closed_form)
    residual_N = np.concatenate([index.residual_N, residuals(index.settings, seen)])
    return Index(operators, everyone, residual_N, index.settings, moments)


def measure_all(
    settings: StrideSettings,
    operators: dict[str, ops.Operators],
    seen: Seen,
    *,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """Measurements of queries, summed over sites, `[Q, K]` nats."""
    parts = [
        measure(
            site, operators[name], seen.observed, context, settings.measure,
            mesh=mesh, progress=progress,
        )
        for name, (site, context) in seen.sites.items()
    ]  # fmt: skip
    return np.sum(parts, axis=0)


def attribute(
    tapped: taps.TappedModel,
    params: Any,
    index: Index,
    inputs: np.ndarray,
    labels: np.ndarray,
    *,
    ids: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> Attribution:
    """Which training examples made the model behave like this on these queries.

    Args:
      tapped, params: the model the index was fitted on.
      index: from `fit`.
      inputs, labels, weights, ids: the queries, as in `fit`.
      mesh, progress: as in `fit`.

    Returns:
      `[query, train]` scores in nats; positive = proponent.
    """
    ids = content_ids(np.asarray(inputs), np.asarray(labels)) if ids is None else np.asarray(ids)
    settings = index.settings
    seen = look(
        tapped, params, inputs, labels, settings, weights=weights, mesh=mesh, progress=progress
    )
    y_QxK = measure_all(settings, index.operators, seen, mesh=mesh, progress=progress)
    found = recover(
        settings, index.train_ids, index.residual_N, y_QxK, mesh=mesh, progress=progress
    )
    return Attribution(ids, index.train_ids, found.sparse, plain(settings))


def direct(
    tapped: taps.TappedModel,
    params: Any,
    index: Index,
    train: tuple[np.ndarray, np.ndarray],
    queries: tuple[np.ndarray, np.ndarray],
    *,
    query_ids: np.ndarray | None = None,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> Attribution:
    """The scores that the K measurements stand for, example by example, without the sketch.

    `w_i = Σ_sites <g_x, (F + gamma I)^{-1} g_i> / s̄`, so that `M w` equals the measurements to
    first order. A yardstick for small N: it reads the training set again for every query batch.

    Args:
      tapped, params: the model the index was fitted on.
      index: from `fit` with `keep_moments`.
      train: inputs and labels of the examples the index was fitted on, in order.
      queries: inputs and labels.
      query_ids: names of the queries; hashes of their content by default.
      mesh, progress: as in `fit`.

    Raises:
      ValueError: the index kept no moments, or `train` is of another length.
    """
    if not index.moments or len(train[0]) != len(index.train_ids):
        raise ValueError(
            f"direct scores need the index' moments (fit with keep_moments=True) and its "
            f"{len(index.train_ids)} training examples; got {len(train[0])}"
        )
    ids = content_ids(*map(np.asarray, queries)) if query_ids is None else np.asarray(query_ids)
    view = functools.partial(
        look, tapped, params, settings=index.settings, mesh=mesh, progress=progress
    )
    seen_train, seen_query = view(*train), view(*queries)
    train_observed = ops.doubted(seen_train.observed, index.settings.closed_form)
    total = np.zeros((len(ids), len(index.train_ids)), np.float32)
    for name, (site, context) in seen_query.sites.items():
        total += ops.direct_scores(
            index.moments[name],
            index.operators[name].basis,
            site,
            (train_observed, seen_train.sites[name][1]),
            (seen_query.observed, context),
            index.settings.closed_form,
        )
    return Attribution(ids, index.train_ids, total, plain(index.settings))


def ensemble(attributions: Sequence[Attribution]) -> Attribution:
    """The mean attribution of several models of the same data: their noise averages out.

    Give each model's index a design seed of its own, so that the errors of recovery do so too.

    Args:
      attributions: of the same queries and training examples, in the same order.

    Raises:
      ValueError: none given, or ids that differ.
    """
    if not attributions:
        raise ValueError("an ensemble needs at least one attribution")
    first = attributions[0]
    for i, other in enumerate(attributions):
        for axis in ("query_ids", "train_ids"):
            if not np.array_equal(getattr(first, axis), getattr(other, axis)):
                raise ValueError(f"attributions 0 and {i} differ in their {axis}")
    mean = np.asarray(np.mean([a.scores_QxN for a in attributions], axis=0), np.float32)
    settings = {"ensemble": [dict(a.settings) for a in attributions]}
    return Attribution(first.query_ids, first.train_ids, mean, settings)
