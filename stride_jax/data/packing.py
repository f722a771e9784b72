"""Documents to sequences of T tokens, and back to the passages they came from.

Every document is preceded by the mark of its start, `bos`. A sequence's labels are the tokens that
follow its inputs; the last label is the true following token where there is one, so no prediction
is lost at a cut.

Letters of its own: L tokens of all documents in a row, J documents, P spans.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from stride_jax.data.documents import Document
from stride_jax.data.tokens import Tokenizer


@dataclasses.dataclass(frozen=True)
class Tokenised:
    """Tokens of all documents in a row, a mark before each.

    Attributes:
      tokens_L: token ids, int32.
      document_L: number of the document that a token or its mark belongs to, int32.
      passage_L: number of the passage in the document, int32; the mark belongs to the first.
      starts_J: place of each document's mark, int64.
    """

    tokens_L: np.ndarray
    document_L: np.ndarray
    passage_L: np.ndarray
    starts_J: np.ndarray

    @property
    def sizes_J(self) -> np.ndarray:
        """Tokens of each document, its mark included, `[J]` int64."""
        return np.diff(np.append(self.starts_J, len(self.tokens_L)))


@dataclasses.dataclass(frozen=True)
class Spans:
    """The passages that the tokens of each sequence belong to.

    The spans of a sequence, in order, cover its inputs exactly once, padding excluded.

    Attributes:
      row_P: number of the sequence, ascending.
      start_P, stop_P: range of the sequence's inputs, `[row, start:stop]`.
      document_P: number of the document.
      passage_P: number of the passage in the document.
    """

    row_P: np.ndarray
    start_P: np.ndarray
    stop_P: np.ndarray
    document_P: np.ndarray
    passage_P: np.ndarray

    def of(self, row: int) -> "Spans":
        """The spans of one sequence."""
        a, b = np.searchsorted(self.row_P, [row, row + 1])
        return Spans(*(column[a:b] for column in self.columns()))

    def take(self, rows: np.ndarray) -> "Spans":
        """The spans of some sequences, renumbered in the order given."""
        first, last = np.searchsorted(self.row_P, [rows, rows + 1])
        counts = last - first
        # Consecutive places from each first one, as many as the row has spans.
        places = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        new_row_P = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
        return Spans(new_row_P, *(column[places] for column in self.columns()[1:]))

    def sizes(self, count: int) -> np.ndarray:
        """Tokens held by each of `count` sequences, `[count]` int64."""
        return np.bincount(self.row_P, self.stop_P - self.start_P, count).astype(np.int64)

    def columns(self) -> tuple[np.ndarray, ...]:
        """The five arrays, in the order of the attributes."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))


@dataclasses.dataclass(frozen=True)
class Packed:
    """Sequences of T tokens.

    Attributes:
      inputs_NxT: token ids, int32, padded with `bos`.
      labels_NxT: the following tokens, int32, padded likewise.
      weights_NxT: 1 where a label counts, float32; 0 where there is no following token, and, unless
        `predict_bos`, where it is the next document's mark, which the text before does not predict.
      spans: passages that each sequence holds.
    """

    inputs_NxT: np.ndarray
    labels_NxT: np.ndarray
    weights_NxT: np.ndarray
    spans: Spans

    def __len__(self) -> int:
        return len(self.inputs_NxT)

    @property
    def sizes_N(self) -> np.ndarray:
        """Inputs that are not padding, which come first, `[N]` int64."""
        return self.spans.sizes(len(self))

    def take(self, rows: np.ndarray) -> "Packed":
        """Some sequences, in the order given."""
        return Packed(
            self.inputs_NxT[rows],
            self.labels_NxT[rows],
            self.weights_NxT[rows],
            self.spans.take(rows),
        )

    def renumbered(self, first: int) -> "Packed":
        """The same sequences with documents numbered from `first`, to be joined to others."""
        spans = dataclasses.replace(self.spans, document_P=self.spans.document_P + np.int32(first))
        return dataclasses.replace(self, spans=spans)


def tokenise(
    documents: Sequence[Document], tokenizer: Tokenizer, *, special: bool = False
) -> Tokenised:
    """Tokens of documents, each with its passage: the one that holds its first character.

    Args:
      documents: texts.
      tokenizer: their tokenizer.
      special: whether texts bring marks of their own, as those of chat templates do: what spells a
        special token is one, and none is put before a document.
    """
    tokens, passages, lengths = [], [], []
    mark = np.zeros(0 if special else 1, np.int32)
    encoded = tokenizer.encode_all([document.text for document in documents], special=special)
    for document, (ids, characters) in zip(documents, encoded, strict=True):
        passage = np.searchsorted(document.starts, characters, side="right") - 1
        tokens += [mark + tokenizer.bos_id, ids]
        passages += [mark, passage.astype(np.int32)]
        lengths.append(len(ids) + len(mark))
    return Tokenised(
        tokens_L=np.concatenate([mark[:0], *tokens]),
        document_L=np.repeat(np.arange(len(documents), dtype=np.int32), lengths),
        passage_L=np.concatenate([mark[:0], *passages]),
        starts_J=np.cumsum([0, *lengths])[:-1],
    )


def pack_stream(
    tokenised: Tokenised, length: int, bos_id: int, *, predict_bos: bool = False
) -> Packed:
    """Cut the row of all tokens into sequences of T, for pre-training.

    Every token is the input of exactly one sequence and every token but the first is the label of
    one. The last sequence is padded, or left out if it has no token to predict.

    Args:
      tokenised: tokens of the documents.
      length: T, at least 2.
      bos_id: token id of the mark and of the padding.
      predict_bos: whether a label that is the next document's mark counts.

    Raises:
      ValueError: `length` is too small, or there are no tokens to predict.

    >>> tokens, documents = np.array([9, 1, 2, 9, 3]), np.array([0, 0, 0, 1, 1])
    >>> packed = pack_stream(Tokenised(tokens, documents, np.zeros(5), np.array([0, 3])), 2, 9)
    >>> packed.inputs_NxT.tolist(), packed.labels_NxT.tolist(), packed.weights_NxT.tolist()
    ([[9, 1], [2, 9]], [[1, 2], [9, 3]], [[1.0, 1.0], [0.0, 1.0]])
    """
    size = len(tokenised.tokens_L)
    # No token follows the last one: alone in a sequence, it would be a row of weight 0.
    starts_N = np.arange(0, max(size - 1, 0), _checked(length))
    return _cut(tokenised, starts_N, np.full(len(starts_N), size), length, bos_id, predict_bos)


def pack_documents(tokenised: Tokenised, length: int, bos_id: int) -> Packed:
    """One sequence per document, cut to T tokens or padded, for queries such as verses.

    Sequence i is document i. Tokens beyond T inputs are left out. No sequence predicts the next
    document's mark.

    Args:
      tokenised: tokens of the documents.
      length: T, at least 2.
      bos_id: token id of the mark and of the padding.

    Raises:
      ValueError: `length` is too small, or there are no tokens to predict.
    """
    starts_N = tokenised.starts_J
    ends_N = np.append(starts_N[1:], len(tokenised.tokens_L))
    return _cut(tokenised, starts_N, ends_N, _checked(length), bos_id, predict_bos=False)


def select(tokenised: Tokenised, documents: np.ndarray) -> Tokenised:
    """Tokens of some documents, in their order, without renumbering."""
    chosen_L = np.isin(tokenised.document_L, documents)
    columns = (tokenised.tokens_L, tokenised.document_L, tokenised.passage_L)
    tokens_L, document_L, passage_L = (column[chosen_L] for column in columns)
    starts_J = np.flatnonzero(np.diff(document_L, prepend=-1))
    return Tokenised(tokens_L, document_L, passage_L, starts_J)


def _checked(length: int) -> int:
    if length < 2:
        raise ValueError(f"length={length} must be at least 2: a mark and a token to predict from")
    return length


def _cut(
    tokenised: Tokenised,
    starts_N: np.ndarray,
    ends_N: np.ndarray,
    length: int,
    bos_id: int,
    predict_bos: bool,
) -> Packed:
    """Sequences of up to T tokens from each start on, with labels before each end."""
    if not len(starts_N):
        raise ValueError("there are no tokens to pack: give documents that hold text")
    place_NxT = starts_N[:, None] + np.arange(length)
    held_NxT = place_NxT < ends_N[:, None]
    known_NxT = place_NxT + 1 < ends_N[:, None]
    safe = len(tokenised.tokens_L) - 1
    inputs_NxT = np.where(held_NxT, tokenised.tokens_L[np.minimum(place_NxT, safe)], bos_id)
    labels_NxT = np.where(known_NxT, tokenised.tokens_L[np.minimum(place_NxT + 1, safe)], bos_id)
    return Packed(
        inputs_NxT=inputs_NxT.astype(np.int32),
        labels_NxT=labels_NxT.astype(np.int32),
        # No text encodes to the mark, so a label that equals it is the next document's.
        weights_NxT=(known_NxT & (predict_bos | (labels_NxT != bos_id))).astype(np.float32),
        spans=_spans(tokenised, place_NxT, held_NxT),
    )


def _spans(tokenised: Tokenised, place_NxT: np.ndarray, held_NxT: np.ndarray) -> Spans:
    """Runs of tokens of one passage within a sequence."""
    row_L, start_L = np.nonzero(held_NxT)
    place_L = place_NxT[held_NxT]
    names_Lx3 = np.stack(
        [row_L, tokenised.document_L[place_L], tokenised.passage_L[place_L]], axis=1
    )
    new_L = np.append(True, (np.diff(names_Lx3, axis=0) != 0).any(axis=1))
    first_P = np.flatnonzero(new_L)
    last_P = np.append(first_P[1:], len(new_L)) - 1
    row_P, document_P, passage_P = names_Lx3[first_P].T
    columns = (row_P, start_L[first_P], start_L[last_P] + 1, document_P, passage_P)
    return Spans(*(column.astype(np.int32) for column in columns))
