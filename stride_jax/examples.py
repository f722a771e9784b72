"""Examples in memory, named by what they contain."""

import dataclasses
import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Examples:
    """N labelled examples of one split.

    Attributes:
      inputs: `[N, ...]` as the model takes them: float32, or int32 tokens.
      labels: `[N]` int32 classes, or `[N, T]` next tokens, −1 where one does not count.
      ids: `[N]` strings, content hashes.
    """

    inputs: np.ndarray
    labels: np.ndarray
    ids: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.inputs) == len(self.labels) == len(self.ids):
            raise ValueError(
                f"inputs, labels and ids differ in length: {len(self.inputs)}, "
                f"{len(self.labels)}, {len(self.ids)}"
            )

    def __len__(self) -> int:
        return len(self.labels)


def content_ids(*columns: Sequence | np.ndarray) -> np.ndarray:
    """Name every example by a hash of its content.

    The id does not depend on the example's place, so an index survives reordering and appending.
    The r-th copy of a content (r > 0) gets the hash of (content, r): copies are interchangeable, so
    the set of ids is the same in any order.

    Args:
      *columns: arrays or sequences of length N whose rows together make an example's content.

    Returns:
      `[N]` array of 16-digit hexadecimal strings, all distinct.

    Raises:
      ValueError: the columns differ in length.

    Warns:
      UserWarning: with the number of duplicates, if there are any.

    >>> content_ids(np.array([[1, 2], [3, 4]]), np.array([0, 1])).tolist()
    ['2816123644d719a4', '27014f4eae646cea']
    """
    lengths = {len(column) for column in columns}
    if len(lengths) != 1:
        raise ValueError(f"columns of one example table differ in length: {sorted(lengths)}")
    seen: Counter[bytes] = Counter()
    ids = []
    for row in zip(*columns, strict=True):
        digest = hashlib.blake2b(digest_size=8)
        for cell in row:
            cell_array = np.asarray(cell)
            digest.update(f"{cell_array.dtype.str}{cell_array.shape}".encode())
            digest.update(np.ascontiguousarray(cell_array).tobytes())
        key = digest.digest()
        if copies := seen[key]:
            digest.update(f"copy {copies}".encode())
        seen[key] += 1
        ids.append(digest.hexdigest())
    if duplicates := len(ids) - len(seen):
        warnings.warn(
            f"{duplicates} of {len(ids)} examples repeat another's content; each copy has an id of "
            "its own, and their influence is shared out among them arbitrarily",
            stacklevel=2,
        )
    return np.array(ids, dtype="U16")
