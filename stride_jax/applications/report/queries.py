"""Queries as a page shows them: those of a run, or questions that were put to it.

Letter of its own: S queries that are shown.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stride_jax.applications.inquiry import Inquiry
from stride_jax.applications.report.predictions import predictions
from stride_jax.data.tokens import Tokenizer
from stride_jax.examples import Examples
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import plain


class Asked(NamedTuple):
    """What one query is made of.

    Attributes:
      examples: of the query, and of what it is held against where there is anything.
      sizes: of each of them, tokens that are not padding; of text alone.
      question: name of what is asked.
    """

    examples: Sequence[Examples]
    sizes: Sequence[np.ndarray]
    question: str


class Queries(NamedTuple):
    """Queries that a page shows.

    Attributes:
      ids: their names, `[S]`.
      row_S: rows of the run's queries; −1 for questions that were put to it.
      asked: what each is made of.
      told: what the model made of each.
      texts: of text, columns to draw each by; none otherwise.
    """

    ids: Sequence[str]
    row_S: np.ndarray
    asked: Sequence[Asked]
    told: list[dict[str, Any]]
    texts: dict[str, Any]


def of_run(run: Run, row_S: np.ndarray) -> Queries:
    """A run's own queries, by their rows."""
    what = run.settings.read.measure.question
    sizes_Q = run.corpus.query.sizes_N if run.settings.is_text else np.zeros(len(run.query), int)
    asked = [
        Asked([run.query.take(np.array([row]))], [sizes_Q[[row]]], what) for row in row_S.tolist()
    ]
    texts = split_texts(run, "query", row_S) if run.settings.is_text else {}
    ids = [str(i) for i in run.query.ids[row_S]]
    return Queries(ids, row_S, asked, predictions(run, run.query.take(row_S)), texts)


def of_questions(run: Run, inquiries: Sequence[Inquiry]) -> Queries:
    """Questions that were put to a run, each once."""
    asked = [
        Asked(own.examples, [_ends(one) for one in own.examples], own.question) for own in inquiries
    ]
    made = [predictions(run, own.examples[0]) for own in inquiries]
    told = [one[0] if len(one) == 1 else _as_one(one) for one in made]
    told = [
        one | {"said_of": own.meaning, "generated": own.generated, "against": own.against}
        for one, own in zip(told, inquiries, strict=True)
    ]
    texts = {}
    if run.settings.is_text:
        drawn = [_drawn(run.corpus.tokenizer, own) for own in asked]
        texts = {
            "pieces": [pieces for pieces, _ in drawn],
            "counts": [counts for _, counts in drawn],
            "source": [[] for _ in asked],
            "documents": [[] for _ in asked],
        }
    ids = [str(own.ids[0]) for own in inquiries]
    return Queries(ids, np.full(len(ids), -1), asked, told, texts)


def _ends(examples: Examples) -> np.ndarray:
    """Tokens of each sequence up to the last that counts; of other examples nothing."""
    labels = np.asarray(examples.labels)
    if labels.ndim < 2:
        return np.zeros(len(labels), int)
    return labels.shape[1] - (labels[:, ::-1] >= 0).argmax(axis=1)


def _as_one(made: list[dict[str, Any]]) -> dict[str, Any]:
    """What the model made of several prompts that are one question, their mean."""
    return {
        "losses": [loss for one in made for loss in one["losses"]],
        "loss": round(float(np.mean([one["loss"] for one in made])), 3),
        "tokens_right": round(float(np.mean([one["tokens_right"] for one in made])), 3),
    }


def _drawn(tokenizer: Tokenizer, own: Asked) -> tuple[list[str], str]:
    """Tokens of a question as text, and whether each counts; every prompt begins a line."""
    pieces: list[str] = []
    counts = ""
    for i, size in enumerate(own.sizes[0].tolist()):
        said, counted = pieces_of(tokenizer, own.examples[0].take([i]), size)
        pieces += [f"\n{said[0]}", *said[1:]] if i else said
        counts += counted
    return pieces, counts


def pieces_of(tokenizer: Tokenizer, one: Examples, size: int) -> tuple[list[str], str]:
    """A sequence's tokens as text, and of each a letter: 1 if it counts, else 0.

    A token's scores are of its prediction, so a sequence is shown from its second token on.
    """
    inputs_T, label_T = np.asarray(one.inputs)[0], np.asarray(one.labels)[0]
    tokens = [*inputs_T[1:size].tolist(), max(int(label_T[size - 1]), 0)]
    counted = "".join("1" if label >= 0 else "0" for label in label_T[:size].tolist())
    return tokenizer.pieces(tokens), counted


def split_texts(run: Run, split: str, rows: np.ndarray) -> dict[str, Any]:
    """Tokens of a split's sequences as text, and where they come from."""
    text, tokenizer = getattr(run.corpus, split), run.corpus.tokenizer
    own, sizes = run.data[0][split].take(rows), text.sizes_N[rows].tolist()
    drawn = [pieces_of(tokenizer, own.take([i]), size) for i, size in enumerate(sizes)]
    return {
        "pieces": [pieces for pieces, _ in drawn],
        "counts": [counts for _, counts in drawn],
        "source": [text.references(int(row)) for row in rows],
        "documents": [plain(text.origins_of(int(row))) for row in rows],
    }
