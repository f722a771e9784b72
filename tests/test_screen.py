"""What others wrote does not steer a terminal; what a disk says is one line with a path."""

import errno
import os
import subprocess
import sys
import unicodedata

import hypothesis
import hypothesis.strategies as st
import pytest

from stride_jax.cli.doors import one_line
from stride_jax.cli.main import main
from stride_jax.cli.streams import as_utf8
from stride_jax.runtime.files import atomic_path, write_json
from stride_jax.runtime.screen import visible

CONTROLS = [chr(i) for i in range(0xA0) if unicodedata.category(chr(i)) == "Cc"]
TURNS = [*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\u2028\u2029"]


@hypothesis.given(st.text(st.characters() | st.sampled_from(CONTROLS + TURNS)))
def test_no_control_character_is_left(text):
    shown = visible(text, kept="")
    assert not set(shown) & {*CONTROLS, *TURNS}
    shown.encode()  # no half of a surrogate pair either
    assert visible(shown, kept="") == shown
    plain = "".join(
        c for c in text if c not in CONTROLS + TURNS and unicodedata.category(c)[0] != "C"
    )
    assert len(shown) >= len(plain)


def test_text_without_them_stays_as_it_is():
    for text in ("plain", "tab\tand\nline", "日本語 ü", "👩\u200d🔬", "می\u200cخواهم"):
        assert visible(text) == text


def test_errors_are_shown_and_not_obeyed(capsys, tmp_path):
    assert main(["\x1b]0;title\x07run\u202e"]) == 2
    assert main(["run", f"--config={tmp_path}/\x1b[2J.py", "--workdir=x"]) == 2
    said = capsys.readouterr().err
    assert not {*said} & {*CONTROLS, *TURNS} - {"\n"}
    assert "␛[2J" in said or "\\x1b[2J" in said


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "utf-8"])
def test_any_locale_gets_a_line(encoding):
    command = [sys.executable, "-m", "stride_jax", "run", "--größe=日"]
    done = subprocess.run(
        command, check=False, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}
    )
    assert done.returncode == 2
    assert b"unknown flag --gr" in done.stderr
    assert b"Traceback" not in done.stderr


@hypothesis.given(st.text(), st.sampled_from(["ascii", "utf-8"]))
def test_a_locale_without_utf_8_reads_it_all_the_same(text, encoding):
    read = text.encode().decode(encoding, "surrogateescape")
    assert as_utf8(read, "--prompt", encoding) == text
    with pytest.raises(ValueError, match=r"--prompt=.* is no text in UTF-8"):
        as_utf8("caf\udce9", "--prompt", encoding)


STREAMS = """
import os, sys
for number in (0, 1, 2):
    os.close(number)
sys.stdin = sys.stdout = sys.stderr = None
from stride_jax.cli.main import main
code = main(["run", "--größe=1"])
with open(sys.argv[1], "w") as file:
    print(code, file.fileno() > 2, sys.stdin.read(), sys.stderr.closed, file=file)
print("not into the file")
"""


def test_closed_streams_do_not_end_in_files(tmp_path):
    file = tmp_path / "said"
    subprocess.run([sys.executable, "-c", STREAMS, str(file)], check=True)
    assert file.read_text() == "2 True  False\n"


LOST = """
import sys
from stride_jax.cli.main import main
sys.stdout.reconfigure(write_through=sys.argv[1] == "through")
try:
    code = main(["run", "--help"])
except SystemExit as end:
    code = end.code
print("a message", file=sys.stderr, flush=True)
sys.exit(code)
"""


@pytest.mark.parametrize("buffer", ["through", "kept"])
def test_output_that_is_lost_is_one_line_or_none(buffer):
    """As under PYTHONUNBUFFERED, and with a buffer, which fails later."""
    command = [sys.executable, "-c", LOST, buffer]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"stride-jax run: the output can't be written: No space left")
    assert done.stderr.splitlines()[1:] == [b"a message"]
    if buffer == "through":
        return
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"a message\n")
    with open("/dev/full", "wb") as full:  # bars and messages may get lost
        assert subprocess.run(command, stderr=full, check=False).returncode == 0


def test_a_disk_that_is_full_or_closed_is_one_line_with_its_path(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, atomic_path(tmp_path / "a") as at:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not at.exists()
    assert str(tmp_path / "a") in str(one_line(caught.value))
    assert "make room" in str(one_line(caught.value))
    (tmp_path / "file").write_text("x")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for where, words in [
        (tmp_path / "file" / "under", "a file stands where a folder is needed|has this name"),
        (tmp_path / ("a" * 300), "give a shorter name"),
        (tmp_path / "round", "circle|has this name"),
    ]:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            write_json(where / "x.json", {})
        line = one_line(caught.value)
        assert line is not None
        assert any(word in line for word in words.split("|")), line
        assert str(tmp_path) in line
    assert one_line(OSError("of no number")) is None


def test_an_answer_shows_what_a_text_holds_and_does_not_obey_it():
    """Prompts, completions, references, ids and tokens with controls, through `ask`'s own page."""
    import io

    from rich.console import Console

    from stride_jax.applications.answer import Answer, Passage
    from stride_jax.applications.group_effects import GroupEffect
    from stride_jax.cli.ask import show

    bad = "\x1b]8;;http://x\x1b\\\x9b2J\u202eabc\x07"
    passage = Passage(bad, 0.5, "hash", [bad], [bad, "b"], [0.5, 0.1])
    answer = Answer(
        prompt=bad, completion=bad, against=bad, generated=False, loss=1.0, proponents=[passage],
        opponents=[], groups=[GroupEffect(bad, 0.5, 3)], support=1, question="loss", meaning="m",
        scores="s", verdict="found", diagnostics={},
    )  # fmt: skip
    out = io.StringIO()
    show(answer, Console(file=out, force_terminal=False, width=500))
    assert not {*out.getvalue()} & {*CONTROLS, *TURNS} - {"\n"}
    assert out.getvalue().count("⟨U+202E⟩abc␇") == 7
