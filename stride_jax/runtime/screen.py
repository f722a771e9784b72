"""Text of others on a terminal: what would steer it is shown as a mark.

Training texts, ids, references and file names may hold escape sequences that colour, hide or move
what follows, and marks that turn the reading direction. None of them reaches the screen.
"""

import unicodedata

_KEPT = "\n\t"
# Separators of lines and paragraphs move the cursor as well; surrogates can't be encoded at all.
_JOINERS = "\u200c\u200d"  # that scripts and emoji are spelled with
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


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
    return "".join(c if c in kept else _mark(c) for c in text)


def _mark(c: str) -> str:
    if unicodedata.category(c) not in _HIDDEN or c in _JOINERS:
        return c
    code = ord(c)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
