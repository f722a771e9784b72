"""Figures about the code, against counts by hand; rows that several commands write."""

import concurrent.futures
import json
import sys

import pytest
from flax.traverse_util import flatten_dict

from benchmarks import house
from stride_jax.data import ShardSettings, TextSettings, TuningSettings, VerseSettings
from stride_jax.evaluation import BankSettings, UnitSettings
from stride_jax.models import (
    GPTSettings,
    LlamaSettings,
    ModelSettings,
    Origin,
    RopeScaling,
    TrainSettings,
)
from stride_jax.models.lora import LoRASettings
from stride_jax.near_copies import NearCopySettings
from stride_jax.run.settings import RunSettings
from stride_jax.runtime.files import plain

CODE = """
class A:
    def seven(self, a, b, c, d, e, f, *, g): ...
    @classmethod
    def eight(cls, a, b, c, d, /, e, *f, g, **h): ...
async def outer(a, b, c, d, e, f, g, h):
    def inner(a, b, c, d, e, f, g, *, h=1): ...
"""


def test_structure_is_counted_without_importing(tmp_path, monkeypatch):
    for room, text in (("stride_jax", CODE), ("experiments", "raise SystemExit\n" * 2)):
        (tmp_path / room / "deep").mkdir(parents=True)
        (tmp_path / room / "deep/file.py").write_text(text)
    (tmp_path / "stride_jax/__init__.py").write_text("")
    monkeypatch.setattr(house, "settings_leaves", lambda tree: 5)
    rows = {row.name: row.value for row in house.structure(tmp_path)}
    assert rows["files"] == 3
    assert rows["median lines of a file"] == 2
    assert rows["longest file, lines"] == 7
    assert rows["functions with 8 or more parameters"] == 3
    wide = [place.split()[-1] for place, count in house.functions(tmp_path) if count == 8]
    assert sorted(wide) == ["eight", "inner", "outer"]
    with pytest.raises(ValueError, match="holds no stride_jax"):
        house.python_files(tmp_path / "nowhere")


def test_settings_leaves_are_those_of_a_run_with_every_section():
    whole = RunSettings(
        text=TextSettings(),
        verses=VerseSettings(),
        tuning=TuningSettings("rows.jsonl"),
        near_copies=NearCopySettings(),
        unit=UnitSettings(),
        bank=BankSettings(),
        train=TrainSettings(lora=LoRASettings()),
        model=ModelSettings(
            gpt=GPTSettings(rope_rounded=True),
            llama=LlamaSettings(qk_norm=True, window=1, rope_scaling=RopeScaling()),
            init_from="model",
            origin=Origin("orbax", "0", 2, "1"),
        ),
    )
    hidden = 2  # train.objective and train.steps, which JSON leaves out at their defaults
    shards = len(plain(ShardSettings("tokens")))  # not beside the sections that they refuse
    assert house.settings_leaves(house.ROOT) == len(flatten_dict(plain(whole))) + hidden + shards


def test_rows_are_merged_by_name_whoever_writes_them(tmp_path, monkeypatch):
    path = tmp_path / "results/house.json"
    monkeypatch.setattr(house, "commit_of", lambda tree: "abc+")

    def write(i):
        house.record([house.Row(f"row {i}", i, "lower")], path=path, command=f"write {i}")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    house.record([house.Row("row 3", 33.0, "higher", (30.0, 36.0), 31.0)], path=path, command="c")
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    assert set(rows) == {f"row {i}" for i in range(40)}, "none is lost"
    assert rows["row 3"].pop("device")
    assert rows["row 3"] == {
        "name": "row 3", "value": 33.0, "interval": [30.0, 36.0], "asked": 31.0,
        "better": "higher", "command": "c", "commit": "abc+",
    }  # fmt: skip
    with pytest.raises(ValueError, match="must be higher or lower"):
        house.Row("x", 1.0, "more")  # pyright: ignore[reportArgumentType]


def test_a_command_names_no_machine(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", f"--out={house.ROOT / 'docs/x.json'}"])
    assert house.this_command().endswith(" --out=docs/x.json")


def test_imports_are_timed_in_interpreters_of_their_own(tmp_path):
    (tmp_path / "stride_jax.py").write_text("import time\ntime.sleep(0.2)\nfit = 1\n")
    for module in ("jax", "flax", "optax", "jaxopt"):
        (tmp_path / f"{module}.py").write_text("")
    (tmp_path / "flax.py").unlink()
    (tmp_path / "flax").mkdir()
    (tmp_path / "flax/__init__.py").write_text("")
    (tmp_path / "flax/linen.py").write_text("import time\ntime.sleep(0.1)\n")
    rows = {row.name: row for row in house.imports(tmp_path, 2)}
    ours = rows["import stride_jax, seconds"].value
    assert ours is not None
    assert 0.2 <= ours < 2
    ratio = rows["import stride_jax over import jax, flax.linen, optax, jaxopt"]
    assert ratio.asked == 1.2
    assert ratio.interval is None, "two values bound no median"
    loaded = [row.value for name, row in rows.items() if name.startswith("modules loaded")]
    assert all(0 < value < len(sys.modules) for value in loaded if value is not None)
