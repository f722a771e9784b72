"""Settings from mappings, from text and from Python: what is filled in, made alike or refused."""

import dataclasses
import importlib
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pytest
from ml_collections import ConfigDict

from benchmarks.leaderboard import LeaderboardSettings
from benchmarks.retrieval import RetrievalSettings
from configs import mnist5k, nanochat
from stride_jax.run.planning import extent_of
from stride_jax.run.settings import RunSettings, run_settings
from stride_jax.runtime.files import plain
from stride_jax.runtime.settings import build, check_types, parse


@dataclasses.dataclass(frozen=True)
class Solver:
    fraction: float = 0.05
    gap: float = 1e-4
    steps: int = 10
    name: str = "lasso"

    def __post_init__(self):
        check_types(self)
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Text:
    path: str = "there"
    limit: int | None = None


@dataclasses.dataclass(frozen=True)
class Read:
    solver: Solver = Solver(fraction=0.02, gap=1e-3)
    taps: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (50,)
    pair: tuple[int, str] = (1, "a")
    centred: bool = True

    def __post_init__(self):
        check_types(self)


@dataclasses.dataclass(frozen=True)
class Whole:
    read: Read = Read(solver=Solver(gap=1e-2), centred=False)
    text: Text | None = None
    made: Read = dataclasses.field(default_factory=lambda: Read(sizes=(7,)))
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Needs:
    path: str
    count: int = 1


class Bars(Protocol):
    def __call__(self, items: Any) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Work:
    bars: Bars = iter
    then: Callable[[], None] | None = None
    changes: tuple[tuple[str, Any], ...] = ()
    memory: int = 1

    def __post_init__(self):
        check_types(self)


def test_a_partial_section_fills_from_its_parents_default():
    assert build(Read, {"solver": {"fraction": 0.2}}).solver == Solver(0.2, gap=1e-3)
    whole = build(Whole, {"read": {"solver": {"steps": 3}}})
    assert whole.read == Read(solver=Solver(gap=1e-2, steps=3), centred=False)
    assert build(Whole, {"read": {}}) == Whole()
    assert build(Whole, {"made": {"taps": ["a"]}}).made == Read(taps=("a",), sizes=(7,))
    assert build(Whole, {"text": {"limit": 3}}).text == Text(limit=3), "nothing there by default"
    assert build(Whole, {"text": None}).text is None
    assert build(Whole, {"read": Read()}).read == Read(), "a section that is made already"
    other = Whole(read=Read(sizes=(3,)), seed=5)
    changed = build(Whole, {"read": {"taps": ("a",)}}, default=other)
    assert changed == Whole(read=Read(taps=("a",), sizes=(3,)), seed=5)


REFUSED = [
    ({"raed": {}}, r"config has no setting 'raed': did you mean 'read'? It has read, text, made"),
    ({"solver": {}}, r"config has no setting 'solver': did you mean 'read.solver'?"),
    ({"read": {"solver": {"gpa": 1}}}, r"config.read.solver has no setting 'gpa': did you mean"),
    ({"seed": "9"}, r"config.seed='9' must be of type int"),
    ({"seed": 10.0}, r"config.seed=10.0 must be of type int"),
    ({"seed": True}, r"config.seed=True must be of type int"),
    ({"seed": None}, r"config.seed=None must be of type int"),
    ({"read": {"centred": 1}}, r"config.read.centred=1 must be of type bool"),
    ({"read": {"solver": {"gap": "1e-3"}}}, r"config.read.solver.gap='1e-3' must be of type float"),
    ({"read": {"solver": {"gap": True}}}, r"config.read.solver.gap=True must be of type float"),
    ({"read": {"solver": {"gap": np.nan}}}, r"config.read.solver.gap=nan must be a finite number"),
    ({"read": {"solver": {"gap": -np.inf}}}, r"gap=-inf must be a finite number"),
    ({"read": {"solver": {"name": 3}}}, r"config.read.solver.name=3 must be of type str"),
    ({"read": {"taps": "input"}}, r"config.read.taps='input': give a tuple such as ('input',)"),
    ({"read": {"sizes": 5}}, r"config.read.sizes=5: give a tuple such as (5,)"),
    ({"read": {"sizes": (5, 6.5)}}, r"config.read.sizes[1]=6.5 must be of type int"),
    ({"read": {"taps": {"input"}}}, r"give a tuple such as"),
    ({"read": {"pair": (1,)}}, r"config.read.pair=(1,) has 1 entries instead of 2"),
    ({"read": 3}, r"config.read is a section of settings: give it a mapping or Read, not 3"),
    ({"read": None}, r"config.read is a section of settings"),
    ({"read": Solver()}, r"give it a mapping or Read, not Solver"),
    (
        {"text": Read()},
        r"config.text is a section of settings: give it a mapping or Text, not Read",
    ),
    ({"read": ConfigDict({})}, r"not ConfigDict; of a ConfigDict give to_dict()"),
    ({"read": {"solver": {"steps": 0}}}, r"config.read.solver: steps=0 must be at least 1"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_a_config_is_read_strictly(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(Whole, values)


def test_what_has_no_default_must_be_given():
    assert build(Needs, {"path": "x"}) == Needs("x")
    with pytest.raises(ValueError, match=r"job: 'path' is not set and has no default"):
        build(Needs, {"count": 2}, "job")
    with pytest.raises(ValueError, match=r"job is a section of settings: give it a mapping"):
        build(Needs, ["x"], "job")  # pyright: ignore[reportArgumentType]


def test_values_that_mean_the_same_are_made_the_same():
    given = build(Read, {"solver": {"gap": 1}, "sizes": [1, np.int64(2)], "pair": [3, "b"]})
    assert given == Read(solver=Solver(0.02, gap=1.0), sizes=(1, 2), pair=(3, "b"))
    direct = Read(sizes=[1, np.int64(2)], centred=np.bool_(True))  # pyright: ignore[reportArgumentType]
    assert direct.sizes == (1, 2)
    assert type(direct.sizes) is tuple
    assert [type(n) for n in direct.sizes] == [int, int]
    assert direct.centred is True
    assert type(Solver(gap=1).gap) is float
    assert hash(Solver(gap=1)) == hash(Solver(gap=np.float64(1.0)))


def test_fields_that_cannot_be_asked_take_what_they_are_given():
    work = Work(list, print, [["seed", 1], ("taps", ("a",))])  # pyright: ignore[reportArgumentType]
    assert work == Work(list, print, (("seed", 1), ("taps", ("a",))))
    with pytest.raises(ValueError, match=r"Work.memory='1' must be of type int"):
        Work(memory="1")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Solver(steps=2.5), "Solver.steps=2.5 must be of type int"),
        (lambda: Solver(steps=True), "Solver.steps=True must be of type int"),
        (lambda: Solver(gap=float("nan")), "Solver.gap=nan must be a finite number"),
        (lambda: Solver(gap=None), "Solver.gap=None must be of type float"),
        (lambda: Read(taps="input"), "Read.taps='input': give a tuple such as ('input',)"),
        (lambda: Read(taps=("a", 3)), "Read.taps[1]=3 must be of type str"),
        (lambda: Read(solver=Text()), "Read.solver is a section of settings: give it a mapping or"),
        (lambda: Read(solver={"gap": 1}), "not dict"),
    ],
)
def test_settings_made_in_python_are_checked_too(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "10", 10),
        (int, "-3", -3),
        (float, "10", 10.0),
        (float, "1e-3", 1e-3),
        (bool, "True", True),
        (bool, "false", False),
        (str, "10", "10"),
        (str | None, "None", None),
        (int | None, "none", None),
        (int | None, "4", 4),
        (tuple[str, ...], "input", ("input",)),
        (tuple[str, ...], "input,hidden0", ("input", "hidden0")),
        (tuple[str, ...], "('input', 'hidden0')", ("input", "hidden0")),
        (tuple[str, ...], "()", ()),
        (tuple[int, ...], "1,2", (1, 2)),
        (tuple[int, ...], "[1, 2]", (1, 2)),
        (tuple[float, ...], "0.5,1", (0.5, 1.0)),
    ],
)
def test_a_command_lines_text_is_parsed_by_type(kind, text, value):
    made = parse(kind, text)
    assert made == value
    assert type(made) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((int, text) for text in ("10.0", "ten", "True", "", "nan", "1,2")),
        *((float, text) for text in ("nan", "inf", "1e", "True", "")),
        *((bool, text) for text in ("1", "yes", "")),
        *((tuple[int, ...], text) for text in ("1.5", "a,b", "(1, 'b')", "(1")),
        (int, "None"),
        (Read, "x"),
    ],
)
def test_text_of_another_type_is_refused_by_name(kind, text):
    with pytest.raises(ValueError, match="--there"):
        parse(kind, text, "--there")


def test_only_the_names_of_a_command_line_are_text():
    values = {"seed": "4", "text": {"limit": "7", "path": "5"}, "read": {"centred": "true"}}
    assert build(Whole, values, from_text=True) == Whole(
        Read(solver=Solver(gap=1e-2)), Text("5", 7), seed=4
    )
    typed = {"seed": 4, "text": {"limit": "7"}}
    assert build(Whole, typed, from_text=["text.limit"]).text == Text(limit=7)
    for names in ([], ["seed"], ["limit"], ["text"]):
        with pytest.raises(ValueError, match=r"config.text.limit='7' must be of type int"):
            build(Whole, typed, from_text=names)
    with pytest.raises(ValueError, match=r"config.read is a section of settings.*not 'x'"):
        build(Whole, {"read": "x"}, from_text=["read"])


CONFIGS = sorted(
    path.stem
    for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py")
    if path.stem not in ("__init__", "common")
)


def arguments(name):
    return [f"d{depth}" for depth in nanochat.SITES] if name == "nanochat" else ["", "runlocal"]


@pytest.mark.parametrize(
    ("name", "arg"),
    [(n, a) for n in CONFIGS for a in ([""] if n == "nanochat_d24" else arguments(n))],
)
def test_every_config_is_what_its_programs_take(name, arg):
    module = importlib.import_module(f"configs.{name}")
    values = module.get_config(*[arg] if arg else []).to_dict()
    if start := values.get("model", {}).pop("init_from", ""):
        # A run that is made first, which is not here: the config of its name makes it.
        assert start.removeprefix("runs/") in CONFIGS
    settings = run_settings(values)
    assert build(RunSettings, json.loads(json.dumps(plain(settings)))) == settings
    for section, cls in {
        "leaderboard": LeaderboardSettings,
        "retrieval": RetrievalSettings,
    }.items():
        build(cls, values.get(section, {}), section)
    if "plan" in values or settings.text is not None:
        assert extent_of(values).num_train > 0
    if name != "nanochat_d24":
        with pytest.raises(ValueError, match="unknown config argument 'quick': use "):
            module.get_config("quick")


def test_a_sweep_names_settings_of_its_config():
    config, names = mnist5k.get_config(), set()
    mnist5k.sweep(lambda **changes: names.update(changes))
    assert names == {"index.design.num_subsets", "index.design.seed"}
    config.update_from_flattened_dict(dict.fromkeys(names, 70))
    assert run_settings(config.to_dict()).index.design.seed == 70


def test_one_setting_of_the_lasso_leaves_the_others_at_their_defaults():
    read = run_settings({"read": {"lasso": {"lambda_fraction": 0.2}}}).read
    default = RunSettings().read
    assert read == dataclasses.replace(
        default, lasso=dataclasses.replace(default.lasso, lambda_fraction=0.2)
    )
    assert (default.lasso.lambda_fraction, default.lasso.relative_gap) == (0.02, 1e-3)
