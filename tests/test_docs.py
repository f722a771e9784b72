"""Pages and README: their code runs, their commands exist, their links lead somewhere."""

import ast
import importlib
import importlib.util
import json
import pathlib
import re
import shlex
import types

import numpy as np
import pytest

import stride_jax
from stride_jax.cli.main import COMMANDS
from stride_jax.examples import Examples
from stride_jax.run.settings import run_settings

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.py"))
_LEFT_OUT = ("…", "...")
"""Marks of a line that is not whole."""

# Their blocks need nothing that the page has not.
_RUNS = ("index.md", "own_framework.md")


def blocks(path, *languages):
    """What stands in a page's blocks of code of these languages."""
    found = re.findall(r"^( *)```(\w+)\n(.*?)^\1```", path.read_text(), re.DOTALL | re.MULTILINE)
    return [body for _, language, body in found if language in languages]


def commands(text):
    """Lines of a terminal as words, continued ones joined, comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not any(mark in line for mark in _LEFT_OUT):
            yield shlex.split(line, comments=True)


def refuse_unknown(words):
    """A command of ours, its flags, and the config that it names, without running it."""
    names = [i for i, word in enumerate(words) if word == "stride-jax" and words[0] != "pip"]
    modules = [words[i + 2] for i in range(len(words) - 2) if words[i + 1] == "-m"]
    for module in modules:
        if module.partition(".")[0] in ("experiments", "benchmarks"):
            assert importlib.util.find_spec(module), f"no module {module}"
    for word in words:
        if word.startswith("--config=configs/"):
            assert (ROOT / word.partition("=")[2].partition(":")[0]).is_file(), word
    for i in names:
        command, flags = words[i + 1], words[i + 2 :]
        assert command in COMMANDS, command
        end = next((j for j, word in enumerate(flags) if word in ("<", "|", ">", "&&")), len(flags))
        own = importlib.import_module(f"stride_jax.cli.{command}")
        own._parser().read(flags[:end])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_of_a_page_exist(path):
    for text in blocks(path, "bash", "sh"):
        for words in commands(text):
            refuse_unknown(words)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.name)
def test_commands_of_a_tutorial_exist(path):
    """`make docs` runs them; here a flag that was renamed is found at once."""
    tree = ast.parse(path.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)
             and isinstance(node.func, ast.Name) and node.func.id == "shell"]  # fmt: skip
    for call in calls:
        refuse_unknown(shlex.split(ast.literal_eval(call.args[0])))
    assert calls or path.name == "classifier.py"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_configs_and_data_of_a_page_are_read(path):
    for text in blocks(path, "python"):
        if "def get_config():" in text and not any(mark in text for mark in _LEFT_OUT):
            space = {}
            exec(compile(text, path.name, "exec"), space)
            assert run_settings(space["get_config"](), adopt=False)
    for text in blocks(path, "json"):
        for line in text.splitlines():
            assert json.loads(line)


@pytest.mark.parametrize("name", _RUNS)
def test_code_of_a_page_runs(name):
    space = {}
    for text in blocks(ROOT / "docs" / name, "python"):
        exec(compile(text, name, "exec"), space)
    assert space["attribution"].scores.shape[1] in (200, 1000)


def test_the_method_that_a_page_adds_keeps_the_conventions():
    (block,), space = blocks(ROOT / "docs/add_a_method.md", "python"), {}
    exec(compile(block, "add_a_method.md", "exec"), space)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 3)).astype(np.float32)
    model = types.SimpleNamespace(
        tapped=lambda params, inputs: (inputs @ params, {}), params=weights
    )
    train = Examples(rng.normal(size=(9, 4)).astype(np.float32), np.arange(9) % 3)
    settings = space["MySettings"]()
    state = space["fit"](model, train, settings)
    scores = space["score"](state, model, train, train.take([4, 2]), settings)
    assert scores.shape == (2, 9)
    assert (scores[[0, 1], [4, 2]] > 0).all(), "an example is a proponent of itself"


def test_names_of_the_library_on_pages_exist():
    """`stride_jax.name` and `Class.name` in the text are what they say."""
    for path in PAGES:
        if path.name == "lab.md":  # which tells of names that are gone
            continue
        for name in re.findall(r"`stride_jax\.([a-zA-Z_.]+)", path.read_text()):
            own, *rest = name.rstrip(".").split(".")
            found = getattr(stride_jax, own, None)
            if found is None:
                found = importlib.import_module(f"stride_jax.{own}")
            for part in rest:
                inside = getattr(found, part, None)
                if inside is None:
                    inside = importlib.import_module(f"{found.__name__}.{part}")
                found = inside
        for owner, name in re.findall(r"`([A-Z]\w+)\.(\w+)", path.read_text()):
            if own := getattr(stride_jax, owner, None):
                fields = getattr(own, "__dataclass_fields__", {})
                assert hasattr(own, name) or name in fields, f"{path.name}: {owner}.{name}"


def test_no_page_has_code_that_no_test_runs():
    """README's is run in test_pipeline, that of features.md in test_five_lines."""
    known = {*_RUNS, "README.md", "features.md", "add_a_method.md"}
    for path in PAGES:
        for text in blocks(path, "python", "py"):
            assert path.name in known or "def get_config():" in text, path.name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_of_a_page_lead_somewhere(path):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            aim = path if not file else path.parent / file
            assert aim.exists(), f"{path.name} links to {target}"
            headings = re.findall(r"^#+ (.*)$", aim.read_text(), re.MULTILINE) if anchor else []
            known = [re.sub(r"[^\w\- ]", "", one).strip().lower().replace(" ", "-")
                     for one in headings]  # fmt: skip
            assert not anchor or anchor in known, f"{path.name} links to {target}"
