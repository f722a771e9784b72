"""Text of others on a terminal: what would steer it is shown as a mark.

Training texts, ids, references and file names may hold escape sequences that colour, hide or move
what follows, and marks that turn the reading direction. None of them reaches the screen.
"""

import contextlib
import json
import logging
import sys
import traceback
import types
import unicodedata
import warnings
from collections.abc import Iterator
from typing import Any

_KEPT = "\n\t"
# Separators of lines and paragraphs move the cursor as well; surrogates can't be encoded at all.
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_TAGS = range(0xE0000, 0xE1000)  # invisible, assigned or not
# Scripts and emoji are spelled with these, one after a character that is seen.
_JOINERS = "\u200c\u200d"
_SELECTORS = {chr(i) for i in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))}


def visible(text: str, kept: str = _KEPT) -> str:
    """The text with control and format characters as marks: `␛` for escape, `⟨U+202E⟩` for others.

    Args:
      text: any.
      kept: control characters that stay; line ends and tabs by default.

    >>> visible("a\\x1b[31mred\\x07"), visible("\\u202eabc"), visible("a\\nb", kept="")
    ('a␛[31mred␇', '⟨U+202E⟩abc', 'a␊b')
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c in kept or _spells(c, text[i - 1 : i]) else _mark(c) for i, c in enumerate(text)
    )


def _spells(c: str, before: str) -> bool:
    """Whether an invisible character belongs to what it follows, as in emoji and Persian words."""
    if c in _SELECTORS:
        return bool(before) and before not in _SELECTORS and before == _mark(before)
    return c in _JOINERS and not before.isascii() and before == _mark(before)


def _mark(c: str) -> str:
    code = ord(c)
    if unicodedata.category(c) not in _HIDDEN and code not in _TAGS and c not in _SELECTORS:
        return c
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON whose strings hold no character that a terminal obeys.

    >>> json_text("\\x1b[2J\\x7f\\u202e")
    '"\\\\u001b[2J\\\\u007f\\\\u202e"'
    """
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


@contextlib.contextmanager
def marked() -> Iterator[None]:
    """Warnings and log records of the block are shown with marks, whoever gives them."""
    shown, factory = warnings.formatwarning, logging.getLogRecordFactory()

    def formatwarning(*args: Any, **options: Any) -> str:
        return visible(shown(*args, **options))

    warnings.formatwarning = formatwarning
    logging.setLogRecordFactory(_Record)
    try:
        yield
    finally:
        warnings.formatwarning = shown
        logging.setLogRecordFactory(factory)


class _Record(logging.LogRecord):
    """A record whose message and traceback have marks."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if isinstance(self.exc_info, tuple) and self.exc_info[0] is not None:
            self.exc_text = visible("".join(traceback.format_exception(*self.exc_info)).rstrip())

    def getMessage(self) -> str:
        return visible(super().getMessage())


def excepthook(
    kind: type[BaseException], error: BaseException, where: types.TracebackType | None
) -> None:
    """Python's own traceback with marks; for `sys.excepthook`."""
    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, where))))
