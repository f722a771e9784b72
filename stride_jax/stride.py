"""STRIDE from end to end, in memory: a model and arrays in, an attribution out.

`fit` makes the index (basis and operators) from the training set once; `attribute` reads queries
against it. The pipeline calls the same steps one by one, with files in between.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.sharding import Mesh

from stride_jax import design as designs
from stride_jax import operators as ops
from stride_jax import taps
from stride_jax.attribution import Attribution
from stride_jax.corpus import Corpus, choose_taps
from stride_jax.examples import content_ids
from stride_jax.index import Index, StrideSettings, penalty_weights
from stride_jax.measure import measure
from stride_jax.recovery import LassoState, Recovery, init, solve
from stride_jax.runtime.files import plain
from stride_jax.runtime.keep import Keep, nowhere
from stride_jax.runtime.progress import Progress, silent


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
    corpus = Corpus(tapped, params, inputs, labels, weights, mesh, progress)
    settings = choose_taps(corpus, settings)
    operators, moments, residual_N = make_operators(settings, subsets, corpus)
    return Index(operators, ids, residual_N, settings, moments if keep_moments else None)


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
    state = lasso_state(settings, train_ids, residual_N, mesh=mesh)
    return solve(state, y_QxK, settings.lasso, progress=progress)


def lasso_state(
    settings: StrideSettings,
    train_ids: np.ndarray,
    residual_N: np.ndarray,
    *,
    mesh: Mesh | None = None,
) -> LassoState:
    """The design with its penalty weights, ready for any measurements."""
    subsets = designs.membership(settings.design, train_ids)
    weights_N = penalty_weights(residual_N, settings)
    return init(settings.design, subsets, penalty_N=weights_N, mesh=mesh)


def make_operators(
    settings: StrideSettings, subsets_Nxd: jax.Array, corpus: Corpus, *, keep: Keep = nowhere
) -> tuple[dict[str, ops.Operators], dict[str, ops.Moments], np.ndarray]:
    """Fit the basis, then every site's K operators, in closed form or by training.

    Args:
      settings: the method's, taps named.
      subsets_Nxd: membership.
      corpus: the training examples.
      keep: where long loops keep their state.

    Returns:
      Operators and moments by site (joint training has no moments), and `||e_i||` of the
      examples, doubted as the closed form does, `[N]`.
    """
    if settings.fit == "joint":
        return _train(settings, subsets_Nxd, corpus, keep)
    basis, signs_C = _basis(settings, corpus), corpus.signs(settings)
    rotations = _rotations(settings, corpus, basis, signs_C)
    moments, residual_N = _pass(settings, subsets_Nxd, corpus, basis, signs_C, rotations, keep)
    operators = {
        name: ops.closed_form(
            basis, found, settings.closed_form, signs_C if name == "logit" else None
        )
        for name, found in moments.items()
    }
    return operators, moments, residual_N


def _train(
    settings: StrideSettings, subsets_Nxd: jax.Array, corpus: Corpus, keep: Keep
) -> tuple[dict[str, ops.Operators], dict[str, ops.Moments], np.ndarray]:
    seen = corpus.look(settings)
    observed = seen.observed
    basis = ops.fit_basis({n: observed.activations[n] for n in settings.taps}, settings.basis)
    operators = {
        name: ops.train_jointly(
            settings.design, subsets_Nxd, site, basis, observed, context, settings.joint,
            mesh=corpus.mesh, progress=corpus.progress, keep=keep, loop=name,
        )[0]
        for name, (site, context) in seen.sites.items()
    }  # fmt: skip
    training = ops.as_training(observed, settings.closed_form)
    errors = ops.squared_errors(jax.nn.softmax(training.logits_NxTxC), training.labels_NxT)
    return operators, {}, np.sqrt((training.weights_NxT * errors).sum(axis=1))


def _basis(settings: StrideSettings, corpus: Corpus) -> ops.Basis:
    """The features' basis, from a sample of the training set."""
    parts: list[dict[str, np.ndarray]] = []
    few = corpus.sample(settings.basis.sample)
    for _, seen in few.chunks(settings, desc="basis"):
        observed = seen.observed
        counted = np.asarray(observed.weights_NxT) > 0
        parts.append(
            {n: np.asarray(observed.activations[n])[counted][:, None] for n in settings.taps}
        )
    activations = {n: np.concatenate([part[n] for part in parts]) for n in settings.taps}
    return ops.fit_basis(activations, settings.basis)


def _rotations(
    settings: StrideSettings,
    corpus: Corpus,
    basis: ops.Basis,
    signs_C: jax.Array | None,
) -> dict[str, Any]:
    """Eigenvectors for sites whose curvature needs them before the pass, from the same sample."""
    _, _, sites = corpus.view(settings, signs_C, training=True)
    wanting = [
        name for name, site in sites.items() if curvature_form(settings, site, basis) == "eigen"
    ]
    if not wanting:
        return {}
    few = corpus.sample(settings.basis.sample)
    # Factors do not depend on the membership.
    rows = jnp.arange(len(few))[:, None] % settings.design.num_subsets
    how = dataclasses.replace(
        settings, closed_form=dataclasses.replace(settings.closed_form, fisher="kronecker")
    )
    moments, _ = _pass(how, rows, few, basis, signs_C, {}, nowhere)
    return {name: ops.eigenbases(moments[name]) for name in wanting}


def curvature_form(settings: StrideSettings, site: ops.Site, basis: ops.Basis) -> str:
    inner = site.tap is not None or site.signs_C is not None
    return settings.closed_form.form(basis.rank, site.width, inner)


def _pass(
    settings: StrideSettings,
    subsets_Nxd: jax.Array,
    corpus: Corpus,
    basis: ops.Basis,
    signs_C: jax.Array | None,
    rotations: dict[str, Any],
    keep: Keep,
) -> tuple[dict[str, ops.Moments], np.ndarray]:
    """One pass over the corpus for each site: its moments; and `||e_i||`."""
    how, moments, residual_N = settings.closed_form, {}, np.zeros(0, np.float32)
    view, data, sites = corpus.view(settings, signs_C, training=True)
    for name, site in sites.items():
        moments[name], residual_N = ops.accumulate(
            settings.design.num_subsets, subsets_Nxd, site, basis, data,
            form=curvature_form(settings, site, basis), rotation=rotations.get(name), view=view,
            params=corpus.params, batch_size=how.batch_size, max_bytes=settings.chunk_bytes // 8,
            mesh=corpus.mesh, progress=corpus.progress, keep=keep, loop=name,
        )  # fmt: skip
    return moments, residual_N


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
    corpus = Corpus(tapped, params, inputs, labels, weights, mesh, progress)
    first, signs_C = next(iter(index.operators.values())), _signs(index.operators)
    rotations = {name: old.rotation for name, old in index.moments.items()}
    new, residual_N = _pass(
        index.settings, subsets, corpus, first.basis, signs_C, rotations, nowhere
    )
    moments = {name: ops.add(old, new[name]) for name, old in index.moments.items()}
    operators = {
        name: ops.closed_form(
            first.basis, found, index.settings.closed_form, index.operators[name].signs_C
        )
        for name, found in moments.items()
    }
    residual_N = np.concatenate([index.residual_N, residual_N])
    return Index(operators, everyone, residual_N, index.settings, moments)


def measure_all(
    settings: StrideSettings,
    operators: dict[str, ops.Operators],
    corpus: Corpus,
    *,
    keep: Keep = nowhere,
) -> np.ndarray:
    """Measurements of queries, summed over sites, `[Q, K]` nats; of token groups, `[Q G, K]`."""
    view, data, sites = corpus.view(settings, _signs(operators))
    parts = [
        measure(
            site, operators[name], data, settings.measure, view=view, params=corpus.params,
            mesh=corpus.mesh, progress=corpus.progress, keep=keep, loop=name,
        )
        for name, site in sites.items()
    ]  # fmt: skip
    return np.sum(parts, axis=0)


def _signs(operators: dict[str, ops.Operators]) -> jax.Array | None:
    """The signs of the logit site's folding, if it has one."""
    return operators["logit"].signs_C if "logit" in operators else None


def by_query(found: Recovery, num_queries: int) -> scipy.sparse.csr_array:
    """Influences of queries, those of their token groups added up, `[Q, N]`."""
    groups = len(found.w_QxS) // num_queries
    if groups == 1:
        return found.sparse
    rows = np.arange(len(found.w_QxS))
    adds = scipy.sparse.csr_array(
        (np.ones(len(rows), np.float32), (rows // groups, rows)), shape=(num_queries, len(rows))
    )
    return scipy.sparse.csr_array(adds @ found.sparse)


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
    corpus = Corpus(tapped, params, inputs, labels, weights, mesh, progress)
    y_QxK = measure_all(settings, index.operators, corpus)
    found = recover(
        settings, index.train_ids, index.residual_N, y_QxK, mesh=mesh, progress=progress
    )
    return Attribution(ids, index.train_ids, by_query(found, len(ids)), plain(settings))


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
    settings, how = index.settings, index.settings.closed_form
    view = functools.partial(Corpus, tapped, params, mesh=mesh, progress=progress)
    signs_C = _signs(index.operators)
    held: dict[str, list[jax.Array]] = {name: [] for name in settings.sites}
    for _, seen in view(*queries).chunks(settings, signs_C, desc="directions"):
        for name, (site, context) in seen.sites.items():
            basis = index.operators[name].basis
            held[name].append(
                ops.directions(index.moments[name], basis, site, seen.observed, context, how)
            )
    v = {name: np.concatenate(parts) for name, parts in held.items()}
    total = np.zeros((len(ids), len(index.train_ids)), np.float32)
    for rows, seen in view(*train).chunks(settings, signs_C, desc="direct"):
        observed = ops.as_training(seen.observed, how)
        for name, (site, context) in seen.sites.items():
            basis = index.operators[name].basis
            total[:, rows] += ops.direct_scores(v[name], basis, site, observed, context)
    return Attribution(ids, index.train_ids, total, plain(settings))
