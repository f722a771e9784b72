"""Documents to sequences of T tokens, and back to the passages they came from.

Every document is preceded by the mark of its start, `bos`. A sequence's labels are the tokens that
follow its inputs; the last label is the true following token where there is one, so no prediction
is lost at a cut.
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
      tokens_S: int32.
      document_S: which document a token is of, int32; its mark included.
      passage_S: which of the document's passages, int32; the mark is of the first.
      starts_D: place of each document's mark, int64.
    """

    tokens_S: np.ndarray
    document_S: np.ndarray
    passage_S: np.ndarray
    starts_D: np.ndarray


@dataclasses.dataclass(frozen=True)
class Spans:
    """Which tokens of which sequence are of which passage.

    The spans of a sequence, in order, cover its inputs exactly once, padding excluded.

    Attributes:
      row_P: sequence, ascending.
      start_P, stop_P: inputs `[row, start:stop]`.
      document_P: number of the document.
      passage_P: number of the passage in it.
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
        """The spans of some sequences, which are numbered anew in the order given."""
        first, last = np.searchsorted(self.row_P, [rows, rows + 1])
        counts = last - first
        # Consecutive places from each first one, as many as the row has spans.
        kept = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        new_row_P = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
        return Spans(new_row_P, *(column[kept] for column in self.columns()[1:]))

    def sizes(self, count: int) -> np.ndarray:
        """`[count]` int64 tokens held by each of `count` sequences."""
        return np.bincount(self.row_P, self.stop_P - self.start_P, count).astype(np.int64)

    def columns(self) -> tuple[np.ndarray, ...]:
        """The five arrays, in the order of the attributes."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))


@dataclasses.dataclass(frozen=True)
class Packed:
    """Sequences of T tokens.

    Attributes:
      inputs_NxT: int32, padded with `bos`.
      labels_NxT: int32, the following tokens, padded likewise.
      weights_NxT: float32; 0 where there is no following token, and, unless asked for, where it is
        the next document's mark, which nothing before it foretells.
      spans: what each sequence holds.
    """

    inputs_NxT: np.ndarray
    labels_NxT: np.ndarray
    weights_NxT: np.ndarray
    spans: Spans

    def __len__(self) -> int:
        return len(self.inputs_NxT)

    @property
    def sizes_N(self) -> np.ndarray:
        """`[N]` int64 inputs that are not padding: they come first."""
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
        """The same, with documents counted from `first`: to stand beside others."""
        spans = dataclasses.replace(self.spans, document_P=self.spans.document_P + np.int32(first))
        return dataclasses.replace(self, spans=spans)


def tokenise(documents: Sequence[Document], tokenizer: Tokenizer) -> Tokenised:
    """Tokens of documents with the passage each is of.

    A token is of the passage in which its first character lies.
    """
    tokens, passages, lengths = [], [], []
    mark = np.zeros(1, np.int32)
    encoded = tokenizer.encode_all([document.text for document in documents])
    for document, (ids, characters) in zip(documents, encoded, strict=True):
        passage = np.searchsorted(document.starts, characters, side="right") - 1
        tokens += [mark + tokenizer.bos_id, ids]
        passages += [mark, passage.astype(np.int32)]
        lengths.append(len(ids) + 1)
    return Tokenised(
        tokens_S=np.concatenate([mark[:0], *tokens]),
        document_S=np.repeat(np.arange(len(documents), dtype=np.int32), lengths),
        passage_S=np.concatenate([mark[:0], *passages]),
        starts_D=np.cumsum([0, *lengths])[:-1],
    )


def pack_stream(
    tokenised: Tokenised, length: int, bos_id: int, *, predict_bos: bool = False
) -> Packed:
    """Cut the row of all tokens into sequences of T: for pre-training.

    Every token is the input of exactly one sequence and every token but the first is the label of
    one. The last sequence is padded, and left out if it has no following token to predict.

    Args:
      tokenised: documents' tokens.
      length: T, at least 2.
      bos_id: the mark's token id, and the padding.
      predict_bos: weight 1 also where the label is the next document's mark.

    Raises:
      ValueError: `length` is too small, or there are no tokens to predict.

    >>> tokens, documents = np.array([9, 1, 2, 9, 3]), np.array([0, 0, 0, 1, 1])
    >>> packed = pack_stream(Tokenised(tokens, documents, np.zeros(5), np.array([0, 3])), 2, 9)
    >>> packed.inputs_NxT.tolist(), packed.labels_NxT.tolist(), packed.weights_NxT.tolist()
    ([[9, 1], [2, 9]], [[1, 2], [9, 3]], [[1.0, 1.0], [0.0, 1.0]])
    """
    size = len(tokenised.tokens_S)
    # The last token has nothing after it: alone in a sequence, it would be a row of weight 0.
    starts_N = np.arange(0, max(size - 1, 0), _checked(length))
    return _cut(tokenised, starts_N, np.full(len(starts_N), size), length, bos_id, predict_bos)


def pack_documents(tokenised: Tokenised, length: int, bos_id: int) -> Packed:
    """One sequence a document, cut to T tokens or padded: for queries such as verses.

    Sequence i is document i. What lies beyond T inputs is left out (`cut_documents` counts it).
    No sequence predicts the next document's mark.

    Args:
      tokenised: documents' tokens.
      length: T, at least 2.
      bos_id: the mark's token id, and the padding.

    Raises:
      ValueError: `length` is too small, or there are no tokens to predict.
    """
    starts_N = tokenised.starts_D
    ends_N = np.append(starts_N[1:], len(tokenised.tokens_S))
    return _cut(tokenised, starts_N, ends_N, _checked(length), bos_id, predict_bos=False)


def select(tokenised: Tokenised, documents: np.ndarray) -> Tokenised:
    """Tokens of some documents, which keep their numbers, in the order of the whole."""
    kept_S = np.isin(tokenised.document_S, documents)
    columns = (tokenised.tokens_S, tokenised.document_S, tokenised.passage_S)
    tokens_S, document_S, passage_S = (column[kept_S] for column in columns)
    starts_D = np.flatnonzero(np.diff(document_S, prepend=-1))
    return Tokenised(tokens_S, document_S, passage_S, starts_D)


def cut_documents(tokenised: Tokenised, length: int) -> int:
    """How many documents `pack_documents` cuts at `length`, its last label counted as kept."""
    sizes_D = np.diff(np.append(tokenised.starts_D, len(tokenised.tokens_S)))
    return int((sizes_D > length + 1).sum())


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
    """Sequences of up to T tokens from each start, whose labels lie before each end."""
    if not len(starts_N):
        raise ValueError("there are no tokens to pack: the documents hold no text")
    place_NxT = starts_N[:, None] + np.arange(length)
    held_NxT = place_NxT < ends_N[:, None]
    known_NxT = place_NxT + 1 < ends_N[:, None]
    safe = len(tokenised.tokens_S) - 1
    inputs_NxT = np.where(held_NxT, tokenised.tokens_S[np.minimum(place_NxT, safe)], bos_id)
    labels_NxT = np.where(known_NxT, tokenised.tokens_S[np.minimum(place_NxT + 1, safe)], bos_id)
    return Packed(
        inputs_NxT=inputs_NxT.astype(np.int32),
        labels_NxT=labels_NxT.astype(np.int32),
        # No text encodes to the mark, so a label that equals it is the next document's.
        weights_NxT=(known_NxT & (predict_bos | (labels_NxT != bos_id))).astype(np.float32),
        spans=_spans(tokenised, place_NxT, held_NxT),
    )


def _spans(tokenised: Tokenised, place_NxT: np.ndarray, held_NxT: np.ndarray) -> Spans:
    """Runs of tokens of one passage within a sequence."""
    row_S, start_S = np.nonzero(held_NxT)
    place_S = place_NxT[held_NxT]
    names_Sx3 = np.stack(
        [row_S, tokenised.document_S[place_S], tokenised.passage_S[place_S]], axis=1
    )
    new_S = np.append(True, (np.diff(names_Sx3, axis=0) != 0).any(axis=1))
    first_P = np.flatnonzero(new_S)
    last_P = np.append(first_P[1:], len(new_S)) - 1
    row_P, document_P, passage_P = names_Sx3[first_P].T
    columns = (row_P, start_S[first_P], start_S[last_P] + 1, document_P, passage_P)
    return Spans(*(column.astype(np.int32) for column in columns))
