"""What others wrote does not steer a terminal; what a disk says is one line with a path."""

import ast
import errno
import io
import json
import logging
import os
import pathlib
import subprocess
import sys
import unicodedata
import warnings

import hypothesis
import hypothesis.strategies as st
import pytest
from rich.console import Console

import stride_jax
from stride_jax.applications.answer import Answer, Passage
from stride_jax.applications.group_effects import GroupEffect
from stride_jax.check import Report
from stride_jax.cli import closing
from stride_jax.cli.ask import show
from stride_jax.cli.doors import one_line
from stride_jax.cli.main import main
from stride_jax.cli.streams import as_utf8
from stride_jax.model_checks import Finding
from stride_jax.run.launching.shell import quoted
from stride_jax.runtime.files import atomic_path, write_json
from stride_jax.runtime.screen import excepthook, json_text, marked, visible

CONTROLS = [chr(i) for i in range(0xA0) if unicodedata.category(chr(i)) == "Cc"]
TURNS = [*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\u2028\u2029"]
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Joiners and selectors are letters' own where they follow one: `test_text_without_them…`.
SPELLING = {*"\u200c\u200d", *map(chr, range(0xFE00, 0xFE10)), *map(chr, range(0xE0100, 0xE01F0))}
HOSTILE = st.text(
    st.characters(categories=HIDDEN) | st.sampled_from(sorted(SPELLING)) | st.characters()
)


def escapes(text, kept="\n"):
    """Characters of an output that a terminal would obey, or that nobody would see."""
    return {
        c for c in text if unicodedata.category(c) in HIDDEN and c not in kept and c not in SPELLING
    }


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


def page(text):
    """What `ask` prints of an answer all of whose texts are one."""
    document = {"id": text, "offset": 3, "metadata": {text: text}}
    passage = Passage(text, 0.5, "hash", [text], [document], [text, "b"], [0.5, 0.1])
    answer = Answer(
        prompt=text, completion=text, against=text, generated=False, loss=1.0, proponents=[passage],
        opponents=[], groups=[GroupEffect(text, 3, 0.5)], support=1, question="loss", meaning="m",
        scores="s", verdict="found", diagnostics={},
    )  # fmt: skip
    out = io.StringIO()
    show(answer, Console(file=out, force_terminal=False, width=500))
    return out.getvalue()


def test_an_answer_shows_what_a_text_holds_and_does_not_obey_it():
    """Texts of all kinds with controls, columns of documents too, through `ask`'s own page."""
    bad = "\x1b]8;;http://x\x1b\\\x9b2J\u202eabc\x07"
    said = page(bad)
    assert not {*said} & {*CONTROLS, *TURNS} - {"\n"}
    assert said.count("⟨U+202E⟩abc␇") == 10


@hypothesis.given(HOSTILE)
@hypothesis.settings(max_examples=50, deadline=None)
def test_no_page_of_any_texts_steers_a_terminal(text):
    """Every function that builds what commands print, with any text of others in it."""
    row = {"name": text, "examples": 1, "mean": 0.5, "first": 0.5}
    summary = {"scores": text, "too_small": text, "groups": {"by": text, "count": 1, "rows": [row]}}
    report = Report((Finding(text, "ok", f"a {text}", f"b {text}"),))
    # The first as `run` prints it; a name's line ends would make lines that nobody wrote.
    assert not escapes(visible(closing.table(summary)), "\n\t")
    assert not escapes(closing.table({"groups": {"by": "x", "count": 1, "rows": [row]}}))
    assert closing.table({"groups": {"by": "x", "count": 1, "rows": [row]}}).count("\n") == 1
    assert not escapes(visible(str(report)), "\n\t")
    assert not escapes(page(text), "\n\t")
    for told in (report.to_dict(), text, {text: [text]}):
        said = json_text(told, indent=1)
        assert not escapes(said)
        assert json.loads(said) == json.loads(json.dumps(told))


@hypothesis.given(HOSTILE)
@hypothesis.settings(max_examples=50, deadline=None)
def test_warnings_logs_and_tracebacks_show_marks(text):
    out, lines = io.StringIO(), io.StringIO()
    logger, handler = logging.getLogger("others"), logging.StreamHandler(lines)
    logger.addHandler(handler)
    try:
        with marked():
            out.write(warnings.formatwarning(text, UserWarning, text, 1, text))
            logger.error("%s", text)
            try:
                raise KeyError(text)
            except KeyError:
                logger.exception(text)
        raise ValueError(text)
    except ValueError as error:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", out)
            excepthook(type(error), error, error.__traceback__)
    finally:
        logger.removeHandler(handler)
    assert "ValueError" in out.getvalue()
    assert "KeyError" in lines.getvalue()
    assert not escapes(out.getvalue() + lines.getvalue(), "\n\t")
    assert warnings.formatwarning("\x07", UserWarning, "a", 1, "").count("\x07") == 1  # as before


@hypothesis.given(HOSTILE.map(lambda text: text.replace("/", "")).filter(lambda t: "\0" not in t))
@hypothesis.settings(max_examples=30, deadline=None)
def test_no_mistake_in_a_command_line_is_echoed_as_it_is(text):
    good = ["run", "--config=configs/mnist5k.py", "--workdir=out"]
    for words in (
        [f"x{text}"], ["run", f"--x{text}"], ["run", f"x{text}"], ["run", f"--config=x{text}"],
        [*good, f"--config.x{text}=1"], [*good, f"--config.top_k=x{text}"],
        [*good, f"--until=x{text}"], ["verify", f"--workdir=/absent/{text}"],
        ["plan", "--config=configs/mnist5k.py", f"--mesh=x{text}"],
    ):  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            err = io.StringIO()
            patch.setattr(sys, "stderr", err)
            patch.setattr(sys, "excepthook", sys.excepthook)
            assert main(words) == 2
        said = err.getvalue()
        assert not escapes(said)
        assert said.count("\n") == 1


@hypothesis.given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
@hypothesis.settings(max_examples=20, deadline=None)
def test_a_printed_job_says_the_same_without_what_a_terminal_obeys(text):
    word = quoted(f"a{text}")
    assert not escapes(word, "\n\t")
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert done.stdout.decode() == f"a{text}"


# What marks a text, or holds none of others; attributes that are numbers.
SAFE, NUMBERS = ("visible", "json_text", "_help"), ("score", "examples")


def unmarked(source):
    """Calls of `print` and the like, in a source, with a value that nothing has marked."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        owner = getattr(getattr(node.func, "value", None), "id", "")
        if name not in ("print", "Text") and (name, owner) != ("append", "text"):
            continue
        for value in node.args:
            calls = [
                getattr(c.func, "attr", getattr(c.func, "id", ""))
                for c in ast.walk(value)
                if isinstance(c, ast.Call)
            ]
            parts = [v.value for v in ast.walk(value) if isinstance(v, ast.FormattedValue)]
            bare = [value] if isinstance(value, ast.Name) else parts
            numbers = all(isinstance(v, ast.Attribute) and v.attr in NUMBERS for v in bare)
            if not numbers and bare and not {*calls} & {*SAFE}:
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_commands_print_nothing_that_was_not_marked():
    home = pathlib.Path(stride_jax.__file__).parent
    known = {
        "main.py": ["print(__version__)"],
        # One of our own titles, and one `Text` made of marked ones.
        "ask.py": [
            "console.print(said)",
            "console.print(Text(f'\\n{title}', style='underline'))",
            "Text(f'\\n{title}', style='underline')",
        ],
    }
    for path in (*home.glob("cli/*.py"), *home.glob("run/**/*.py")):
        found = [line.partition(": ")[2] for line in unmarked(path.read_text())]
        left = [line for line in found if line not in known.get(path.name, [])]
        assert not left, f"{path}: {left}: put visible() or json_text() around it"
    assert list(unmarked("print(x)"))
    assert list(unmarked("print(f'a {x}', file=sys.stderr)"))
    assert not list(unmarked("print(visible(x)); print('a')"))


def test_outside_of_commands_nothing_prints():
    home = pathlib.Path(stride_jax.__file__).parent
    prints = [
        f"{path.relative_to(home)}:{node.lineno}"
        for path in home.rglob("*.py")
        if path.parts[len(home.parts)] not in ("cli",)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert [place.partition(":")[0] for place in prints] == ["run/launching/supervise.py"]
