"""STRIDE from end to end, in memory: a model and arrays in, an attribution out.

`fit` makes the index (basis and operators) from the training set once; `attribute` reads queries
against it. A run (`stride_jax.run`) calls the same steps one by one, with files in between.
"""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from stride_jax import design as designs
from stride_jax import operators as ops
from stride_jax.attribution import Attribution
from stride_jax.examples import Examples, as_examples
from stride_jax.frozen import FrozenModel, evenly_spaced, freeze, on_one_device
from stride_jax.index import Index
from stride_jax.measure import MeasureSettings, measure
from stride_jax.model_checks import parameters_fingerprint
from stride_jax.observed import as_training
from stride_jax.operators.gradients import squared_errors
from stride_jax.recovery import Diagnostics, LassoState, Recovery, init, recover
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import plain
from stride_jax.runtime.keep import nowhere
from stride_jax.settings import IndexSettings, ReadSettings
from stride_jax.taps import Params, TappedModel

Operators = dict[str, ops.Operators]
Moments = dict[str, ops.Moments]


def fit(
    tapped: TappedModel,
    params: Params,
    inputs: Any,
    labels: Any,
    settings: IndexSettings = IndexSettings(),
    *,
    ids: Any = None,
    weights: Any = None,
    keep_moments: bool = False,
    execution: Execution = Execution(),
) -> Index:
    """Learn K steering operators for a frozen model and its training set (docs/method.md §3 – 5).

    Args:
      tapped: the model, from one of the constructors in `adapters`.
      params: its parameters.
      inputs: `[N, ...]` training inputs.
      labels: `[N]` classes, or `[N, T]` next tokens; −1 does not count.
      settings: what makes the index.
      ids: `[N]` example names; hashes of the content by default.
      weights: token weights omega in [0, 1] like `labels`; ones by default.
      keep_moments: store the closed form's sums, which `append` and `direct` need.
      execution: devices, bars and memory.

    Returns:
      The index.

    Raises:
      ValueError: examples, settings or a model that do not fit each other; says which value, and
        what to do.
    """
    _of_class(settings, IndexSettings)
    if keep_moments and settings.fit == "joint":
        raise ValueError("keep_moments=True: joint training has no moments; use fit='closed_form'")
    examples = as_examples(inputs, labels, ids, weights)
    subsets_Nxd = designs.membership(settings.design, examples.ids)
    frozen = freeze(tapped, params, examples, settings, execution)
    operators, moments, residual_N = fit_operators(frozen, examples, subsets_Nxd, execution)
    return Index(
        operators, examples.ids, residual_N, frozen.settings, moments if keep_moments else None,
        parameters_fingerprint(params),
    )  # fmt: skip


def _of_class(settings: Any, wanted: type) -> None:
    """Refuse the other tree of settings, before anything runs."""
    if not isinstance(settings, wanted):
        raise ValueError(
            f"settings={type(settings).__name__}(…) given where {wanted.__name__} is needed: "
            "IndexSettings make an index, ReadSettings read it"
        )


def fit_operators(
    frozen: FrozenModel,
    examples: Examples,
    subsets_Nxd: jax.Array,
    execution: Execution = Execution(),
) -> tuple[Operators, Moments, np.ndarray]:
    """Fit the basis, then every site's K operators, in closed form or by training.

    Returns:
      Operators and moments by site (joint training has no moments), and `||e_i||` of the
      examples, doubted as the closed form does, `[N]`.
    """
    settings = frozen.settings
    if settings.fit == "joint":
        return _train(frozen, examples, subsets_Nxd, execution)
    basis = _fit_basis(frozen, examples, execution)
    rotations = _rotations(frozen, examples, basis, execution)
    moments, residual_N = _pass(frozen, examples, subsets_Nxd, (basis, rotations), execution)
    return _solve(frozen, basis, moments), moments, residual_N


def _solve(frozen: FrozenModel, basis: ops.Basis, moments: Moments) -> Operators:
    settings = frozen.settings.closed_form
    return {
        name: ops.closed_form(
            basis, sums, settings, frozen.signs_C if name == "logit" else None
        )
        for name, sums in moments.items()
    }  # fmt: skip


def _train(
    frozen: FrozenModel, examples: Examples, subsets_Nxd: jax.Array, execution: Execution
) -> tuple[Operators, Moments, np.ndarray]:
    settings = frozen.settings
    chunk = frozen.observe(examples, execution)
    observed = chunk.observed
    basis = ops.fit_basis({n: observed.activations[n] for n in settings.taps}, settings.basis)
    operators = {}
    for name, site in frozen.sites.items():
        source = frozen.observed_source(name, chunk)
        operators[name], _ = ops.train_jointly(
            settings.design, subsets_Nxd, site, basis, source, settings.joint, execution
        )
    read = as_training(observed, settings.closed_form.doubt)
    errors = squared_errors(jax.nn.softmax(read.logits_NxTxC), read.labels_NxT)
    return operators, {}, np.sqrt((read.weights_NxT * errors).sum(axis=1))


def _fit_basis(frozen: FrozenModel, examples: Examples, execution: Execution) -> ops.Basis:
    """The features' basis, from evenly spaced training examples."""
    settings = frozen.settings
    few = evenly_spaced(examples, settings.basis.sample)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in settings.taps}
    for chunk in frozen.chunks(few, on_one_device(frozen.params, execution), "basis"):
        counted = np.asarray(chunk.observed.weights_NxT) > 0
        for name in settings.taps:
            parts[name].append(np.asarray(chunk.observed.activations[name])[counted][:, None])
    return ops.fit_basis({n: np.concatenate(v) for n, v in parts.items()}, settings.basis)


def _rotations(
    frozen: FrozenModel, examples: Examples, basis: ops.Basis, execution: Execution
) -> dict[str, Any]:
    """Eigenvectors for sites whose curvature needs them before the pass, from the same sample."""
    wanting = {name: "kronecker" for name, form in frozen.forms.items() if form == "eigen"}
    if not wanting:
        return {}
    few = evenly_spaced(examples, frozen.settings.basis.sample)
    # Factors do not depend on the membership.
    rows = jnp.arange(len(few))[:, None] % frozen.settings.design.num_subsets
    execution = dataclasses.replace(on_one_device(frozen.params, execution), keep=nowhere)
    factors = dataclasses.replace(frozen, forms=wanting)
    moments, _ = _pass(factors, few, rows, (basis, {}), execution)
    return {name: ops.eigenbases(sums) for name, sums in moments.items()}


def _pass(
    frozen: FrozenModel,
    examples: Examples,
    subsets_Nxd: jax.Array,
    fitted: tuple[ops.Basis, dict[str, Any]],
    execution: Execution,
) -> tuple[Moments, np.ndarray]:
    """One pass over the examples for each site with a form: its moments; and `||e_i||`.

    `fitted` are the basis, and the rotations of sites whose form is `eigen`.
    """
    basis, rotations = fitted
    source, design = frozen.source(examples, training=True), frozen.settings.design
    moments, residual_N = {}, np.zeros(0, np.float32)
    for name, form in frozen.forms.items():
        curvature = ops.Curvature(form, rotations.get(name))
        moments[name], residual_N = ops.accumulate(
            design, subsets_Nxd, frozen.sites[name], basis, source, curvature, execution
        )
    return moments, residual_N


def append(
    tapped: TappedModel,
    params: Params,
    index: Index,
    inputs: Any,
    labels: Any,
    *,
    ids: Any = None,
    weights: Any = None,
    execution: Execution = Execution(),
) -> Index:
    """The index of the old training examples and these, without a pass over the old ones.

    Sums of the new examples are added to the old sums; the basis stays as it was fitted.

    Args:
      tapped, params: the model the index was fitted on.
      index: from `fit` with `keep_moments`, or from `append`.
      inputs, labels, ids, weights: the new examples, as in `fit`.
      execution: as in `fit`.

    Raises:
      ValueError: the index has no moments or is of another model, or an id is in it already.
    """
    moments = _moments_of(index, "nothing can be added")
    examples = as_examples(inputs, labels, ids, weights)
    if both := sorted(set(examples.ids.tolist()) & set(index.train_ids.tolist())):
        raise ValueError(
            f"{len(both)} of the new examples are in the index already, first {both[0]}: leave "
            "them out"
        )
    everyone = np.concatenate([index.train_ids, examples.ids])
    # The design of all examples: those of the old ones come out as they were.
    subsets_Nxd = designs.membership(index.settings.design, everyone)[len(index.train_ids) :]
    frozen = _frozen_for(index, tapped, params, examples, execution)
    basis = next(iter(index.operators.values())).basis
    rotations = {name: sums.rotation for name, sums in moments.items()}
    new, residual_N = _pass(frozen, examples, subsets_Nxd, (basis, rotations), execution)
    total = {name: ops.add(sums, new[name]) for name, sums in moments.items()}
    residual_N = np.concatenate([index.residual_N, residual_N])
    return dataclasses.replace(
        index, operators=_solve(frozen, basis, total), train_ids=everyone, residual_N=residual_N,
        moments=total,
    )  # fmt: skip


def _moments_of(index: Index, consequence: str) -> Moments:
    if not index.moments:
        raise ValueError(
            f"this index has no moments, so {consequence}: fit it in closed form with "
            "keep_moments=True, and save it with them"
        )
    return index.moments


def _frozen_for(
    index: Index,
    tapped: TappedModel,
    params: Params,
    examples: Examples,
    execution: Execution,
) -> FrozenModel:
    """The frozen model as the index read it.

    Raises:
      ValueError: parameters other than those the index was fitted on.
    """
    if index.model and (other := parameters_fingerprint(params)) != index.model:
        raise ValueError(
            f"these parameters (fingerprint {other}) are not those the index was fitted on "
            f"({index.model}): load that checkpoint, or fit an index for this one"
        )
    return freeze(tapped, params, examples, index.settings, execution, signs_C=index.signs_C)


def measure_all(
    frozen: FrozenModel,
    operators: Operators,
    examples: Examples,
    settings: MeasureSettings,
    execution: Execution = Execution(),
) -> np.ndarray:
    """Measurements of queries, summed over sites, `[Q, K]` nats; of token groups, `[Q G, K]`."""
    source = frozen.source(examples)
    parts = [
        measure(site, operators[name], source, settings, execution)
        for name, site in frozen.sites.items()
    ]
    return np.sum(parts, axis=0)


def penalty_weights(residual_N: np.ndarray, prior: float) -> np.ndarray | None:
    """Penalty weights of the Lasso, `||e_i||^-p` over their mean, `[N]`; None without a prior.

    >>> penalty_weights(np.array([1.0, 16.0]), 0.25).tolist()
    [1.3333333333333333, 0.6666666666666666]
    """
    if prior == 0:
        return None
    weights_N = np.maximum(residual_N, 1e-6) ** -prior
    return weights_N / weights_N.mean()


def lasso_state(
    index: Index, settings: ReadSettings, execution: Execution = Execution()
) -> LassoState:
    """The index' design with its penalty weights, ready for any measurements."""
    design = index.settings.design
    subsets_Nxd = designs.membership(design, index.train_ids)
    weights_N = penalty_weights(index.residual_N, settings.prior)
    return init(design, subsets_Nxd, penalty_N=weights_N, execution=execution)


def by_query(recovery: Recovery, num_queries: int) -> scipy.sparse.csr_array:
    """Influences of queries, those of their token groups added up, `[Q, N]`."""
    rows = np.arange(len(recovery.lambda_Q))
    groups = len(rows) // num_queries
    if groups == 1:
        return recovery.sparse
    adds = scipy.sparse.csr_array(
        (np.ones(len(rows), np.float32), (rows // groups, rows)), shape=(num_queries, len(rows))
    )
    return scipy.sparse.csr_array(adds @ recovery.sparse)


def attribute(
    tapped: TappedModel,
    params: Params,
    index: Index,
    inputs: Any,
    labels: Any,
    settings: ReadSettings = ReadSettings(),
    *,
    ids: Any = None,
    weights: Any = None,
    choose_lambda: bool = False,
    execution: Execution = Execution(),
) -> Attribution:
    """Which training examples made the model behave like this on these queries.

    Measurements, recovery and their sum over token groups (docs/method.md §6 – 8).

    Args:
      tapped, params: the model the index was fitted on.
      index: from `fit`.
      inputs, labels, weights, ids: the queries, as in `fit`.
      settings: what reads the index.
      choose_lambda: choose each query's lambda from held-out measurements (the rule `best`; name
        another with `settings.selection`), and say in `diagnostics` what they are worth.
      execution: as in `fit`.

    Returns:
      `[query, train]` scores in nats; positive = proponent.

    Raises:
      ValueError: queries that do not fit the model, or parameters other than the index's.

    Warns:
      UserWarning: queries whose measurements carry no signal, so that their scores are all zero.
    """
    _of_class(settings, ReadSettings)
    if choose_lambda and settings.selection.rule == "fixed":
        selection = dataclasses.replace(settings.selection, rule="best")
        settings = dataclasses.replace(settings, selection=selection)
    queries = as_examples(inputs, labels, ids, weights, what="queries")
    frozen = _frozen_for(index, tapped, params, queries, execution)
    y_QxK = measure_all(frozen, index.operators, queries, settings.measure, execution)
    state = lasso_state(index, settings, execution)
    recovery, diagnostics = recover(
        state, y_QxK, settings.lasso, settings.selection, progress=execution.progress
    )
    say_where_no_signal(y_QxK, queries.ids)
    return Attribution(
        queries.ids, index.train_ids, by_query(recovery, len(queries)),
        plain({"index": index.settings, "read": settings}),
        diagnostics=by_query_diagnostics(diagnostics, len(queries)),
        query_labels=queries.labels if queries.labels.ndim == 1 else None,
    )  # fmt: skip


def say_where_no_signal(y_QxK: np.ndarray, query_ids: np.ndarray) -> None:
    """Warn of queries whose K measurements are all the same, whatever their lambda."""
    spread_Q = np.ptp(y_QxK, axis=1).reshape(len(query_ids), -1).max(axis=1)
    silent_Q = spread_Q <= 1e-7 * max(float(np.abs(y_QxK).max(initial=0.0)), 1e-30)
    if silent_Q.any():
        warnings.warn(
            f"{int(silent_Q.sum())} of {len(query_ids)} queries have no measurable signal, first "
            f"{query_ids[silent_Q.argmax()]}: no operator changes their loss, so their scores are "
            "all zero; a saturated prediction (p = 1 in float32) does this: calibrate the model "
            "with taps.with_temperature",
            stacklevel=3,
        )


def by_query_diagnostics(diagnostics: Diagnostics, num_queries: int) -> dict[str, np.ndarray]:
    """Diagnostics as named arrays, `[Q]`: a query's token groups as their mean, gaps as the largest.

    Those that the rule of lambda did not measure are left out.
    """
    named = {}
    for field in dataclasses.fields(diagnostics):
        values = getattr(diagnostics, field.name)
        if values is not None:
            rows = np.asarray(values, np.float64).reshape(num_queries, -1)
            name = field.name.removesuffix("_Q")
            named[name] = rows.max(axis=1) if name == "relative_gap" else rows.mean(axis=1)
    return named


def direct(
    tapped: TappedModel,
    params: Params,
    index: Index,
    train: Any,
    queries: Any,
    *,
    query_ids: Any = None,
    execution: Execution = Execution(),
) -> Attribution:
    """The scores that the K measurements stand for, without the sketch (docs/method.md §8.2).

    `w_i = Σ_sites <g_x, (F + gamma I)^{-1} g_i> / s̄`, so that `M w` equals the measurements to
    first order. A yardstick for small N: it runs the model on the whole training set again.

    Args:
      tapped, params: the model the index was fitted on.
      index: from `fit` with `keep_moments`.
      train: inputs and labels of the examples the index was fitted on, in order; with their ids or
        as `Examples` the order is checked.
      queries: inputs and labels, or `Examples`.
      query_ids: names of the queries; hashes of their content by default.
      execution: as in `fit`.

    Raises:
      ValueError: the index has no moments or is of another model, or `train` are other examples.
    """
    moments, settings = _moments_of(index, "there are no direct scores"), index.settings
    trained = train if isinstance(train, Examples) else as_examples(*train)
    asked = queries
    if not isinstance(asked, Examples):
        asked = as_examples(*queries, ids=query_ids, what="queries")
    _same_training_set(index, trained, named=isinstance(train, Examples) or len(train) > 2)
    frozen = _frozen_for(index, tapped, params, asked, execution)
    parts: dict[str, list[jax.Array]] = {name: [] for name in frozen.sites}
    for chunk in frozen.chunks(asked, execution, "directions"):
        for name, site in frozen.sites.items():
            source = frozen.observed_source(name, chunk)
            basis = index.operators[name].basis
            parts[name].append(
                ops.directions(moments[name], basis, site, source, settings.closed_form)
            )
    v = {name: np.concatenate(own) for name, own in parts.items()}
    total = np.zeros((len(asked), len(trained)), np.float32)
    for chunk in frozen.chunks(trained, execution, "direct"):
        chunk = chunk._replace(observed=as_training(chunk.observed, settings.closed_form.doubt))
        for name, site in frozen.sites.items():
            source = frozen.observed_source(name, chunk)
            basis = index.operators[name].basis
            total[:, chunk.rows] += ops.direct_scores(
                v[name], basis, site, source, execution.memory
            )
    return Attribution(asked.ids, index.train_ids, total, plain({"index": settings}))


def _same_training_set(index: Index, train: Examples, *, named: bool) -> None:
    """Refuse examples other than those of the index, by number, and by id where ids are given."""
    if len(train) != len(index.train_ids):
        raise ValueError(
            f"direct scores need the index' {len(index.train_ids)} training examples; got "
            f"{len(train)}"
        )
    own = set(index.train_ids.tolist())
    if not named and not own.issuperset(train.ids.tolist()):
        return  # the index' ids are not those of the content, so the order can't be told
    if not np.array_equal(train.ids, index.train_ids):
        first = int((train.ids != index.train_ids).argmax())
        raise ValueError(
            f"example {first} of train is {train.ids[first]}, but the index has "
            f"{index.train_ids[first]} there: give its training examples in their order"
        )
