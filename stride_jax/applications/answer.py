"""The training texts that made a language model answer as it does, for people and for JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from stride_jax import asking, reading
from stride_jax.applications.group_effects import GroupEffect, group_effects
from stride_jax.applications.inquiry import AskSettings, Inquiry, inquire
from stride_jax.attribution import found_by
from stride_jax.examples import Examples
from stride_jax.measure import MeasureSettings
from stride_jax.objectives import cross_entropy
from stride_jax.run.pipeline import Run
from stride_jax.scores import as_dense, top_rows
from stride_jax.unit import words


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
    return answered(run, inquire(run, prompt, completion, against, settings), settings.top)


def answered(run: Run, own: Inquiry, top: int) -> Answer:
    """The answer to a question that was read.

    Args:
      run: a finished run of text.
      own: of it.
      top: number of proponents, and of opponents; groups alike.
    """
    found = own.reading
    scores_N, bits_N = as_dense(found.scores)[0], found.exact_QxN.toarray()[0]
    picks = [top_rows(sign * scores_N, top) for sign in (1, -1)]
    proponents, opponents = (
        [_passage(run, i, scores_N[i], found_by(bits_N[i], found.sources), own.y_K) for i in rows]
        for rows in picks
    )
    assert own.prompt is not None, "a question to a language model has a prompt"
    assert own.completion is not None, "and a completion"
    return Answer(
        own.prompt, own.completion, own.against, own.generated, _loss(run, own.examples[0]),
        proponents, opponents,
        group_effects(run, own.index, own.examples, own.question, top),
        support=int((scores_N != 0).sum()),
        question=own.question,
        meaning=own.meaning,
        scores=words(own.index.unit),
        verdict=reading.VERDICTS[int(found.diagnostics["verdict"][0])],
        diagnostics={n: float(v[0]) for n, v in found.diagnostics.items() if n != "verdict"},
    )  # fmt: skip


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
