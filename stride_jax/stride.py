"""STRIDE from end to end, in memory: a model and arrays in, an attribution out.

`fit` makes the index (basis and operators) from the training set once; `attribute` reads queries
against it. A run (`stride_jax.run`) calls the same steps one by one, with files in between.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stride_jax import design as designs
from stride_jax import operators as ops
from stride_jax.asking import (
    ask,
    measure_all,
    needs_no_sketch,
    one_name,
    say_where_no_signal,
    wanted,
)
from stride_jax.attribution import Attribution
from stride_jax.candidates import Candidates, as_one, named
from stride_jax.estimate import estimator
from stride_jax.exact import directions, positions, scored
from stride_jax.examples import Examples, as_examples
from stride_jax.fitting import fit_operators, made
from stride_jax.frozen import FrozenModel, freeze
from stride_jax.groups import labelled
from stride_jax.index import Index
from stride_jax.measure import MeasureSettings
from stride_jax.neighbours import finder, most_named, refuse_unfit
from stride_jax.reading import Corpus, highest, read, read_exactly
from stride_jax.runtime.digests import parameters_fingerprint
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import plain
from stride_jax.settings import IndexSettings, ReadSettings
from stride_jax.taps import Params, TappedModel


def fit(
    tapped: TappedModel,
    params: Params,
    inputs: Any,
    labels: Any,
    settings: IndexSettings = IndexSettings(),
    *,
    ids: Any = None,
    weights: Any = None,
    keys: Any = None,
    groups: Any = None,
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
      keys: `[N]`, one for all examples that must act as one; copies of one content by default.
      groups: `[N]`, the name of each example's source, author, label or book, None for none: one
        operator for each besides, which `steer` and `attribute_groups` read.
      keep_moments: store the closed form's sums, which `append` needs.
      execution: devices, bars and memory.

    Returns:
      The index.

    Raises:
      ValueError: examples, settings or a model that do not fit each other; says which value, and
        what to do.

    >>> import stride_jax
    >>> model = stride_jax.from_function(lambda w, x: (x @ w, {"input": x}))
    >>> x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    >>> settings = IndexSettings(design=stride_jax.Design(num_subsets=20, degree=4))
    >>> index = fit(model, np.eye(4, 3, dtype=np.float32), x, np.arange(60) % 3, settings)
    >>> index
    Index(60 training examples, K=20, clusters, taps: input, sites: logit, 60 kept, 0.0 MiB)
    >>> attribute(model, np.eye(4, 3, dtype=np.float32), index, x[:2], [0, 1]).scores.shape
    (2, 60)
    """
    _of_class(settings, IndexSettings)
    if settings.fit == "joint" and (keep_moments or groups is not None):
        given = "keep_moments=True" if keep_moments else "groups"
        raise ValueError(f"{given}: joint training has no moments; use fit='closed_form'")
    examples = as_examples(inputs, labels, ids, weights, keys)
    named_groups = None if groups is None else labelled(groups, len(examples))
    own = None if named_groups is None else named_groups[1]
    design = settings.design.resolved(examples.token_shape, settings.fit)
    subsets_Nxd = designs.known_membership(design, examples.ids, examples.keys)
    frozen = freeze(tapped, params, examples, settings, execution)
    fitted = fit_operators(frozen, examples, subsets_Nxd, execution, own)
    index = made(fitted, examples, frozen, parameters_fingerprint(params), named_groups)
    return dataclasses.replace(index, moments=fitted.passed.moments) if keep_moments else index


def _of_class(settings: Any, wanted: type) -> None:
    """Refuse the other tree of settings, before anything runs."""
    if not isinstance(settings, wanted):
        raise ValueError(
            f"settings={type(settings).__name__}(…) given where {wanted.__name__} is needed: "
            "IndexSettings make an index, ReadSettings read it"
        )


def frozen_for(
    index: Index,
    tapped: TappedModel,
    params: Params,
    examples: Examples,
    execution: Execution,
) -> FrozenModel:
    """The frozen model as the index read it.

    Raises:
      ValueError: parameters or an objective other than those the index was fitted on.
    """
    if tapped.objective.name != index.objective:
        raise ValueError(
            f"the index was fitted on a model whose loss is {index.objective}, this one's is "
            f"{tapped.objective.name}: give it the same, with_objective(model, …)"
        )
    if index.model and (other := parameters_fingerprint(params)) != index.model:
        raise ValueError(
            f"these parameters (fingerprint {other}) are not those the index was fitted on "
            f"({index.model}): load that checkpoint, or fit an index for this one"
        )
    return freeze(tapped, params, examples, index.settings, execution, signs_C=index.signs_C)


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
    question: str | ops.Question | None = None,
    against: Any = None,
    together: Any = None,
    train: Examples | None = None,
    candidates: Mapping[str, Any] | None = None,
    choose_lambda: bool = False,
    execution: Execution = Execution(),
) -> Attribution:
    """Which training examples made the model behave like this on these queries.

    Measurements, exact scores where the index keeps them or `train` gives them, estimates of the
    rest, and their sum over token groups (docs/method.md §6 – 8).

    Args:
      tapped: the model the index was fitted on.
      params: its parameters.
      index: from `fit`.
      inputs: the queries, as in `fit`.
      labels: of each; a token of weight 0 or label −1 is not asked about.
      weights: of each label.
      ids: of each.
      settings: what reads the index.
      question: what is asked: `loss`, `margin` (the log odds of the label, which may be any class),
        or a function of the outputs (`question_of`); `settings.measure.question` by default.
      against: other labels like `labels`: why these and not those. For `loss` it is
        `log p_label − log p_other`; turned round it changes its sign.
      together: weights of the queries, `[Q]`, or `"mean"`: all of them as one question; `"max"`:
        each example's score for the query that it helps most, each asked by itself.
      train: the training data, those of the index among them: then each query's likeliest
        examples are scored exactly (`settings.exact`), for one forward pass over them.
      candidates: `{source: ids}` of examples that are scored exactly besides, one list for all
        queries or one for each.
      choose_lambda: by hash, choose each query's lambda from held-out measurements (the rule
        `best`; name another with `settings.selection`), and say in `diagnostics` what they are
        worth.
      execution: as in `fit`.

    Returns:
      `[query, train]` scores; positive = proponent. The index' unit is of the loss: scores of other
      questions are relative.

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
    settings.exact.allowed(len(index.train_ids))
    what = wanted(question, against, together, len(queries))
    said = {
        "question": ops.named_question(question or settings.measure.question).name,
        "against": against is not None,
        "together": together if isinstance(together, str) else together is not None,
    }
    index = _in_unit_of(index, said["question"])
    sources = settings.exact.sources
    lists = 1 if what.weight_Q is not None else len(queries)
    others = _candidates(index, candidates or {}, sources, lists, train is not None)
    refuse_unfit(sources, queries)
    if train is not None:
        positions(index, train)  # refuses other data before anything runs
    frozen = frozen_for(index, tapped, params, queries, execution)
    exactly = not others and needs_no_sketch(
        index, settings, train is not None, len(queries), execution.memory
    )
    asked, names = ask(
        frozen, index, queries, settings, what, train is not None, exactly, execution
    )
    corpus = None if train is None else Corpus(frozen, train)
    if exactly:
        reading = read_exactly(index, asked, corpus, execution)
        say_where_no_signal(reading.diagnostics["explained"] > 0, names, stacklevel=3)
    else:
        if train is not None:
            most = most_named(settings.exact, len(index.train_ids))
            found = finder(sources, frozen, index, train, execution)(queries, most)
            others += found if what.weight_Q is None else [as_one(one, most) for one in found]
        own = estimator(index, settings, execution)
        reading = read(own, index, asked, corpus, others, execution)
    if what.highest:
        reading, names = highest(reading), one_name(names, "max")
    alone = queries.labels.ndim == 1 and together is None
    return Attribution(
        names, index.train_ids, reading.scores,
        plain({
            "index": index.settings, "read": settings, "asked": said, "objective": index.objective,
        }),
        diagnostics=reading.diagnostics, exact=reading.exact_QxN, sources=reading.sources,
        train_keys=index.keys, unit=index.unit,
        query_labels=queries.labels if alone else None,
    )  # fmt: skip


def _candidates(
    index: Index,
    given: Mapping[str, Any],
    sources: Sequence[str],
    num_lists: int,
    can_score: bool,
) -> list[Candidates]:
    """Candidates that the user gave, for each question or one for all.

    Args:
      index: whose examples they are.
      given: `{source: ids}`.
      sources: that name candidates themselves.
      num_lists: questions.
      can_score: whether there is training data to score them from.
    """
    if given and not can_score:
        raise ValueError(
            f"candidates {list(given)} are scored from the training data: give train=Examples(…) "
            "too"
        )
    if both := set(sources) & set(given):
        raise ValueError(f"candidates {sorted(both)} have the name of a source: give them another")
    if (count := len(given) + len(sources)) > 6:  # a byte says who named an example
        raise ValueError(
            f"{count} sources of candidates: at most 6 can be told apart, so join some"
        )
    if sources and not can_score:
        raise ValueError(
            f"sources={tuple(sources)} look into the training data: give train=Examples(…)"
        )
    return [named(source, own, index.train_ids, num_lists) for source, own in given.items()]


def attribute_groups(
    tapped: TappedModel,
    params: Params,
    index: Index,
    inputs: Any,
    labels: Any,
    settings: MeasureSettings = MeasureSettings(),
    *,
    ids: Any = None,
    weights: Any = None,
    execution: Execution = Execution(),
) -> Attribution:
    """By how much each query's loss would rise without each named group: measured, not recovered.

    Args:
      tapped: the model the index was fitted on.
      params: its parameters.
      index: from `fit` with `groups`.
      inputs: the queries, as in `fit`.
      labels: of each.
      weights: of each label.
      ids: of each.
      settings: how a query is measured; token groups are added up.
      execution: as in `fit`.

    Returns:
      `[query, group]` scores, their `train_ids` the groups' names; positive: the group helps. A
      score is the whole group's, so large groups have large ones.

    Raises:
      ValueError: an index without groups or of other parameters, or queries that do not fit.
    """
    if index.groups is None:
        raise ValueError("this index has no groups: fit it with groups=, a name for each example")
    queries = as_examples(inputs, labels, ids, weights, what="queries")
    index = _in_unit_of(index, settings.question)
    assert index.groups is not None, "an index keeps its groups"
    frozen = frozen_for(index, tapped, params, queries, execution)
    whole = dataclasses.replace(settings, group=0)
    y_QxG = measure_all(frozen, index.groups.operators, queries, whole, execution)
    return Attribution(
        queries.ids, index.groups.names, y_QxG * np.float32(index.factor),
        plain({"index": index.settings, "measure": whole, "objective": index.objective}),
        unit=index.unit,
        query_labels=queries.labels if queries.labels.ndim == 1 else None,
    )  # fmt: skip


def _in_unit_of(index: Index, question: str) -> Index:
    """The index without its unit, where another question is asked than the loss it is of."""
    asks_loss = question == ops.LOSS.name
    return index if asks_loss or index.unit is None else dataclasses.replace(index, unit=None)


def direct(
    tapped: TappedModel,
    params: Params,
    index: Index,
    train: Any,
    queries: Any,
    *,
    query_ids: Any = None,
    question: str | ops.Question = "loss",
    execution: Execution = Execution(),
) -> Attribution:
    """The scores that the K measurements stand for, without the sketch (docs/method.md §8.2).

    `w_i = Σ_sites <g_x, (F + gamma I)^{-1} g_i> / Σ omega`, so that `M w` equals the measurements
    to first order. A yardstick for small N: it runs the model on the whole training set again. Its
    scores are without the index' unit, which is measured on answers, thresholds and all.

    Args:
      tapped: the model the index was fitted on.
      params: its parameters.
      index: from `fit` in closed form.
      train: inputs and labels of the examples the index was fitted on, in order; with their ids or
        as `Examples` the order is checked.
      queries: inputs and labels, or `Examples`.
      query_ids: names of the queries; hashes of their content by default.
      question: what is asked of them, as in `attribute`.
      execution: as in `fit`.

    Raises:
      ValueError: the index has no curvature or is of another model, or `train` are other examples.
    """
    if not index.fisher:
        raise ValueError(
            "this index has trained operators and no curvature, so there are no direct scores: fit "
            "it in closed form"
        )
    trained = train if isinstance(train, Examples) else as_examples(*train)
    asked = queries
    if not isinstance(asked, Examples):
        asked = as_examples(*queries, ids=query_ids, what="queries")
    _same_training_set(index, trained, named=isinstance(train, Examples) or len(train) > 2)
    frozen = frozen_for(index, tapped, params, asked, execution)
    what = ops.named_question(question)
    v = directions(frozen, index, asked, 0, execution, what)
    settings = plain({
        "index": index.settings, "asked": {"question": what.name}, "objective": index.objective,
    })  # fmt: skip
    total = np.zeros((len(asked), len(trained)), np.float32)
    for rows, w_QxU in scored(frozen, index, v, trained, np.arange(len(trained)), execution):
        total[:, rows] = w_QxU
    return Attribution(asked.ids, index.train_ids, total, settings)


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
