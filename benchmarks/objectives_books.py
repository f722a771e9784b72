"""A small language model without a book of the Bible: steered, measured, and really trained.

Letters of its own: G books.
"""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np

from benchmarks.house import Row
from benchmarks.objectives_models import agreement, correlation, outputs_of
from benchmarks.pointing_figures import Note, open_run
from stride_jax import evaluation, stride
from stride_jax.data.text import load_text
from stride_jax.data.text_examples import TextExamples
from stride_jax.examples import Examples
from stride_jax.measure import MeasureSettings
from stride_jax.objectives import cross_entropy
from stride_jax.run.pipeline import Run
from stride_jax.steer import steer

LEFT_OUT, PASSAGES, OF_EACH = 8, 24, 4
"""Books left out, the largest; held-out passages of each; and of every book, to be ranked."""


def without_books(workdir: pathlib.Path, note: Note, only: str = "") -> None:
    """Log-probabilities of a book's passages without it, and whether it ranks first for them."""
    del only
    run = open_run("bible_gpt", workdir)
    books, held = books_of(run.text.train), held_out(run)
    index = stride.fit(
        run.tapped, run.model.params, run.train.inputs, run.train.labels, run.settings.index,
        ids=run.train.ids, groups=books,
    )  # fmt: skip
    note([_ranks(run, index, held)])
    names, counts = np.unique(books, return_counts=True)
    largest = names[np.argsort(-counts, kind="stable")[:LEFT_OUT]]
    query, own_Q = drawn(held, largest, PASSAGES)
    weights = np.where(books[None] == np.append("", largest)[:, None], 0.0, 1.0)
    losses = outputs_of(run, weights, query, 1, 1)
    real_GxQ = losses[1:] - losses[0]
    predicted_GxQ = np.stack([_rise(run, index, query, name) for name in largest.tolist()])
    mine = own_Q[None] == largest[:, None]
    real, predicted = (v[mine].reshape(LEFT_OUT, PASSAGES) for v in (real_GxQ, predicted_GxQ))
    name = "groups, bible_gpt, log-probability of a book's passages without it"
    note(agreement(name, real, predicted, 0.7))
    note([
        _first("", predicted_GxQ, largest, own_Q, 0.9),
        _first(", really trained", real_GxQ, largest, own_Q),
    ])  # fmt: skip
    value, interval = correlation(real_GxQ, predicted_GxQ)
    note([Row("groups, bible_gpt, all passages: correlation", value, "higher", interval)])


def books_of(text: TextExamples) -> np.ndarray:
    """The book that most passages of each sequence are of."""
    names = []
    for row in range(len(text)):
        sources = [text.sources[i] for i in text.spans.of(row).document_P.tolist()]
        own = [str(source.metadata["book"]) for source in sources]
        names.append(max(own, key=own.count))
    return np.array(names)


def held_out(run: Run) -> tuple[Examples, np.ndarray]:
    """Sequences of the text that the run neither trains on nor calibrates with, and their books."""
    assert run.settings.text is not None, "bible_gpt is of text"
    whole = dataclasses.replace(run.settings.text, max_train=10**6)
    text = load_text(whole, run.workdir).train
    known = {
        row.tobytes() for row in (*run.text.train.inputs_NxT, *run.text.calibration.inputs_NxT)
    }
    new = np.array([row.tobytes() not in known for row in text.inputs_NxT])
    rows = np.flatnonzero(new & (text.weights_NxT.sum(axis=1) > text.weights_NxT.shape[1] / 2))
    text = text.take(rows)
    return text.examples, books_of(text)


def drawn(
    held: tuple[Examples, np.ndarray], books: np.ndarray, each: int
) -> tuple[Examples, np.ndarray]:
    """Evenly spaced passages of these books, as many of each where there are, and their books."""
    examples, book_N = held
    rows = []
    for book in books.tolist():
        own = np.flatnonzero(book_N == book)
        rows.append(own[np.unique(np.linspace(0, len(own) - 1, min(each, len(own))).astype(int))])
    return examples.take(np.concatenate(rows)), book_N[np.concatenate(rows)]


def _ranks(run: Run, index: stride.Index, held: tuple[Examples, np.ndarray]) -> Row:
    """Share of passages, of all books alike, for which their own book ranks first of all."""
    assert index.groups is not None, "they were named"
    query, own_Q = drawn(held, index.groups.names, OF_EACH)
    found = stride.attribute_groups(
        run.tapped, run.model.params, index, query.inputs, query.labels,
        MeasureSettings("first_order"), ids=query.ids,
    )  # fmt: skip
    return _first("", found.scores_QxN.T, found.train_ids, own_Q, 0.9)


def _first(
    how: str,
    rise_GxQ: np.ndarray,
    books_G: np.ndarray,
    own_Q: np.ndarray,
    asked: float | None = None,
) -> Row:
    """Share of passages whose loss rises most without their own book."""
    first_Q = books_G[rise_GxQ.argmax(axis=0)]
    mean, interval = evaluation.bootstrap_mean((first_Q == own_Q).astype(float))
    name = f"groups, bible_gpt, right book of {len(books_G)} first{how}: share of passages"
    return Row(name, mean, "higher", interval, asked)


def _rise(run: Run, index: stride.Index, query: Examples, book: str) -> np.ndarray:
    """By how much steering away from a book raises each passage's loss, `[Q]`."""
    rises, params = [], run.model.params
    for first in range(0, len(query), 32):
        rows = slice(first, first + 32)
        x, labels = jnp.asarray(query.inputs[rows]), jnp.asarray(query.labels[rows])
        steered = steer(run.tapped, params, index, x, without=book)
        plain = run.tapped(params, x)[0]
        rise = cross_entropy(steered, labels) - cross_entropy(plain, labels)
        rises.append(np.asarray(rise.sum(axis=1)))
    return np.concatenate(rises)
