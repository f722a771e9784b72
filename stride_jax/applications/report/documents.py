"""The documents that a page's texts are of: each sequence once, however many texts lie near it."""

import functools
from typing import Any, NamedTuple

import numpy as np

from stride_jax.data.text_examples import TextExamples
from stride_jax.run.pipeline import Run

_REACH = 256
"""Sequences that are told on either side of a text."""

_MOST = 1 << 20
"""Tokens of all documents of a page, unless there are more in the texts' next neighbours."""


class Documents(NamedTuple):
    """What surrounds the texts of a page.

    Attributes:
      reach: for each text the first and the last training row of its documents that is told, and
        whether the documents go on before and behind these; None where none is known.
      said: `{row: its tokens as text}`.
    """

    reach: list[tuple[int, int, bool, bool] | None]
    said: dict[int, str]


def documents(run: Run, row_U: np.ndarray) -> Documents:
    """The documents of some training rows, as far as a page holds them.

    A sequence that is of several documents is followed back through its first, on through its last.

    Args:
      run: of text.
      row_U: training rows.
    """
    text = run.corpus.train
    if not isinstance(text, TextExamples) or not len(row_U):
        return Documents([None] * len(row_U), {})
    first_N, last_N = _extents(run)
    first_U, last_U, size_N, reach = first_N[row_U], last_N[row_U], text.sizes_N, _REACH
    while True:
        low_U, high_U = np.maximum(first_U, row_U - reach), np.minimum(last_U, row_U + reach)
        parts = [np.arange(*ends) for ends in zip(low_U, high_U + 1, strict=True)]
        rows = np.unique(np.concatenate([row_U[:0], *(part for part in parts if len(part) > 1)]))
        if reach == 1 or size_N[rows].sum() <= _MOST:
            break
        reach //= 2
    sizes = size_N[rows].tolist()
    said = {
        # From the second token on to the one that is predicted last, as texts themselves are shown.
        row: run.corpus.tokenizer.decode_lines(
            np.append(text.inputs_NxT[row, 1:size], text.labels_NxT[row, size - 1])
        )
        for row, size in zip(rows.tolist(), sizes, strict=True)
    }
    columns = (low_U, high_U, low_U > first_U, high_U < last_U)
    return Documents(list(zip(*(c.tolist() for c in columns), strict=True)), said)


@functools.lru_cache(maxsize=1)
def _extents(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """First row of each row's first document and last row of its last, `[N]` each.

    The row itself where the rows of a document do not follow each other. Held, as every question to
    a server needs them.
    """
    text: Any = run.corpus.train
    spans, row_N = text.spans, np.arange(len(text))
    pair_Jx2 = np.unique(np.stack([spans.document_P, spans.row_P], axis=1), axis=0)
    document_D, start_D, count_D = np.unique(pair_Jx2[:, 0], return_index=True, return_counts=True)
    first_D, last_D = pair_Jx2[start_D, 1], pair_Jx2[start_D + count_D - 1, 1]
    whole_D = last_D - first_D + 1 == count_D
    ends = np.searchsorted(spans.row_P, [row_N, row_N + 1])
    at_N = np.searchsorted(document_D, spans.document_P[ends[0]])
    to_N = np.searchsorted(document_D, spans.document_P[ends[1] - 1])
    return (
        np.where(whole_D[at_N], first_D[at_N], row_N),
        np.where(whole_D[to_N], last_D[to_N], row_N),
    )
