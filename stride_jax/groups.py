"""Named groups of training examples, beside the design's subsets: sources, authors, labels, books.

One operator per group is summed in the same pass as the design's K, and kept apart from them:
recovery never reads it. A group's influence on a query is one measurement (docs/method.md §8.9).

Letter of its own: G groups.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from stride_jax.operators import Operators
from stride_jax.operators.passes import Labels


@dataclasses.dataclass(frozen=True)
class Groups:
    """What an index holds of the groups that its user named.

    Attributes:
      names: `[G]` distinct strings, in the order of their first examples.
      sizes_G: int64 training examples of each.
      operators: `{site: basis and G steering matrices}`.
    """

    names: np.ndarray
    sizes_G: np.ndarray
    operators: dict[str, Operators]

    def __len__(self) -> int:
        return len(self.names)

    def named(self) -> dict[str, np.ndarray]:
        """Names and sizes as a file holds them."""
        return {"groups": self.names, "group_sizes": self.sizes_G}

    def row(self, name: str) -> int:
        """The number of a group.

        Raises:
          ValueError: a name that no group has; the message has those most like it.
        """
        rows = np.flatnonzero(self.names == str(name))
        if len(rows) == 0:
            like = difflib.get_close_matches(str(name), self.names.tolist(), 3, 0)
            raise ValueError(
                f"no group {name!r} among the {len(self)} of this index: use one of its names, "
                f"such as {', '.join(map(repr, like))}"
            )
        return int(rows[0])


def labelled(
    groups: Any, num_examples: int, before: Sequence[str] | np.ndarray = ()
) -> tuple[np.ndarray, Labels]:
    """Names of groups, and the group of each example.

    Args:
      groups: `[N]`, the name of each example's group; None or an empty string for one of none.
      num_examples: N.
      before: names of groups that exist already; they stay in front.

    Raises:
      ValueError: another length than N, no example of any group, or only groups of one example.

    >>> names, labels = labelled(["b", "a", None, "b"], 4)
    >>> names.tolist(), labels.place_N.tolist(), labels.groups
    (['b', 'a'], [0, 1, -1, 0], 2)
    """
    array = np.asarray(groups, object)
    if array.shape != (num_examples,):
        raise ValueError(
            f"groups of shape {array.shape} for {num_examples} examples: give one name for each, "
            "and None for those of no group"
        )
    given = ["" if name is None else str(name) for name in array.tolist()]
    place = {str(name): i for i, name in enumerate(before)}
    for name in given:
        if name:
            place.setdefault(name, len(place))
    if not len(before) and not any(given):
        raise ValueError(
            f"groups name no group for any of {num_examples} examples: leave groups out, or name "
            "a source for some"
        )
    if not len(before) and 1 < len(place) == sum(map(bool, given)):
        raise ValueError(
            f"each of the {len(place)} groups has one example: give one name for all examples of a "
            "source; single examples are what attribute scores"
        )
    place_N = np.array([place.get(name, -1) for name in given], np.int32)
    return np.array(list(place), str), Labels(place_N, len(place))


def sizes(labels: Labels) -> np.ndarray:
    """Examples of each group, `[G]`."""
    return np.bincount(labels.place_N[labels.place_N >= 0], minlength=labels.groups)
