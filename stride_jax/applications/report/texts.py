"""Texts that stand on a page as they are, in words, which it marks where two texts share them."""

import re
from collections.abc import Sequence
from typing import Any

_WORDS = re.compile(r"\s*\S+|\s+$")


def columns(texts: Sequence[str], sources: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Columns that the page draws texts by.

    Args:
      texts: one for each example.
      sources: where each comes from, names.

    >>> columns(["to be "], [[]])["pieces"]
    [['to', ' be', ' ']]
    """
    pieces = [_WORDS.findall(text) or [""] for text in texts]
    return {
        "pieces": pieces,
        "counts": ["0" * len(own) for own in pieces],
        "source": [list(names) for names in sources],
        "documents": [[] for _ in texts],
    }
