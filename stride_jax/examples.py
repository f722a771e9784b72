"""Examples, checked at the door and named by what they contain.

Arrays may be memory-mapped: they stay so, and are read chunk by chunk.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax import inputs as trees
from stride_jax.ids import as_ids, as_keys, content_ids, copy_keys, row_chunks


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Examples:
    """N labelled examples: training examples or queries.

    Lists and JAX arrays become NumPy arrays; several inputs stay the tree that the model reads.

    Attributes:
      inputs: `[N, ...]` as the model takes them: numbers, or token ids; or a dict or tuple (any
        pytree) of such arrays, as `{"tokens": [N, T], "mask": [N, T]}`. A list is one array.
      labels: `[N]` integer classes, or `[N, T]` next tokens, −1 where one does not count; numbers
        where the model's objective reads them (`taps.with_objective`), floating `[N]`, `[N, C]` or
        `[N, T, C]`, or bool `[N, C]`.
      ids: `[N]` distinct strings; `content_ids` of inputs and labels by default.
      weights: token weights omega in [0, 1], one per label; None for ones.
      keys: `[N]` strings, one for all examples that must act as one: near copies, pieces of a
        document, a source; exact copies by default. None where every example stands alone.

    Raises:
      ValueError: lengths that differ, no example, ids that repeat, inputs that are no finite
        numbers, labels that are no classes, weights outside [0, 1], or no label that counts.

    >>> examples = Examples([[0.5, 1.0], [2.0, 3.0]], [0, 1], ["a", "b"])
    >>> len(examples), examples.take([1]).ids.tolist()
    (2, ['b'])
    >>> Examples([[0.5, 1.0]], [[0.2], [0.3]])
    Traceback (most recent call last):
    ValueError: 1 inputs, 2 labels: lengths differ; give one row of each per example
    >>> Examples({"tokens": [[5, 2], [7, 0]], "mask": [[1, 1], [1, 0]]}, [0, 1]).take([1])
    Examples(inputs {'mask': int64[1, 2], 'tokens': int64[1, 2]}, labels int64[1])
    """

    inputs: trees.Inputs
    labels: np.ndarray
    ids: np.ndarray = None  # pyright: ignore[reportAssignmentType]
    weights: np.ndarray | None = None
    keys: np.ndarray | None = None

    def __post_init__(self) -> None:
        inputs, labels = trees.as_inputs(self.inputs), trees.as_array("labels", self.labels)
        weights = None if self.weights is None else trees.as_array("weights", self.weights)
        _check_lengths(inputs, labels, self.ids, weights)
        trees.refuse_not_finite(inputs)
        labels = _as_targets(labels)
        if weights is not None:
            weights = _as_weights(weights, token_shape(labels))
        _check_labels(labels, weights)
        columns = (*trees.columns(inputs), labels)
        ids = content_ids(*columns) if self.ids is None else as_ids("ids", self.ids)
        keys = copy_keys(ids, *columns) if self.keys is None else as_keys(self.keys, ids)
        self._set(inputs, labels, ids, weights, keys)

    def _set(self, *columns: Any) -> None:
        for field, value in zip(dataclasses.fields(self), columns, strict=True):
            object.__setattr__(self, field.name, value)

    @classmethod
    def trusted(
        cls,
        inputs: trees.Inputs,
        labels: np.ndarray,
        ids: np.ndarray,
        weights: np.ndarray | None = None,
        keys: np.ndarray | None = None,
    ) -> "Examples":
        """Examples that were checked before: nothing is read, so mapped files stay on disk."""
        examples = object.__new__(cls)
        examples._set(inputs, labels, ids, weights, keys)
        return examples

    @property
    def token_shape(self) -> tuple[int, ...]:
        """`(N,)`, or `(N, T)` of sequences."""
        return token_shape(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        parts = {"inputs": self.inputs, "labels": self.labels, "weights": self.weights}
        shown = [f"{n} {trees.described(v)}" for n, v in parts.items() if v is not None]
        return f"Examples({', '.join(shown)})"

    def take(self, rows: slice | Sequence[int] | np.ndarray) -> "Examples":
        """Some of the examples: a slice, row numbers in any order, or a mask.

        Raises:
          ValueError: no row, or one row twice.
        """
        if not isinstance(rows, slice):
            rows = np.atleast_1d(rows)
            rows = rows if rows.size else rows.astype(int)  # an empty list is one of floats
        ids = self.ids[rows]
        if len(ids) == 0:
            raise ValueError(f"no row is taken of {len(self)} examples: name at least one")
        if len(set(ids.tolist())) < len(ids):
            raise ValueError(f"of {len(ids)} rows taken some repeat: name each once")
        weights = None if self.weights is None else self.weights[rows]
        keys = None if self.keys is None else self.keys[rows]
        inputs = trees.take_rows(self.inputs, rows)
        return Examples.trusted(inputs, self.labels[rows], ids, weights, keys)


def token_shape(labels: np.ndarray | jax.Array) -> tuple[int, ...]:
    """The shape of the labels as tokens: integers are one each, numbers are a token's last axis.

    >>> token_shape(np.zeros((5, 3), int)), token_shape(np.zeros((5, 3)))
    ((5, 3), (5,))
    """
    if labels.dtype.kind in "iu":
        return labels.shape
    return labels.shape[: max(1, labels.ndim - 1)]


def as_examples(
    inputs: Any,
    labels: Any,
    ids: Any = None,
    weights: Any = None,
    keys: Any = None,
    *,
    what: str = "training examples",
) -> Examples:
    """`Examples`, whose errors say what they are of: `training examples`, `queries`."""
    try:
        return Examples(inputs, labels, ids, weights, keys)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _check_lengths(
    inputs: trees.Inputs, labels: np.ndarray, ids: Any, weights: np.ndarray | None
) -> None:
    leaves = trees.named_leaves(inputs)
    parts = {**leaves, "labels": labels, "ids": ids, "weights": weights}
    lengths = {name: len(v) for name, v in parts.items() if v is not None}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
        rows = " (a list of rows is one array, a tuple several)" if type(inputs) is tuple else ""
        raise ValueError(f"{counts}: lengths differ; give one row of each per example{rows}")
    for name, leaf in leaves.items():
        if leaf.size == 0 or labels.size == 0:
            raise ValueError(
                f"{name} of shape {leaf.shape} with labels of shape {labels.shape}: empty; give at "
                "least one example"
            )
    most = 2 if labels.dtype.kind in "iu" else 3
    if labels.ndim > most:
        raise ValueError(
            f"labels of shape {labels.shape}: give classes as [N], next tokens as [N, T], or "
            "numbers as [N, C] or [N, T, C]"
        )


def _as_targets(labels: np.ndarray) -> np.ndarray:
    """Integers are classes; others numbers, finite. Bools are either, by their shape."""
    if labels.dtype.kind == "b":
        return labels.astype(np.int32 if labels.ndim == 1 else np.float32)
    if not jnp.issubdtype(labels.dtype, np.integer):
        for first, (part,) in row_chunks(labels):
            bad = ~np.isfinite(part)
            if bad.any():
                row = first + trees.first_of(bad)[0]
                raise ValueError(
                    f"labels are not finite in row {row}: drop such examples; a class that does "
                    "not count is the integer −1"
                )
    return labels


def _as_weights(weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if weights.shape != shape:
        raise ValueError(
            f"weights of shape {weights.shape} do not fit labels of shape {shape}: give one weight "
            "per label"
        )
    for first, (part,) in row_chunks(weights):
        bad = ~((part >= 0) & (part <= 1))
        if bad.any():
            at = trees.first_of(bad)
            raise ValueError(
                f"weights must lie in [0, 1], but row {first + at[0]} holds {part[at]}: divide "
                "them by the largest, and use 0 for what does not count"
            )
    return weights if isinstance(weights, np.memmap) else weights.astype(np.float32, copy=False)


def _check_labels(labels: np.ndarray, weights: np.ndarray | None) -> None:
    counts = False
    for first, (part, *omega) in row_chunks(labels, *(() if weights is None else (weights,))):
        if part.dtype.kind not in "iu":
            counts = counts or not omega or bool((omega[0] > 0).any())
            continue
        bad = (part < -1) | (part > np.iinfo(np.int32).max)
        if bad.any():
            at = trees.first_of(bad)
            raise ValueError(
                f"labels hold {part[at]} in row {first + at[0]}: classes count from 0, and −1 "
                "marks a label that does not count"
            )
        counted = part >= 0
        counts = counts or bool((counted & (omega[0] > 0) if omega else counted).any())
    if not counts:
        raise ValueError(
            "no label counts: each is −1 or has weight 0, so there is nothing to learn; label at "
            "least one example"
        )
