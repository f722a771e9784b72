"""Progress bars as a value, so that the mathematics never prints by itself."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import tqdm

Progress = Callable[..., Iterable[Any]]
"""Wraps an iterable: `progress(iterable, desc=..., total=...)`."""


def silent(iterable: Iterable[Any], **_: Any) -> Iterable[Any]:
    """No bar: the library's default."""
    return iterable


# A bar moves the cursor: in a file or a pipe there is none.
bars: Progress = functools.partial(tqdm.tqdm, dynamic_ncols=True, leave=False, disable=None)
"""A tqdm bar on a terminal that clears itself: the entry points' default."""
