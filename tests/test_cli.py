"""The command line as a user meets it: every mistake one line and code 2, before any work."""

import dataclasses
import importlib.metadata
import io
import json
import pathlib
import shlex
import subprocess
import sys

import pytest
from rich.console import Console

from stride_jax.cli import ask, closing, doors
from stride_jax.cli import run as run_command
from stride_jax.cli.main import COMMANDS, main
from stride_jax.data import TextSettings
from stride_jax.models import ModelSettings
from stride_jax.run.settings import RunSettings
from stride_jax.runtime.durable import Preempted
from stride_jax.runtime.files import plain, write_json

ROOT = pathlib.Path(__file__).parents[1]
GOOD = (
    "def get_config(arg=''):\n    return {'train': {'epochs': 2}, 'leaderboard': {'repeats': 1}}\n"
)
CONFIGS = {
    "good.py": GOOD,
    "syntax.py": "def get_config():\n    return {\n",
    "name.py": "def get_config():\n    x = 1\n    return {'top_k': y}\n",
    "import.py": "import no_such_package\n",
    "refuses.py": "def get_config(arg):\n    raise ValueError(f'unknown {arg!r}: use small')\n",
    "empty.py": "x = 1\n",
    "none.py": "def get_config(): pass\n",
    "plain.py": "def get_config(): return {}\n",
    "old.py": "def get_config(): return {'stride': {'prior': 0.0}}\n",
    "torn.json": "{",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # undone after the test, unlike what `main` adds
    return tmp_path


def refusal(words, capsys):
    """The line that a command prints, alone, before it ends with code 2."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return err


RUN = ["run", "--config=good.py", "--workdir=out"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no command given; commands are prepare, run, plan, launch, ask"),
        (["rnu"], "no command 'rnu'; did you mean run"),
        (["run"], "--config is missing"),
        (["run", "--config=good.py"], "--workdir is missing"),
        (["plan"], "--config is missing"),
        (["launch"], "--config is missing"),
        (["ask"], "--workdir is missing"),
        (["run", "--confg=good.py"], "unknown flag --confg: did you mean --config?"),
        ([*RUN, "more"], "unexpected argument 'more'"),
        ([*RUN, "--until=recover"], "--until: invalid choice: 'recover'"),
        ([*RUN, "--num_processes=none"], "--num_processes"),
        ([*RUN, "--process_id=-1"], "-1 is below 0"),
        ([*RUN, "--process_id=0"], "give all three"),
        (
            [*RUN, "--coordinator=a:1", "--num_processes=2", "--process_id=0"],
            "need --multihost",
        ),
        (["run", "--config=nowhere.py", "--workdir=out"], "config='nowhere.py' is not a file"),
        (["run", "--config=syntax.py", "--workdir=out"], "syntax.py, line 2: "),
        (["run", "--config=name.py", "--workdir=out"], "name.py, line 3: NameError: name 'y'"),
        (["run", "--config=import.py", "--workdir=out"], "line 1: ModuleNotFoundError: No module"),
        (
            ["run", "--config=refuses.py:big", "--workdir=out"],
            "refuses.py, line 2: unknown 'big': use small",
        ),
        (["run", "--config=empty.py", "--workdir=out"], "does not define get_config()"),
        (["run", "--config=none.py", "--workdir=out"], "the config is of type NoneType"),
        (["run", "--config=plain.py:x", "--workdir=out"], "can't be called with the argument 'x'"),
        (["run", "--config=old.py", "--workdir=out"], "config has no setting 'stride'"),
        (["run", "--config=torn.json", "--workdir=out"], "torn.json"),
        ([*RUN, "--config.index.desing.seed=1"], "no setting 'desing': did you mean 'design'?"),
        ([*RUN, "--config.top_kk=1"], "no setting 'top_kk': did you mean 'top_k'?"),
        ([*RUN, "--config.top_k=many"], "config.top_k='many' must be of type int"),
        ([*RUN, "--config.top_k"], "--config.top_k has no value"),
        ([*RUN, "--config.top_k.x=1"], "config.top_k"),
        ([*RUN, "--config.=1"], "is no name of a setting"),
        ([*RUN, "--config.index=3"], "config.index is a section of settings"),
        ([*RUN, "--config.index.design.degree=5000"], "degree=5000 exceeds num_subsets=1000"),
        ([*RUN, "--config.leaderboard.repeat=2"], "no setting 'repeat': it has repeats"),
        (["plan", "--config=good.py", "--mesh=eight"], "--mesh='eight'"),
        (["plan", "--config=good.py", "--utilisation=2"], "--utilisation=2.0 must lie in"),
        (["plan", "--config=good.py", "--config.plan.trains=2"], "no setting 'trains'"),
        (["launch", "--config=good.py", "--workdir=out", "--sweep"], "has no sweep(add)"),
        (["launch", "--config=good.py", "--workdir=out", "--nodes=x"], "--nodes"),
        (
            ["launch", "--config=good.py", "--workdir=out", "--config.top_kk=1", "--dry_run"],
            "did you mean 'top_k'?",
        ),
        (["ask", "--workdir=nowhere"], "nowhere holds no run: make one with stride-jax run"),
        (["ask", "--workdir=nowhere", "--top=0"], "0 is below 1"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(here, capsys, words, message):
    before = {path: path.read_bytes() for path in here.iterdir() if path.is_file()}
    line = refusal(words, capsys)
    assert message in line
    assert line.startswith(f"stride-jax {words[0]}: " if words and words[0] in COMMANDS else "")
    after = {path: path.read_bytes() for path in here.iterdir() if path.is_file()}
    assert after == before
    assert not (here / "out").exists()


@pytest.mark.parametrize("command", ["run", "launch"])
@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("good.py", "is a file"),
        ("good.py/below/it", "which is a file"),
        ("gs://bucket/run", "mount the bucket"),
        ("s3://bucket/run", "mount the bucket"),
        ("hdfs:/cluster/run", "mount the bucket"),
    ],
)
def test_a_workdir_is_a_local_folder(here, capsys, command, workdir, message):
    before = set(here.rglob("*"))
    line = refusal([command, "--config=good.py", f"--workdir={workdir}"], capsys)
    assert repr(workdir) in line
    assert message in line
    assert {path for path in here.rglob("*") if "__pycache__" not in path.parts} == before


def test_known_settings_need_not_be_in_the_config(here):
    changes = {
        "text.path": "my/texts",
        "index.closed_form.damping": "1",
        "index.taps": "a,b",
        "bank.alpha": "0.25",
        "execution.mesh.data": "2",
        "read.prior": "0",
        "leaderboard.repeats": "7",
        "plan.num_train": "100",
    }
    values, settings = doors.read_settings("good.py", changes)
    assert isinstance(settings, RunSettings)
    assert settings.text is not None
    assert settings.text.path == "my/texts"
    assert settings.index.closed_form.damping == 1.0
    assert settings.index.taps == ("a", "b")
    assert settings.bank is not None
    assert settings.bank.alpha == 0.25
    assert settings.execution.mesh.data == 2
    assert settings.read.prior == 0.0
    assert settings.train.epochs == 2, "what the config says stays"
    assert values["leaderboard"] == {"repeats": 7}
    assert values["plan"] == {"num_train": 100}
    untouched = dataclasses.replace(
        settings.index, taps=(), closed_form=RunSettings().index.closed_form
    )
    assert untouched == RunSettings().index
    assert doors.read_settings("good.py", {"bank.alpha": "0.3", "bank": "None"})[1].bank is None


def test_changes_are_told_from_flags():
    parser = doors.Parser("run", None, config=True)
    parser.flag("workdir", "Folder.")
    given, changes = parser.read(
        ["--config", "a.py:x=1", "--config.a.b=c=d", "--workdir", "w", "--config.e", "-1"]
    )
    assert (given.config, given.workdir) == ("a.py:x=1", "w")
    assert changes == {"a.b": "c=d", "e": "-1"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does_and_its_flags(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    out = capsys.readouterr().out
    assert f"stride-jax {command}" in out
    assert "--workdir VALUE" in out or command in ("plan", "prepare")
    closed = ("ask", "audit", "prepare", "report", "select", "serve", "verify")
    assert "--config.KEY=VALUE" in out or command in closed
    assert main(["--help"]) == 0
    assert COMMANDS[command].about in capsys.readouterr().out


def test_a_bug_keeps_its_traceback(here, monkeypatch):
    with pytest.raises(ValueError, match="invalid literal") as caught:
        doors.at_least(1)("x")  # raised by int, in a function of ours
    assert doors.one_line(caught.value) is None
    monkeypatch.setattr(run_command, "read_settings", lambda *_: {}["absent"])
    with pytest.raises(KeyError):
        main(RUN)


def test_a_preempted_run_ends_with_75(here, monkeypatch):
    def preempted(*_, **__):
        raise Preempted

    monkeypatch.setattr(run_command.summary, "write", preempted)
    with pytest.raises(SystemExit, match="75"):
        main(RUN)


def test_an_extra_that_is_missing_is_named_first(here, monkeypatch, capsys):
    metadata = importlib.metadata
    ours = metadata.distribution("stride-jax")

    def only_ours(name):
        if name != "stride-jax":
            raise metadata.PackageNotFoundError(name)
        return ours

    monkeypatch.setattr(metadata, "distribution", only_ours)
    assert 'pip install "stride-jax[run]"' in refusal(RUN, capsys)
    line = doors.one_line(ModuleNotFoundError("no rich", name="rich"), ("text",))
    assert line == 'rich is not installed: pip install "stride-jax[text]"'


def test_ask_says_what_a_run_lacks(here, capsys):
    settings = RunSettings(text=TextSettings(), model=ModelSettings("gpt"))
    write_json(here / "out/settings.json", plain(settings))
    line = refusal(["ask", "--workdir=out", "--prompt=And"], capsys)
    assert "has no model and no operators yet" in line
    command = shlex.split(line.partition("make them with ")[2])
    assert command[:2] == ["stride-jax", "run"]
    given, changes = run_command._parser().read(command[2:])
    assert (given.workdir, given.until) == ("out", "operators")
    assert doors.read_settings(given.config, changes)[1] == settings, "it makes this very run"
    assert [path.name for path in (here / "out").iterdir()] == ["settings.json"]
    write_json(here / "out/settings.json", plain(RunSettings()))
    assert "is not of text" in refusal(["ask", "--workdir=out", "--prompt=And"], capsys)


def test_ask_reads_prompts_from_a_pipe_to_its_end(monkeypatch, capsys):
    monkeypatch.setattr(ask, "open_run", lambda workdir: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "the input ended before a prompt came" in refusal(["ask", "--workdir=out"], capsys)
    monkeypatch.setattr(sys, "stdin", io.StringIO("And God\nsaid\n"))
    assert list(ask.prompts(None, Console())) == ["And God", "said"]
    assert capsys.readouterr().out == "", "nothing but answers goes to a pipe"


def test_the_closing_table_leaves_out_what_was_not_computed():
    methods = {
        "stride": {"lds": 0.5, "lds_ci95": [0.4, 0.6], "seconds": 2.0},
        "random": {"lds": None, "lds_ci95": None, "seconds": None},
    }
    bank = {"num_subsets": 10, "alpha": 0.5, "num_seeds": 2}
    summary = {
        "methods": methods,
        "perfect_predictor": 0.8,
        "too_small": "10 subsets are too few to rank methods",
        "settings": {"bank": bank},
        "accuracy": None,
        "num_train": 600,
    }
    lines = closing.table(summary).splitlines()
    assert lines[1].split() == ["stride", "0.500", "[0.400,", "0.600]", "2.0"]
    assert lines[2].split() == ["random"]
    assert "a perfect predictor scores about 0.800" in lines
    assert "note: 10 subsets are too few to rank methods" in lines
    assert lines[-1] == "600 train"
    without = closing.table(
        {**summary, "methods": {}, "perfect_predictor": None, "too_small": None}
    )
    assert without == "600 train"


@pytest.mark.parametrize(
    "door",
    [["-m", "stride_jax", "run"], ["-m", "experiments.run"]],
)
def test_a_user_runs_a_config_of_their_own(tmp_path, door):
    """From another folder, with a module beside it; and only as far as the data."""
    (tmp_path / "blocks.py").write_text("DATA = {'name': 'breast_cancer'}\n")
    (tmp_path / "my.py").write_text(
        "from blocks import DATA\ndef get_config():\n    return {'data': DATA}\n"
    )
    done = subprocess.run(
        [sys.executable, *door, "--config=my.py", "--workdir=out", "--until=data"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["until"] == "data"
    assert summary["lds"] is None
    assert (summary["num_train"], summary["num_queries"]) == (427, 100)
    assert "427 train, 100 queries" in done.stdout
    assert not (tmp_path / "out/model").exists()
