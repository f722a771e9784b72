"""From queries to what an index is asked: measurements, and directions where they are wanted.

A question may be put against another one, or be that of many queries together; measurements and
directions are linear in it.

Letters of its own: Y rows of measurements, of queries or of their token groups; G groups of a
query.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from stride_jax import operators as ops
from stride_jax.estimate import rest_sizes
from stride_jax.exact import Directions, directions
from stride_jax.examples import Examples, as_examples
from stride_jax.frozen import FrozenModel
from stride_jax.ids import content_ids
from stride_jax.index import Index
from stride_jax.measure import MeasureSettings, measure
from stride_jax.runtime.execution import Execution
from stride_jax.settings import ReadSettings

# Rows of directions that are held at a time where queries are added up.
_TOGETHER = 256


@dataclasses.dataclass(frozen=True)
class Asked:
    """Queries as an index sees them.

    Attributes:
      y_YxK: measurements, of queries or of their token groups, a query's groups in a row; none,
        `[Q, 0]`, where every score is exact and no sketch is asked.
      aim: directions of the rows of some queries, which it is given by number; None where nothing
        would be scored exactly.
      num_queries: Q.
      total: queries that are read altogether, of which these may be a block: what decides how long
        an answer may be; Q by default.
    """

    y_YxK: np.ndarray
    aim: Callable[[np.ndarray], Directions] | None
    num_queries: int
    total: int | None = None

    def rows(self, queries: np.ndarray) -> np.ndarray:
        """Measurements of some queries."""
        groups = len(self.y_YxK) // self.num_queries
        return self.y_YxK[(queries[:, None] * groups + np.arange(groups)).reshape(-1)]


def measure_all(
    frozen: FrozenModel,
    operators: dict[str, ops.Operators],
    examples: Examples,
    settings: MeasureSettings,
    execution: Execution = Execution(),
    question: str | ops.Question | None = None,
) -> np.ndarray:
    """Measurements of queries, summed over sites, `[Q, K]` nats; of token groups, `[Q G, K]`."""
    asked = ops.named_question(question or settings.question)
    source = frozen.source(examples, question=asked)
    parts = [
        measure(site, operators[name], source, settings, execution, asked)
        for name, site in frozen.sites.items()
    ]
    return np.sum(parts, axis=0)


def asked_of(
    frozen: FrozenModel,
    index: Index,
    queries: Examples,
    y_YxK: np.ndarray,
    settings: ReadSettings,
    has_corpus: bool,
    execution: Execution = Execution(),
    question: str | ops.Question | None = None,
) -> Asked:
    """Queries with their measurements, and their directions where any would be scored exactly.

    Args:
      frozen, index: what is read.
      queries: Q of them.
      y_YxK: their measurements.
      settings: token groups, and the budget of exact scores.
      has_corpus: whether the training data are at hand.
      execution: devices, memory.
      question: what is asked of them; what the settings name by default.
    """
    what = ops.named_question(question or settings.measure.question)
    may_score = has_corpus and settings.exact.allowed(len(index.train_ids)) > 0
    if not index.fisher or not (index.kept or may_score):
        return Asked(y_YxK, None, len(queries))

    def aim(some: np.ndarray) -> Directions:
        own = queries if len(some) == len(queries) else queries.take(some)
        return directions(frozen, index, own, settings.measure.group, execution, what)

    return Asked(y_YxK, aim, len(queries))


def needs_no_sketch(
    index: Index, settings: ReadSettings, has_corpus: bool, num_queries: int, memory: int
) -> bool:
    """Whether every score is had exactly, so that K measurements would say nothing more.

    Args:
      index, settings: what is read, and how: scores are shrunk by token groups, sources are told
        apart, and a rule of lambda says what measurements are worth.
      has_corpus: whether the training data are at hand.
      num_queries: Q.
      memory: bytes, of which answers over all examples take a quarter at most.
    """
    count, exact = len(index.train_ids), settings.exact
    wants_more = exact.shrink or exact.sources or settings.selection.rule != "fixed"
    if not index.fisher or wants_more or 4 * num_queries * count > memory // 4:
        return False
    return keeps_all(index) or (has_corpus and exact.allowed(count) == count)


def keeps_all(index: Index) -> bool:
    """Whether an index holds every example's gradient."""
    return bool(index.kept) and not rest_sizes(index).any()


def contrasted(asked: Asked, than: Asked) -> Asked:
    """What speaks for the first question and against the second, query by query."""
    first, second = asked.aim, than.aim
    if first is None or second is None:
        return dataclasses.replace(asked, y_YxK=asked.y_YxK - than.y_YxK, aim=None)

    def aim(some: np.ndarray) -> Directions:
        other = second(some)
        return {name: own - other[name] for name, own in first(some).items()}

    return dataclasses.replace(asked, y_YxK=asked.y_YxK - than.y_YxK, aim=aim)


def together(asked: Asked, weight_Q: np.ndarray) -> Asked:
    """A set of queries as one question, `Σ_q weight_q f(o_q)`; of token groups, place by place."""
    count, own = asked.num_queries, asked.aim
    groups = len(asked.y_YxK) // count
    y_GxK = np.einsum("q,qgk->gk", weight_Q, asked.y_YxK.reshape(count, groups, -1))
    if own is None:
        return Asked(y_GxK.astype(np.float32), None, 1)
    block = max(1, _TOGETHER // groups)

    def aim(_: np.ndarray) -> Directions:
        total: Directions = {}
        for first in range(0, count, block):
            some = np.arange(first, min(first + block, count))
            for name, v in own(some).items():
                v = v.reshape(len(some), groups, *v.shape[1:])
                part = jnp.einsum("q,qgro->gro", jnp.asarray(weight_Q[some], v.dtype), v)
                total[name] = part + total[name] if name in total else part
        return total

    return Asked(y_GxK.astype(np.float32), aim, 1)


def one_name(ids: np.ndarray, how: Any) -> np.ndarray:
    """The name of several queries as one, `[1]`; `how` they are put together is part of it."""
    column = np.frombuffer("".join(ids).encode(), np.uint8)[None]
    return content_ids(column, np.asarray(how)[None])


def say_where_no_signal(signal_Y: np.ndarray, query_ids: np.ndarray, stacklevel: int = 4) -> None:
    """Warn of queries that nothing can be said of.

    Args:
      signal_Y: whether rows of queries, or of their token groups, differ between examples.
      query_ids: names of the queries.
      stacklevel: of the user's call.
    """
    silent_Q = ~signal_Y.reshape(len(query_ids), -1).any(axis=1)
    if silent_Q.any():
        warnings.warn(
            f"{int(silent_Q.sum())} of {len(query_ids)} queries have no measurable signal, first "
            f"{query_ids[silent_Q.argmax()]}: no operator changes what was asked, so their scores "
            "are all zero; a saturated prediction (p = 1 in float32) does this to the loss: set "
            "question='margin', or calibrate the model with taps.with_temperature",
            stacklevel=stacklevel,
        )


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is asked of queries, besides their labels.

    Attributes:
      question: a name, or a function of the outputs; what the settings name for None.
      against: other labels; None for no contrast.
      weight_Q: weights of the queries as one question; None to ask each alone.
      highest: whether each example's highest score over the queries is the answer.
    """

    question: str | ops.Question | None = None
    against: Any = None
    weight_Q: np.ndarray | None = None
    highest: bool = False


def wanted(question: Any, against: Any, together: Any, num_queries: int) -> Wanted:
    """`Wanted`, checked.

    Raises:
      ValueError: an unknown question, or weights that are not one finite number a query.
    """
    if question is not None:
        ops.named_question(question)
    if together is None:
        return Wanted(question, against, None)
    if isinstance(together, str):
        if together == "max":
            return Wanted(question, against, None, highest=True)
        if together != "mean":
            raise ValueError(f"together={together!r}: use 'mean', 'max' or a weight for each query")
        return Wanted(question, against, np.full(num_queries, 1 / num_queries))
    weight_Q = np.asarray(together, np.float64)
    if weight_Q.shape != (num_queries,) or not np.isfinite(weight_Q).all():
        raise ValueError(
            f"together has shape {weight_Q.shape} for {num_queries} queries: give one finite "
            "weight for each, or 'mean'"
        )
    return Wanted(question, against, weight_Q)


def ask(
    frozen: FrozenModel,
    index: Index,
    queries: Examples,
    settings: ReadSettings,
    what: Wanted,
    has_corpus: bool,
    exactly: bool,
    execution: Execution = Execution(),
) -> tuple[Asked, np.ndarray]:
    """What an index is asked, and the names of the rows of the answer.

    Args:
      frozen, index: what is read.
      queries: Q of them.
      settings: how they are measured, and whether anything is scored exactly.
      what: is asked of them.
      has_corpus: whether the training data are at hand.
      exactly: whether every score is exact (`needs_no_sketch`), so that nothing is measured.
      execution: devices, bars, memory.
    """
    form = settings.measure
    if exactly:
        form = dataclasses.replace(form, group=0)  # exact scores of token groups add up
    elif form.form == "auto" and keeps_all(index):
        # What is measured then says whether there is any signal, and nothing of the scores.
        form = dataclasses.replace(form, form="first_order")
    settings = dataclasses.replace(settings, measure=form)

    def one(queries: Examples) -> Asked:
        y_YxK = np.zeros((len(queries), 0), np.float32)
        if not exactly:
            y_YxK = measure_all(frozen, index.operators, queries, form, execution, what.question)
        return asked_of(
            frozen, index, queries, y_YxK, settings, has_corpus, execution, what.question
        )

    asked, ids = one(queries), queries.ids
    if what.against is not None:
        other = as_examples(
            queries.inputs, what.against, queries.ids, queries.weights, what="queries, against"
        )
        asked = contrasted(asked, one(other))
    if what.weight_Q is not None:
        asked = together(asked, what.weight_Q)
        ids = one_name(ids, what.weight_Q)
    if not exactly:
        # As recovery has it: what varies by less than a float32 of its size is rounding.
        spread_Y, size_Y = np.ptp(asked.y_YxK, axis=1), np.abs(asked.y_YxK).max(axis=1)
        say_where_no_signal(spread_Y > 1e-7 * size_Y, ids)
    return asked, ids
