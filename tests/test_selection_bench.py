"""The benchmark of data selection: its splits, its answers and what it records."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import instructions
from benchmarks.applications import sections, selection
from benchmarks.selection import FIGURES, recorded, tuned
from benchmarks.selection_choices import Choice, _by_task, _coarse, _orders, joined
from benchmarks.selection_data import PoolSettings, write
from benchmarks.selection_models import f1, greedy, starts
from stride_jax.applications.fusion import fused
from stride_jax.applications.targets import Targets
from stride_jax.examples import Examples
from stride_jax.models import GPT, GPTSettings, initial_params

SETTINGS = PoolSettings(candidates=20, targets=3, tests=5, noise=0.25, tasks=3, tuning=1)


@pytest.fixture
def source(tmp_path):
    """Six tasks of 60 rows, four with short answers, and word problems."""
    rows = [
        {"id": f"task{k} {i}", "task": f"task{k}", "prompt": f"say {i} of {k}\n",
         "completion": f"answer {i}" if k < 4 else f"a long answer, which is that of row {i}"}
        for k in range(6) for i in range(60)
    ]  # fmt: skip
    instructions.write_lines(tmp_path / "tasks.jsonl", rows)
    problem = {"id": "p", "question": "q", "solution": "s", "formula": "f", "answer": "1"}
    instructions.write_lines(tmp_path / "problems.jsonl", [problem])
    return tmp_path


def test_candidates_targets_and_tests_share_no_row(source, tmp_path):
    asked = write(source, tmp_path / "out", SETTINGS)
    files = {
        name: instructions.read_lines(tmp_path / "out" / f"{name}.jsonl")
        for name in ("candidates", "targets", "tests")
    }
    ids = [row["id"] for rows in files.values() for row in rows]
    assert len(set(ids)) == len(ids)
    assert len(asked) == 3
    assert set(asked) <= {f"task{k}" for k in range(4)}, "short answers alone"
    for name in asked:
        assert [sum(r["task"] == name for r in rows) for rows in files.values()] == [20, 3, 5]
    truth = {
        row["id"]: row["completion"] for row in instructions.read_lines(source / "tasks.jsonl")
    }
    for row in files["candidates"]:
        assert (row["completion"] != truth[row["id"]]) == (row["wrong"] == "1")
        assert row["prompt"].startswith(row["task"])
    for name in asked:
        assert sum(int(r["wrong"]) for r in files["candidates"] if r["task"] == name) == 5
    again = write(source, tmp_path / "again", SETTINGS)
    assert again == asked
    for name in files:
        one, two = (tmp_path / f / f"{name}.jsonl" for f in ("out", "again"))
        assert one.read_bytes() == two.read_bytes()
    with pytest.raises(ValueError, match="tasks=9, but 4 have short answers"):
        write(source, tmp_path / "out", PoolSettings(candidates=20, targets=3, tests=5, tasks=9))


def test_answers_are_the_likeliest_token_after_token():
    settings = GPTSettings(
        depth=1, width=16, num_heads=2, num_kv_heads=2, sequence_len=20, smear=False
    )
    module = GPT(num_classes=30, settings=settings)
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 30, (3, 20)).astype(np.int32)
    labels = np.full((3, 20), -1, np.int32)
    for row, place in enumerate((2, 7, 14)):
        labels[row, place : place + 3] = 1
    params = initial_params(module, jax.random.key(0), inputs)
    params = jax.tree.map(
        lambda v: v + 0.3 * jnp.asarray(rng.normal(size=v.shape), v.dtype), params
    )
    start_Q = starts(Examples(inputs, labels, np.array(["a", "b", "c"])))
    assert start_Q.tolist() == [2, 7, 14]
    found = np.asarray(greedy(module, params, jnp.asarray(inputs), jnp.asarray(start_Q)))
    for row, start in enumerate(start_Q):
        tokens = inputs[row, : start + 1].tolist()
        while len(tokens) < 20 and len(tokens) - start - 1 < found.shape[1]:
            alone = np.zeros((1, 20), np.int32)
            alone[0, : len(tokens)] = tokens
            logits = module.apply({"params": params}, jnp.asarray(alone))[0]
            tokens.append(int(logits[0, len(tokens) - 1].argmax()))
        own = tokens[start + 1 :]
        assert found[row, : len(own)].tolist() == own


def test_words_agree():
    assert f1("the old man", "The man.") == pytest.approx(0.8)
    assert f1("", "") == 1
    assert f1("A.", "B.") == 0


def test_rows_are_paired_over_tasks(tmp_path):
    rng = np.random.default_rng(0)
    hard = rng.random(16)  # tasks differ far more than methods
    figures = {
        "stride": {name: (hard + 0.02).tolist() for name in FIGURES},
        "tf-idf": {name: (hard + 0.001 * rng.normal(size=16)).tolist() for name in FIGURES},
    }
    rows = {row.name: row for row in recorded({"figures": figures}, "selection, 0 % wrong")}
    better = rows["selection, 0 % wrong: stride better than tf-idf by f1"]
    assert better.interval is not None
    assert 0.018 < better.interval[0] < better.value < better.interval[1] < 0.022
    worse = rows["selection, 0 % wrong: stride better than tf-idf by loss"]
    assert worse.value < 0, "a higher loss is worse"
    plain = json.loads(json.dumps([vars(row) | {"command": "c"} for row in rows.values()]))
    assert sections(plain, "selection, (.+)")["0 % wrong"]["stride"]["f1"]["value"] > 0
    assert "| stride |" in selection(plain)


def test_settings_are_chosen_on_the_other_half_of_the_tasks():
    tasks = tuple("abcde")
    # F1 of a model trained on a row alone. Of the first task no figure is taken; halves: bd, ce.
    f1_AxS = np.array([[0.2, 0.1], [0.9, 0.0], [0.0, 0.7], [0.8, 0.1], [0.1, 0.6]])

    class Told:
        targets = Targets(
            Examples(np.zeros((5, 1)), np.zeros(5), np.array(tasks)), tasks, np.arange(5)
        )

        def figures(self, task, rows_JxS, seed_J):
            own = f1_AxS[tasks.index(task)][rows_JxS[:, 0]]
            return np.stack([own, own, -own], axis=1)

    orders = [(np.array([row, 1 - row]),) * 5 for row in (0, 1)]
    made = [Choice("m", f"{row}", orders[row], 1) for row in (0, 1)]
    best = tuned(Told(), [*made, Choice("one", "", orders[0], 1)], ["a"])
    # What is best on b and d is not what c and e say, and their own figures have no voice.
    assert [one.setting for one in best["m"]] == ["0", "1", "0", "1", "0"]
    assert len(best["one"]) == 5


def test_rows_are_the_strongest_or_each_targets_in_turn():
    """Of two tasks with two targets each, over six rows."""
    scores_QxN = np.array(
        [[9, 8, 7, 0, 0, 0], [0, 0, 1, 3, 2, 0], [0, 5, 0, 0, 0, 4], [1, 0, 0, 0, 0, 2.0]]
    )
    task_Q = np.array([0, 0, 1, 1])
    examples = Examples(np.zeros((4, 1)), np.zeros(4), np.array(list("abcd")))
    rows = np.array(list("uvwxyz"))
    run = types.SimpleNamespace(
        train=Examples(np.zeros((6, 1)), np.zeros(6), rows),
        text=types.SimpleNamespace(train=types.SimpleNamespace(sizes_N=np.ones(6, int))),
    )
    pooled = _by_task(scores_QxN, task_Q)
    targets = Targets(examples, ("s", "t"), task_Q)
    made = {name: Choice("m", name, _orders(run, targets, own), 2) for name, own in pooled.items()}
    assert {name: [own.rows(a).tolist() for a in (0, 1)] for name, own in made.items()} == {
        "mean": [[0, 1], [1, 5]], "max": [[0, 1], [1, 5]], "turns": [[0, 3], [1, 5]],
    }  # fmt: skip


def test_methods_that_choose_together_take_what_both_rank_high():
    """Worked out by hand: 1 / (60 + rank), added up; rows that a method passes over come last."""
    one = Choice("one", "", (np.array([0, 1, 2, 3]),), 2)
    two = Choice("two", "", (np.array([3, 1, 4]),), 2)
    # Row 1 is second of both, 2 / 61; of rows 0 and 3, 1 / 60 + 1 / 63 each, the earlier is taken.
    assert joined([one, two], 0, 5).tolist() == [0, 1]
    np.testing.assert_allclose(
        fused(np.array([[9.0, 7.0, 5.0]] * 2), np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 2.0]])),
        [[1 / 60 + 1 / 62, 2 / 61, 1 / 62 + 1 / 60], [2 / 60, 2 / 61, 2 / 62]],
    )


def test_few_settings_of_a_grid_are_spread_over_it():
    assert _coarse([list(range(6)), [10, 11]]) == [[1, 4]], "which share a fit"
    assert _coarse([[0], [1], [2]]) == [[0], [2]]
    assert _coarse([[0], [1]]) == [[0], [1]]
    assert _coarse([[0]]) == [[0]]
