"""Packed sequences in memory, with ids that hash their content, and with their origin."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stride_jax.data.documents import Source
from stride_jax.data.packing import Packed, Spans
from stride_jax.data.tokens import Tokenizer
from stride_jax.examples import Examples
from stride_jax.ids import content_ids


@dataclasses.dataclass(frozen=True)
class TextExamples:
    """N sequences of one split; their `examples` are what models and methods take.

    Attributes:
      inputs_NxT: token ids, int32, padded with the mark of a document's start.
      labels_NxT: the following tokens, int32.
      weights_NxT: weight of each label in the loss, float32; 0 for padding.
      ids: content hashes, `[N]` strings.
      spans: passage and source of each token.
      sources: all documents of the corpus, so that splits number them alike.
    """

    inputs_NxT: np.ndarray
    labels_NxT: np.ndarray
    weights_NxT: np.ndarray
    ids: np.ndarray
    spans: Spans
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        shapes = {a.shape for a in (self.inputs_NxT, self.labels_NxT, self.weights_NxT)}
        if len(shapes) != 1 or len(self.ids) != len(self.inputs_NxT):
            raise ValueError(
                f"inputs, labels and weights must have one shape, and one id per row: shapes are "
                f"{sorted(shapes)}, with {len(self.ids)} ids"
            )

    def __len__(self) -> int:
        return len(self.inputs_NxT)

    @property
    def examples(self) -> Examples:
        """Inputs, labels and ids alone; −1 where a label does not count."""
        labels_NxT = np.where(self.weights_NxT > 0, self.labels_NxT, -1).astype(np.int32)
        return Examples(self.inputs_NxT, labels_NxT, self.ids)

    @property
    def sizes_N(self) -> np.ndarray:
        """Inputs that are not padding, which come first, `[N]` int64."""
        return self.spans.sizes(len(self))

    def take(self, rows: np.ndarray) -> "TextExamples":
        """Some sequences, in the order given."""
        return TextExamples(
            self.inputs_NxT[rows],
            self.labels_NxT[rows],
            self.weights_NxT[rows],
            self.ids[rows],
            self.spans.take(rows),
            self.sources,
        )

    def followed_by(self, other: "TextExamples") -> "TextExamples":
        """These sequences followed by the other's, whose sources begin with these ones'."""
        shifted = (other.spans.row_P + np.int32(len(self)), *other.spans.columns()[1:])
        both = zip(self.spans.columns(), shifted, strict=True)
        return TextExamples(
            np.concatenate([self.inputs_NxT, other.inputs_NxT]),
            np.concatenate([self.labels_NxT, other.labels_NxT]),
            np.concatenate([self.weights_NxT, other.weights_NxT]),
            np.concatenate([self.ids, other.ids]),
            Spans(*(np.concatenate(columns) for columns in both)),
            other.sources,
        )

    def references(self, row: int) -> list[str]:
        """Passages of a sequence, such as `["kjv Genesis 1:30-31", "kjv Genesis 2:1"]`."""
        spans = self.spans.of(row)
        passages = zip(spans.document_P.tolist(), spans.passage_P.tolist(), strict=True)
        names = []
        for document, group in itertools.groupby(passages, key=lambda pair: pair[0]):
            source = self.sources[document]
            labels = [source.labels[passage] for _, passage in group]
            ends = labels[0] if labels[0] == labels[-1] else f"{labels[0]}-{labels[-1]}"
            names.append(f"{source.id}:{ends}" if ends else source.id)
        return names

    def origins_of(self, row: int) -> list[dict[str, Any]]:
        """The documents of a sequence: `id`, and `metadata`."""
        own = dict.fromkeys(self.spans.of(row).document_P.tolist())
        return [{"id": self.sources[i].id, "metadata": dict(self.sources[i].metadata)} for i in own]

    def origins(self, field: str) -> np.ndarray:
        """What most of each sequence's tokens come from, `[N]` strings; empty for nothing known.

        Args:
          field: `document` for the document's name, or a name in the sources' metadata, such as
            `book`.

        Raises:
          ValueError: no training text has it; the message lists those there are.
        """
        own = [self.sources[i] for i in np.unique(self.spans.document_P).tolist()]
        known = dict.fromkeys(["document", *(name for s in own for name in s.metadata)])
        if field not in known:
            raise ValueError(
                f"groups={field!r}, but these texts have no such column: use one of "
                f"{', '.join(known)}"
            )
        names = [s.id if field == "document" else s.metadata.get(field) for s in self.sources]
        values, code_J = np.unique(
            ["" if name is None else str(name) for name in names], return_inverse=True
        )
        spans = self.spans
        cell_P = spans.row_P.astype(np.int64) * len(values) + code_J[spans.document_P]
        cells, place_P = np.unique(cell_P, return_inverse=True)
        tokens = np.bincount(place_P, spans.stop_P - spans.start_P)
        rows, codes = np.divmod(cells, len(values))
        # In ascending order of tokens, so that each row's largest is written last.
        order = np.argsort(tokens, kind="stable")
        origin_N = np.full(len(self), "", values.dtype)
        origin_N[rows[order]] = values[codes[order]]
        return origin_N

    def texts(self, tokenizer: Tokenizer) -> list[str]:
        """Text of each sequence's inputs without padding; each document starts a new line."""
        rows = zip(self.inputs_NxT, self.sizes_N, strict=True)
        return [tokenizer.decode_lines(row[:size]) for row, size in rows]


def passage_keys(spans: Spans, sources: Sequence[Source]) -> list[tuple[int, str]]:
    """(sequence, key) of every passage, such as `Genesis 1:1`, the same in any translation."""
    keys = []
    columns = (spans.row_P, spans.document_P, spans.passage_P)
    for row, document, passage in zip(*(c.tolist() for c in columns), strict=True):
        label = sources[document].labels[passage]
        key = sources[document].key
        keys.append((row, f"{key}:{label}" if label else key))
    return keys


def named(parts: Mapping[str, Packed], sources: tuple[Source, ...]) -> dict[str, TextExamples]:
    """Splits whose sequences have their content hashes.

    All splits are named together, so copies in different splits have different ids.

    Warns:
      UserWarning: with the number of sequences that repeat another, if any do.
    """
    columns = [
        np.concatenate(arrays)
        for arrays in zip(
            *((p.inputs_NxT, p.labels_NxT, p.weights_NxT) for p in parts.values()), strict=True
        )
    ]
    bounds = np.cumsum([len(part) for part in parts.values()])[:-1]
    ids = np.split(content_ids(*columns), bounds)
    return {
        role: TextExamples(p.inputs_NxT, p.labels_NxT, p.weights_NxT, own, p.spans, sources)
        for (role, p), own in zip(parts.items(), ids, strict=True)
    }
