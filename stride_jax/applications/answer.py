"""From a question to the training texts that made a language model answer as it does.

A question is a prompt and a completion, of which the completion alone counts. With another
completion to hold it against, measurements of the two are read together; several prompts may be
one question.

Letter of its own: G groups of tokens.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax import asking, reading
from stride_jax.applications.group_effects import GroupEffect, group_effects
from stride_jax.applications.question import (
    meaning,
    opening,
    question,
    questions,
    refuse_absent,
)
from stride_jax.attribution import found_by
from stride_jax.candidates import Candidates, as_one
from stride_jax.estimate import Estimator, estimator
from stride_jax.exact import Directions
from stride_jax.examples import Examples
from stride_jax.index import Index
from stride_jax.measure import MeasureSettings
from stride_jax.neighbours import Find, finder, most_named
from stride_jax.objectives import cross_entropy
from stride_jax.recovery import SelectionSettings
from stride_jax.run.pipeline import Run
from stride_jax.runtime.mesh import fetch
from stride_jax.scores import as_dense, top_rows
from stride_jax.unit import words


@dataclasses.dataclass(frozen=True)
class AskSettings:
    """The size of an answer, and the draw of a continuation.

    Attributes:
      top: number of proponents, and of opponents.
      new_tokens: largest number of tokens of a continuation.
      temperature: temperature of its draw; 0 takes the likeliest token.
      seed: random seed of its draw.
      sources: what names candidates besides the sketch, as in `ExactSettings`; None for the run's.
      question: what is asked of each token, `loss` or `margin`; None for what the run asks.
      tokens: tokens of the completions that count alone, as in `question.chosen`; all for "".
    """

    top: int = 3
    new_tokens: int = 16
    temperature: float = 0.7
    seed: int = 0
    sources: tuple[str, ...] | None = None
    question: str | None = None
    tokens: str = ""


@dataclasses.dataclass(frozen=True)
class Passage:
    """A training sequence that mattered.

    Attributes:
      id: content hash of the sequence.
      score: in what `Answer.scores` says; positive = proponent.
      found_by: where its exact score came from, such as `kept` or `sketch`; `estimate` for a score
        that is none.
      references: passages that the sequence comes from.
      documents: their documents: `id`, `metadata` by the names of its columns, and of a corpus that
        was prepared `file`, `place` of the row, and `offset` of the sequence's first token.
      pieces: text of each token.
      shares: agreement of each token with the question, relative to the largest magnitude, in
        [-1, 1].
    """

    id: str
    score: float
    found_by: str
    references: list[str]
    documents: list[dict[str, Any]]
    pieces: list[str]
    shares: list[float]


@dataclasses.dataclass(frozen=True)
class Answer:
    """A completion, the training texts behind it, and what the answer is worth.

    Attributes:
      prompt, completion, against: the question; the completion may be the model's own. Lists where
        several prompts are one question.
      generated: whether the completion is the model's own.
      loss: loss of the tokens that count, nats; mean over the prompts.
      proponents, opponents: training sequences, strongest first.
      groups: the groups that help and those that hurt most, in descending order; none where the run
        has no groups.
      support: number of training sequences with a score.
      question: name of what was asked of each token.
      meaning: what a score is, in words.
      scores: what scores are in: nats, where the run measured their unit, or relative.
      verdict: whether the texts behind it were found (`reading.certificate`).
      diagnostics: the numbers behind the verdict, and of the recovery, where there was one.
    """

    prompt: str | list[str]
    completion: str | list[str]
    against: str | None
    generated: bool
    loss: float
    proponents: list[Passage]
    opponents: list[Passage]
    groups: list[GroupEffect]
    support: int
    question: str
    meaning: str
    scores: str
    verdict: str
    diagnostics: dict[str, float]


def continuation(run: Run, prompt: str, settings: AskSettings) -> str:
    """The model's continuation of a prompt, up to the end of a document or of its context.

    Raises:
      ValueError: an empty prompt, or one that fills the context.
    """
    tokenizer, length, template = run.corpus.tokenizer, run.train.inputs.shape[1], run.template
    # Refuses prompts that can't be continued.
    question(tokenizer, prompt, " ", length + 1, template=template)
    tokens = opening(tokenizer, template.asked(prompt)[0], template)
    ends = tokenizer.ends(template.source != "")
    start, key = len(tokens), jax.random.key(settings.seed)
    for i in range(min(settings.new_tokens, length + 1 - start)):
        inputs = np.full((1, length), tokenizer.bos_id, np.int32)
        inputs[0, : len(tokens)] = tokens
        logits_C = np.asarray(run.tapped(run.model.params, inputs)[0][0, len(tokens) - 1])
        if settings.temperature > 0:
            draw = jax.random.categorical(
                jax.random.fold_in(key, i), jnp.asarray(logits_C) / settings.temperature
            )
            tokens.append(int(draw))
        else:
            tokens.append(int(logits_C.argmax()))
        if tokens[-1] in ends:
            tokens.pop()
            break
        if template.stop and tokenizer.decode(tokens[start:]).endswith(template.stop):
            break
    if len(tokens) == start:
        raise ValueError(
            "the model ends the text here, so there is no completion to explain: give one, or "
            "another seed"
        )
    return tokenizer.decode(tokens[start:])


@functools.lru_cache(maxsize=1)
def _estimator(run: Run) -> Estimator:
    selection = SelectionSettings(rule="best")
    return estimator(run.index, dataclasses.replace(run.settings.read, selection=selection))


@functools.lru_cache(maxsize=1)
def _finder(run: Run, sources: tuple[str, ...]) -> Find:
    """Held, as what it makes of the training data serves every question."""
    return finder(sources, run.frozen, run.index, run.train)


def _candidates(run: Run, asked: Sequence[Examples], settings: AskSettings) -> list[Candidates]:
    """What the sources name for a question, or for it and the one it is held against."""
    exact = run.settings.read.exact
    if settings.sources is not None:
        exact = dataclasses.replace(exact, sources=settings.sources)
    count = -(-most_named(exact, len(run.train)) // len(asked))
    find = _finder(run, exact.sources)
    lists = [[as_one(one, count) for one in find(own, count)] for own in asked]
    return [
        Candidates(same[0].source, np.concatenate([own.row_QxP for own in same], axis=1))
        for same in zip(*lists, strict=True)
    ]


def ask(
    run: Run,
    prompt: str | Sequence[str],
    completion: str | None = None,
    against: str | None = None,
    settings: AskSettings = AskSettings(),
) -> Answer:
    """The training sequences that made the model complete the prompt like this.

    Args:
      run: a finished run of text.
      prompt: text before the completion; of several, their mean is one question.
      completion: text that is explained; the model's own continuation for None.
      against: another completion: the answer then explains why the first one and not this one.
      settings: what is asked, size of the answer, and draw of a continuation.

    Raises:
      ValueError: no prompt, a question that `question.question` refuses, words that no completion
        has, or a completion that is held against itself.
    """
    tokenizer, length = run.corpus.tokenizer, run.train.inputs.shape[1]
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("no prompt to ask about: give one")
    if against == "":
        raise ValueError("against is empty: give another completion, or leave it out")
    said = [continuation(run, one, settings) if completion is None else completion
            for one in prompts]  # fmt: skip
    if against in said:
        raise ValueError(f"against is the completion itself, {against!r}: give another one")
    refuse_absent(settings.tokens, [*said, *([] if against is None else [against])])
    others = [] if against is None else [[against] * len(prompts)]
    asked = [
        questions(tokenizer, prompts, own, length, settings.tokens, run.template)
        for own in (said, *others)
    ]
    what = settings.question or run.settings.read.measure.question
    # The unit was measured on what the run asks.
    known = run.measured_unit if what == run.settings.read.measure.question else None
    index = dataclasses.replace(run.index, unit=known)
    own, y_K = _read(run, index, asked, what, _candidates(run, asked, settings))
    scores_N, bits_N = as_dense(own.scores)[0], own.exact_QxN.toarray()[0]
    picks = [top_rows(sign * scores_N, settings.top) for sign in (1, -1)]
    proponents, opponents = (
        [_passage(run, i, scores_N[i], found_by(bits_N[i], own.sources), y_K) for i in rows]
        for rows in picks
    )
    alone = isinstance(prompt, str)
    return Answer(
        prompts[0] if alone else prompts, said[0] if alone else said, against,
        completion is None, _loss(run, asked[0]), proponents, opponents,
        group_effects(run, index, asked, what, settings.top),
        support=int((scores_N != 0).sum()),
        question=what,
        meaning=meaning(what, said, against, settings.tokens),
        scores=words(index.unit),
        verdict=reading.VERDICTS[int(own.diagnostics["verdict"][0])],
        diagnostics={n: float(v[0]) for n, v in own.diagnostics.items() if n != "verdict"},
    )  # fmt: skip


def _read(
    run: Run, index: Index, asked: Sequence[Examples], what: str, others: list[Candidates]
) -> tuple[reading.Reading, np.ndarray]:
    """The answer to one question, and the measurements that it was read from, `[K]`."""
    one = _measure(run, asked[0], what)
    if len(asked) > 1:
        one = _rather(one, _measure(run, asked[1], what))
    one = _spoken(one)
    corpus = reading.Corpus(run.frozen, run.train)
    return reading.read(_estimator(run), index, one, corpus, others), one.y_YxK.sum(axis=0)


def _rather(asked: asking.Asked, than: asking.Asked) -> asking.Asked:
    """A question against another one: what speaks for the first and against the second."""
    y_GxK, first, second = np.concatenate([asked.y_YxK, -than.y_YxK]), asked.aim, than.aim
    if first is None or second is None:
        return asking.Asked(y_GxK, None, 1)

    def aim(some: np.ndarray) -> Directions:
        other = second(some)
        return {n: jnp.concatenate([own, -other[n]]) for n, own in first(some).items()}

    return asking.Asked(y_GxK, aim, 1)


def _spoken(asked: asking.Asked) -> asking.Asked:
    """A question without its groups of the prompt alone, which measure nothing."""
    spoken_G, aim = np.abs(asked.y_YxK).max(axis=1) > 0, asked.aim
    if aim is None:
        return asking.Asked(asked.y_YxK[spoken_G], None, 1)

    def spoken(some: np.ndarray) -> Directions:
        # Chosen on the host: each number of groups would be compiled for.
        return {name: jax.device_put(fetch(v)[spoken_G]) for name, v in aim(some).items()}

    return asking.Asked(asked.y_YxK[spoken_G], spoken, 1)


def _measure(run: Run, queries: Examples, what: str) -> asking.Asked:
    """Measurements and directions of one question's token groups."""
    settings, both = run.settings.read, (run.frozen, run.index)
    y_YxK = asking.measure_all(
        run.frozen, run.index.operators, queries, settings.measure, question=what
    )
    asked = asking.asked_of(*both, queries, y_YxK, settings, has_corpus=True, question=what)
    return asking.together(asked, np.full(len(queries), 1 / len(queries)))


def _loss(run: Run, queries: Examples) -> float:
    """Loss of the tokens that count, nats, mean over the queries."""
    logits = run.tapped(run.model.params, jnp.asarray(queries.inputs))[0]
    losses = np.asarray(cross_entropy(logits, jnp.asarray(queries.labels)))
    return float(losses[queries.labels >= 0].sum() / len(queries))


def _passage(run: Run, row: int, score: float, source: str, y_K: np.ndarray) -> Passage:
    """A training sequence with each token's agreement with the question.

    `<y_t, y_x>` over the K operators: the token's own measurements against the question's.
    """
    text, tokenizer = run.corpus.train, run.corpus.tokenizer
    example = run.train.take([row])
    single = MeasureSettings("first_order", group=1)
    y_TxK = asking.measure_all(run.frozen, run.index.operators, example, single)
    share_T = y_TxK @ (y_K - y_K.mean())
    share_T = share_T / max(np.abs(share_T).max(), 1e-30)
    size = int(text.sizes_N[row])
    # A token's measurements are of the prediction of the next token.
    tokens = [*example.inputs[0, 1:size], max(example.labels[0, size - 1], 0)]
    pieces = tokenizer.pieces(tokens)
    return Passage(
        str(run.train.ids[row]), float(score), source, text.references(row),
        text.origins_of(row), pieces,
        [float(v) for v in share_T[: len(pieces)]],
    )  # fmt: skip
