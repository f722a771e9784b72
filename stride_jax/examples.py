"""Examples, checked at the door and named by what they contain.

Arrays may be memory-mapped: they stay so, and are read chunk by chunk.
"""

import dataclasses
import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

# Bytes of an array that is read at once.
_CHUNK = 2**22
# Integers up to here are float64 numbers.
_EXACT = 2**53


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Examples:
    """N labelled examples: training examples or queries.

    Lists and JAX arrays become NumPy arrays.

    Attributes:
      inputs: `[N, ...]` as the model takes them: numbers, or token ids.
      labels: `[N]` integer classes, or `[N, T]` next tokens, −1 where one does not count.
      ids: `[N]` distinct strings; `content_ids` of inputs and labels by default.
      weights: token weights omega in [0, 1] like `labels`; None for ones.

    Raises:
      ValueError: lengths that differ, no example, ids that repeat, inputs that are no finite
        numbers, labels that are no classes, weights outside [0, 1], or no label that counts.

    >>> examples = Examples([[0.5, 1.0], [2.0, 3.0]], [0, 1], ["a", "b"])
    >>> len(examples), examples.take([1]).ids.tolist()
    (2, ['b'])
    >>> Examples([[0.5, 1.0]], [0.0])
    Traceback (most recent call last):
    ValueError: labels of dtype float64 are no classes: use labels.astype(int)
    """

    inputs: np.ndarray
    labels: np.ndarray
    ids: np.ndarray = None  # pyright: ignore[reportAssignmentType]
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        inputs, labels = _array("inputs", self.inputs), _array("labels", self.labels)
        weights = None if self.weights is None else _array("weights", self.weights)
        _check_lengths(inputs, labels, self.ids, weights)
        _check_inputs(inputs)
        labels = _as_classes(labels)
        if weights is not None:
            weights = _as_weights(weights, labels.shape)
        _check_labels(labels, weights)
        ids = content_ids(inputs, labels) if self.ids is None else as_ids("ids", self.ids)
        self._set(inputs, labels, ids, weights)

    def _set(self, *columns: np.ndarray | None) -> None:
        for field, value in zip(dataclasses.fields(self), columns, strict=True):
            object.__setattr__(self, field.name, value)

    @classmethod
    def trusted(
        cls, inputs: np.ndarray, labels: np.ndarray, ids: np.ndarray, weights: np.ndarray | None
    ) -> "Examples":
        """Examples that were checked before: nothing is read, so mapped files stay on disk."""
        examples = object.__new__(cls)
        examples._set(inputs, labels, ids, weights)
        return examples

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        parts = {"inputs": self.inputs, "labels": self.labels, "weights": self.weights}
        shown = [f"{n} {v.dtype}{list(v.shape)}" for n, v in parts.items() if v is not None]
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
        return Examples.trusted(self.inputs[rows], self.labels[rows], ids, weights)


def as_examples(
    inputs: Any,
    labels: Any,
    ids: Any = None,
    weights: Any = None,
    *,
    what: str = "training examples",
) -> Examples:
    """`Examples`, whose errors say what they are of: `training examples`, `queries`."""
    try:
        return Examples(inputs, labels, ids, weights)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _array(name: str, value: Any) -> np.ndarray:
    """As NumPy, memory-mapped as before."""
    if type(value) in (np.ndarray, np.memmap):
        array = value
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ValueError(
                f"{name} are ragged ({error}): pad every row to one length, with labels of −1 "
                "where nothing counts"
            ) from error
    if array.ndim == 0 and array.dtype.kind != "O":
        raise ValueError(
            f"{name} are a single {array.dtype}: the first axis counts examples, so give one "
            "example as [example]"
        )
    if array.dtype.kind in "US":
        raise ValueError(
            f"{name} are strings, of dtype {array.dtype}: give numbers; for text, the ids of its "
            "tokens"
        )
    if not _is_real(array.dtype):
        raise ValueError(
            f"{name} of {type(value).__name__} with dtype {array.dtype} are no array of real "
            "numbers: stack them into one of shape [N, ...]"
        )
    return array


def _is_real(dtype: np.dtype) -> bool:
    # NumPy alone does not know bfloat16 for a number.
    return any(jnp.issubdtype(dtype, kind) for kind in (np.integer, np.floating, np.bool_))


def _check_lengths(
    inputs: np.ndarray, labels: np.ndarray, ids: Any, weights: np.ndarray | None
) -> None:
    parts = {"inputs": inputs, "labels": labels, "ids": ids, "weights": weights}
    lengths = {name: len(v) for name, v in parts.items() if v is not None}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise ValueError(f"{counts}: lengths differ; give one row of each per example")
    if inputs.size == 0 or labels.size == 0:
        raise ValueError(
            f"inputs of shape {inputs.shape} with labels of shape {labels.shape}: empty; give at "
            "least one example"
        )
    if labels.ndim > 2:
        raise ValueError(
            f"labels of shape {labels.shape}: give classes as [N], or next tokens as [N, T]"
        )


def _chunks(*arrays: np.ndarray) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """Rows of arrays of one length, as many as fit a chunk, with the first row's number."""
    each = max(1, *(v[:1].nbytes for v in arrays))
    step = max(1, _CHUNK // each)
    for first in range(0, len(arrays[0]), step):
        yield first, tuple(np.asarray(v[first : first + step]) for v in arrays)


def _first(bad: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))


def _check_inputs(inputs: np.ndarray) -> None:
    if not jnp.issubdtype(inputs.dtype, np.floating):
        return
    for first, (part,) in _chunks(inputs):
        bad = ~np.isfinite(part)
        if bad.any():
            at = _first(bad)
            raise ValueError(
                f"inputs are not finite in row {first + at[0]}, which holds {part[at]}: drop "
                "such examples or fix their values"
            )


def _as_classes(labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind == "b":
        return labels.astype(np.int32)
    if not jnp.issubdtype(labels.dtype, np.integer):
        for first, (part,) in _chunks(labels):
            bad = ~np.isfinite(part)
            if bad.any():
                raise ValueError(
                    f"labels are not finite in row {first + _first(bad)[0]}: use integers, and −1 "
                    "where a label does not count"
                )
        raise ValueError(f"labels of dtype {labels.dtype} are no classes: use labels.astype(int)")
    return labels


def _as_weights(weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if weights.shape != shape:
        raise ValueError(
            f"weights of shape {weights.shape} do not fit labels of shape {shape}: give one weight "
            "per label"
        )
    for first, (part,) in _chunks(weights):
        bad = ~((part >= 0) & (part <= 1))
        if bad.any():
            at = _first(bad)
            raise ValueError(
                f"weights must lie in [0, 1], but row {first + at[0]} holds {part[at]}: divide "
                "them by the largest, and use 0 for what does not count"
            )
    return weights if isinstance(weights, np.memmap) else weights.astype(np.float32, copy=False)


def _check_labels(labels: np.ndarray, weights: np.ndarray | None) -> None:
    counts = False
    for first, (part, *omega) in _chunks(labels, *(() if weights is None else (weights,))):
        bad = (part < -1) | (part > np.iinfo(np.int32).max)
        if bad.any():
            at = _first(bad)
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


def as_ids(name: str, ids: Any) -> np.ndarray:
    """Names as an array of distinct strings.

    Raises:
      ValueError: names that repeat, or an array of another shape than `[N]`.

    >>> as_ids("ids", [3, 1]).tolist()
    ['3', '1']
    """
    array = np.asarray(ids)
    if array.dtype.kind == "O":
        array = np.array([str(i) for i in array.reshape(-1)]).reshape(array.shape)
    array = array.astype(str, copy=False)
    if array.ndim != 1:
        raise ValueError(f"{name} of shape {array.shape}: give one name per example, [N]")
    counts = Counter(array.tolist())
    if extra := len(array) - len(counts):
        first = next(i for i, count in counts.items() if count > 1)
        raise ValueError(
            f"{extra} of {len(array)} {name} repeat another, first {first!r}: give each example a "
            "name of its own, or none, for names by content"
        )
    return array


def content_ids(*columns: Sequence | np.ndarray) -> np.ndarray:
    """Name every example by a hash of its content.

    Values and shapes count, not dtypes or memory layouts: integers and floats of equal value give
    one id. The id does not depend on the example's place, so an index survives reordering and
    appending. The r-th copy of a content (r > 0) gets the hash of (content, r): copies are
    interchangeable, so the set of ids is the same in any order.

    Args:
      *columns: arrays or sequences of length N whose rows together make an example's content:
        real numbers or strings.

    Returns:
      `[N]` array of 16-digit hexadecimal strings, all distinct.

    Raises:
      ValueError: the columns differ in length, or hold something else.

    Warns:
      UserWarning: with the number of duplicates, if there are any.

    >>> content_ids(np.array([[1, 2], [3, 4]]), np.array([0, 1])).tolist()
    ['0d2eed0be47abe90', 'b752a4a0cd62a128']
    >>> content_ids([[1.0, 2.0], [3.0, 4.0]], [False, True]).tolist()
    ['0d2eed0be47abe90', 'b752a4a0cd62a128']
    """
    lengths = {len(column) for column in columns}
    if len(lengths) != 1:
        raise ValueError(f"columns of one example table differ in length: {sorted(lengths)}")
    copies: Counter[bytes] = Counter()
    ids = []
    encoded = (_encoded_rows(_column(column)) for column in columns)
    for parts in zip(*encoded, strict=True):
        digest = hashlib.blake2b(b"".join(parts), digest_size=8)
        key = digest.digest()
        if before := copies[key]:
            digest.update(f"copy {before}".encode())
        copies[key] += 1
        ids.append(digest.hexdigest())
    if duplicates := len(ids) - len(copies):
        warnings.warn(
            f"{duplicates} of {len(ids)} examples repeat another's content; each copy has an id of "
            "its own, and their influence is shared out among them arbitrarily",
            stacklevel=2,
        )
    return np.array(ids, dtype="U16")


def _column(column: Any) -> np.ndarray | list[np.ndarray]:
    """One array, or one per row where rows differ in shape or are strings of any length."""
    strings = isinstance(column, (list, tuple)) and any(isinstance(c, (str, bytes)) for c in column)
    if not strings:
        try:
            array = np.asarray(column)
        except ValueError:  # ragged
            array = np.array(None)
        if array.dtype.kind != "O":
            return array
    plain = (row.tolist() if isinstance(row, np.ndarray) else row for row in column)
    return [np.asarray(row) for row in plain]


def _encoded_rows(column: np.ndarray | list[np.ndarray]) -> Iterator[bytes]:
    """Bytes that two rows share if and only if their shapes and values are equal."""
    if isinstance(column, list):
        for row in column:
            yield from _encoded(row[None])
    else:
        for _, (part,) in _chunks(column):
            yield from _encoded(part)


def _encoded(part: np.ndarray) -> Iterator[bytes]:
    shape = part.shape[1:]
    if part.dtype.kind in "US":
        for row in part.reshape(len(part), -1).tolist():
            cells = [cell if isinstance(cell, bytes) else cell.encode() for cell in row]
            yield b"".join([f"s{shape}".encode(), *(b"%d:%b" % (len(c), c) for c in cells)])
        return
    if not _is_real(part.dtype):
        raise ValueError(
            f"values of dtype {part.dtype} can't be hashed: give real numbers or strings"
        )
    # −0.0 + 0.0 is 0.0, and all NaNs become one.
    values = np.ascontiguousarray(part, "<f8").reshape(len(part), -1) + 0.0
    values[np.isnan(values)] = np.nan
    head, width, flat = f"n{shape}".encode(), values.shape[1] * 8, values.tobytes()
    wide = np.zeros(len(part), bool)
    if part.dtype.kind in "iu" and part.dtype.itemsize == 8:
        rows = part.reshape(len(part), -1)
        wide = np.asarray(((rows > _EXACT) | (rows < -_EXACT)).any(axis=1))
    for i in range(len(part)):
        row = head + flat[i * width : (i + 1) * width]
        yield row + _remainder(part[i], values[i]) if wide[i] else row


def _remainder(integers: np.ndarray, rounded: np.ndarray) -> bytes:
    """What float64 loses of large integers; nothing where it loses nothing."""
    pairs = zip(integers.reshape(-1).tolist(), rounded.tolist(), strict=True)
    lost = [whole - int(near) for whole, near in pairs]
    return f"r{lost}".encode() if any(lost) else b""
