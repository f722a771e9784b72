"""Standard streams as a command finds them: closed, of other encodings, full, or unread."""

import contextlib
import errno
import io
import os
import sys

BROKEN_PIPE = 141
"""Exit code where the reader of the output has left, as of a process that SIGPIPE ended."""


class _Unread(io.TextIOWrapper):
    """Bars and messages, which may get lost: a log on a full disk, a reader that has left."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def mend() -> None:
    """Make the standard streams safe to use.

    Closed ones become the null device: the next file to be opened would take their number, and be
    written what was meant for a terminal. A locale that lacks a character shows its number, and
    bytes that it can't read are kept for `as_utf8`. Bars that nobody can read end no run.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
        if getattr(sys, name) is None:
            null = os.fdopen(number, "w" if number else "r", encoding="utf-8")
            setattr(sys, name, null)
            setattr(sys, f"__{name}__", null)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if type(sys.stderr) is io.TextIOWrapper:
        own = sys.stderr
        sys.stderr = _Unread(own.buffer, own.encoding, own.errors, line_buffering=True)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def as_utf8(text: str, name: str, encoding: str) -> str:
    """Text of a command line or of the input; bytes that its locale can't read are taken for UTF-8.

    Args:
      text: as Python decoded it, with surrogates for those bytes.
      name: where it was given, for messages.
      encoding: that Python decoded it with.

    Raises:
      ValueError: it is no UTF-8 either.

    >>> as_utf8("G\\udcc3\\udcb8d", "--prompt", "ascii")
    'Gød'
    """
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        pass
    try:
        return text.encode(encoding, "surrogateescape").decode()
    except UnicodeError:
        raise ValueError(
            f"{name}={text!r} is no text in UTF-8: write it in that encoding"
        ) from None


def lost_output(error: OSError) -> str | None:
    """What to say of an error of writing to the standard output; None where it is of another file.

    Empty where the reader has left, who knows. What was still to be written is given up.
    """
    if error.filename is not None or not (error.errno == errno.EPIPE or _fails(error.errno)):
        return None
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    if error.errno == errno.EPIPE:
        return ""
    return f"the output can't be written: {error.strerror}: send it to another place"


def _fails(number: int | None) -> bool:
    """Whether a line end can't be written to the standard output either, for the same reason."""
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"\n")
        return False
    except OSError as error:
        return error.errno == number
