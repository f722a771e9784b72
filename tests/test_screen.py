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
