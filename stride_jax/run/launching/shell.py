"""Words of a command as lines of a shell script that people read."""

import shlex
from collections.abc import Sequence

from stride_jax.runtime.screen import visible


def wrapped(words: Sequence[str], head: int, indent: str = "", raw: Sequence[str] = ()) -> str:
    """A command with its first words on one line, and each other word on a line of its own.

    Args:
      words: words of the command, quoted here where the shell needs it.
      head: number of words on the first line.
      indent: indent of the lines that follow.
      raw: more lines, already quoted.
    """
    lines = [" ".join(map(quoted, words[:head])), *map(quoted_flag, words[head:]), *raw]
    return f" \\\n{indent}  ".join(lines)


def quoted_flag(word: str) -> str:
    """As `shlex.quote`, but for people.

    >>> print(quoted_flag("--command=a b"), quoted_flag("--taps=('input',)"))
    --command='a b' --taps="('input',)"
    """
    key, equals, value = word.partition("=")
    plain = "'" in value and not set('"$`\\!') & set(value) and visible(value) == value
    inner = f'"{value}"' if plain else quoted(value)
    return f"{quoted(key)}={inner}" if equals else quoted(word)


def quoted(word: str) -> str:
    """As `shlex.quote`; a word with characters that no screen should get is spelled in bytes.

    >>> print(quoted("a b"), quoted("a\\x1b[2J"))
    'a b' $'a\\x1b[2J'
    """
    if visible(word) == word:
        return shlex.quote(word)
    raw = word.encode("utf-8", "surrogateescape")
    plain = (chr(b) if 0x20 <= b < 0x7F and b not in b"'\\" else f"\\x{b:02x}" for b in raw)
    return f"$'{''.join(plain)}'"
