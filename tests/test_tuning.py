"""Prompts with completions, and chats: what counts, what is cut, and what is refused."""

import json
import pathlib
import re
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stride_jax.applications.answer import ask
from stride_jax.applications.inquiry import AskSettings
from stride_jax.applications.question import question
from stride_jax.baselines.model import Model
from stride_jax.data import TuningSettings, load_tuning, template_of
from stride_jax.data.bible import packaged_verses
from stride_jax.data.chat_template import ChatTemplate
from stride_jax.data.dialogues import Message, read_dialogues
from stride_jax.data.tokens import load_tokenizer, train_tokenizer
from stride_jax.objectives import cross_entropy
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import check_workdir, read_run_settings, run_settings
from stride_jax.scores import as_dense

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>'"
    " + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% endif %}"
)


def sums(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{i} plus {i + 1} is ", "completion": f"{2 * i + 1}", "task": f"add {i % 3}"}
        for i in range(count)
    ]


def written(folder: pathlib.Path, rows: Sequence[Any], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def settings_for(path: str, **changes: Any) -> TuningSettings:
    small = {"vocab_size": 300, "length": 16, "num_calibration": 4, "num_query": 6}
    return TuningSettings(path, **{**small, **changes})


def counted(text: Any, tokenizer: Any, row: int) -> str:
    """The text of the labels that count."""
    return tokenizer.decode(text.labels_NxT[row][text.weights_NxT[row] > 0])


def test_completions_alone_count(tmp_path: pathlib.Path) -> None:
    """Every row is a sequence of one split; its completion and the stop are what is learnt."""
    rows = sums(40)
    splits = load_tuning(settings_for(written(tmp_path, rows)), tmp_path)
    seen = []
    for role, size in (("train", 30), ("calibration", 4), ("query", 6)):
        text = getattr(splits, role)
        assert len(text) == size
        for i in range(size):
            [origin] = text.origins_of(i)
            row = rows[int(origin["id"].partition("#")[2])]
            assert text.texts(splits.tokenizer)[i] == row["prompt"] + row["completion"] + "\n"
            assert counted(text, splits.tokenizer, i) == f" {row['completion']}\n"
            assert origin["metadata"] == {"task": row["task"]}
            seen.append(origin["id"])
    assert len(set(seen)) == 40
    assert set(splits.train.origins("task")) == {"add 0", "add 1", "add 2"}
    again = load_tuning(settings_for(written(tmp_path, rows)), tmp_path)
    np.testing.assert_array_equal(again.train.ids, splits.train.ids)


def test_kinds_of_files_hold_the_same(tmp_path: pathlib.Path) -> None:
    """JSON lines, Parquet, a saved dataset; chats as lists and as JSON; the same sequences."""
    import datasets

    plain = sums(30)
    chats = [
        {"messages": [{"role": "user", "content": r["prompt"]},
                      {"role": "assistant", "content": r["completion"]}], "task": r["task"]}
        for r in plain
    ]  # fmt: skip
    told = [{**row, "messages": json.dumps(row["messages"])} for row in chats]
    paths = [written(tmp_path, plain), written(tmp_path, chats, "chats.jsonl")]
    for name, rows in (("plain", plain), ("chats", chats), ("told", told)):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        paths.append(str(tmp_path / f"{name}.parquet"))
    datasets.Dataset.from_list(chats).save_to_disk(tmp_path / "saved")
    paths.append(str(tmp_path / "saved"))
    datasets.DatasetDict(a=datasets.Dataset.from_list(chats)).save_to_disk(tmp_path / "several")
    with pytest.raises(ValueError, match=r"holds the splits \['a'\]: give the folder of one"):
        load_tuning(settings_for(str(tmp_path / "several")), tmp_path)
    splits = [load_tuning(settings_for(path), tmp_path) for path in paths]
    for other in splits[1:]:
        for role in ("train", "query"):
            one, two = getattr(splits[0], role), getattr(other, role)
            np.testing.assert_array_equal(one.inputs_NxT, two.inputs_NxT)
            np.testing.assert_array_equal(one.weights_NxT, two.weights_NxT)


def chat_folder(folder: pathlib.Path, template: str) -> str:
    """A tokenizer with special tokens and a chat template beside it."""
    texts = ["how many are there in all of it", "system user assistant"]
    core = train_tokenizer(texts, 270).core
    core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    core.save(str(folder / "tokenizer.json"))
    config = {"chat_template": template, "eos_token": {"content": "<|im_end|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder / "tokenizer.json")


def test_chats_count_what_the_assistant_says(tmp_path: pathlib.Path) -> None:
    """Against the ids that the whole text has, put together by hand."""
    path, rows = chat_folder(tmp_path, CHATML), []
    for i in range(20):
        said = [("system", "sums"), ("user", f"{i}"), ("assistant", f"{i}!"),
                ("user", "more"), ("assistant", f"all {i}")]  # fmt: skip
        rows.append({"messages": [{"role": r, "content": c} for r, c in said], "id": f"chat {i}"})
    given = settings_for(
        written(tmp_path, rows), tokenizer=path, template="chat", length=96, num_query=2
    )
    splits = load_tuning(given, tmp_path)
    tokenizer = load_tokenizer(path)
    start, end = (tokenizer.core.token_to_id(m) for m in ("<|im_start|>", "<|im_end|>"))
    for i in range(len(splits.train)):
        number = int(splits.train.origins("document")[i].split()[1])
        expected, learnt = [], []
        for turn in rows[number]["messages"]:
            head = [start, *tokenizer.encode(turn["role"] + "\n").tolist()]
            body = [*tokenizer.encode(turn["content"]).tolist(), end, *tokenizer.encode("\n")]
            own = turn["role"] == "assistant"
            expected += head + body
            learnt += [False] * len(head) + [own] * len(body)
        size = len(expected)
        assert splits.train.inputs_NxT[i, :size].tolist() == expected
        weights = splits.train.weights_NxT[i]
        assert (weights[: size - 1] > 0).tolist() == learnt[1:]
        assert not weights[size - 1 :].any()
    # A question is written down as training writes it.
    inputs, labels = question(tokenizer, "7", "7!", 96, template=template_of(given))
    parts = [start, "user\n", "7", end, "\n", start, "assistant\n"]
    texts = [[p] if isinstance(p, int) else tokenizer.encode(p).tolist() for p in parts]
    head = [i for own in texts for i in own]
    assert inputs[0, : len(head)].tolist() == head
    answer = tokenizer.encode("7!")
    assert labels[0, len(head) - 1 :][: len(answer)].tolist() == answer.tolist()


def test_a_template_that_rewrites_is_refused() -> None:
    """What the assistant says must follow what came before it, letter by letter."""
    last_alone = "{{ messages[-1]['content'] }}"
    asked = [Message("user", "a"), Message("assistant", "b")]
    with pytest.raises(ValueError, match="row 3: the chat template writes message 1"):
        ChatTemplate(last_alone).parts(asked, "row 3")
    with pytest.raises(ValueError, match="alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").parts(asked, "row 3")
    with pytest.raises(ValueError, match="can't write these messages"):
        ChatTemplate("{% for %}").parts(asked, "row 3")
    # Jinja's sandbox keeps a template from everything but its messages.
    with pytest.raises(ValueError, match="can't write"):
        ChatTemplate("{{ messages.__class__.__mro__ }}").parts(asked, "row 3")


def test_rows_that_do_not_fit_are_counted_and_named(tmp_path: pathlib.Path) -> None:
    """Prompts without room for an answer are left out; long answers are cut; both are said."""
    rows = sums(30)
    rows[3]["prompt"], rows[4]["completion"] = "many words " * 40, "a long answer " * 40
    path = written(tmp_path, rows)
    with pytest.warns(UserWarning, match="of 28 rows") as told:
        splits = load_tuning(settings_for(path, num_query=1, num_calibration=1), tmp_path)
    said = sorted(str(w.message) for w in told)
    for text, what, where in zip(said, ("cut: not all", "left out"), (5, 4), strict=True):
        assert f"1 of 28 rows are {what}" in text
        assert f"rows.jsonl line {where})" in text
    assert len(splits.train) == 27
    assert (splits.train.weights_NxT.sum(axis=1) > 0).all()
    with pytest.raises(ValueError, match="none has a completion within 2 tokens: raise length"):
        load_tuning(settings_for(path, length=2), tmp_path)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "1", "answer": "2"}, r"line 2 has no column 'prompt'.*'answer', 'question'"),
        ({"prompt": "1", "completion": "  "}, "line 2: column 'completion' is empty"),
        ({"prompt": 3, "completion": "4"}, "column 'prompt' must hold text, not 3"),
        ({"prompt": "1", "completion": "\ud800"}, "half of a character"),
        ({"messages": []}, "must end with what the assistant says"),
        ({"messages": [{"role": "user", "content": "a"}]}, "ends with 'user'"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "message 0: role='bot' must be one of"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "the assistant says nothing"),
        ({"messages": "no json"}, "not JSON"),
        ({"messages": {"role": "user"}}, "must be a list"),
        ({"messages": [{"role": r, "content": "a"} for r in ("system", "user", "assistant")]},
         "chat of 3 messages: give template"),
        ("text", "line 2 must be an object"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path: pathlib.Path, row: Any, says: str) -> None:
    rows = [*sums(1), row, *sums(20)[1:]]
    with pytest.raises(ValueError, match=says):
        load_tuning(settings_for(written(tmp_path, rows), num_query=1, num_calibration=1), tmp_path)


def test_bad_settings_are_named(tmp_path: pathlib.Path) -> None:
    path = written(tmp_path, sums(10))
    for changes, says in (
        ({}, "leave nothing of the 10 rows"),
        ({"template": "chat"}, "none is given: name the tokenizer"),
        ({"template": "none.jinja"}, "no template file none.jinja"),
        ({"num_query": 0}, "num_query=0 must be at least 1"),
        ({"query_path": str(tmp_path / "no.jsonl")}, "no file or folder"),
    ):
        with pytest.raises(ValueError, match=says):
            load_tuning(settings_for(path, **changes), tmp_path)
    own = chat_folder(tmp_path, CHATML)
    forged = [*sums(9), {"prompt": "<|im_end|>", "completion": "x"}]
    given = settings_for(written(tmp_path, forged), tokenizer=own, template="chat",
                         num_query=1, num_calibration=1, length=64)  # fmt: skip
    with pytest.raises(ValueError, match=r"line 10: a message spells the special token"):
        load_tuning(given, tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        load_tuning(given, tmp_path)


def test_own_queries(tmp_path: pathlib.Path) -> None:
    """A file of queries leaves the rows to be trained on, and ids of both may be alike."""
    path, asked = written(tmp_path, sums(20)), written(tmp_path, sums(25)[20:], "asked.jsonl")
    given = settings_for(path, query_path=asked, num_query=3, num_calibration=1)
    splits = load_tuning(given, tmp_path)
    assert (len(splits.train), len(splits.query), len(splits.calibration)) == (19, 3, 1)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Halves of real verses, learnt by factors of a model that was trained before."""
    folder = tmp_path_factory.mktemp("tuned")
    first = [verse for verse in packaged_verses("kjv") if verse.chapter == 1]
    verses = [verse for verse in first if len(verse.text.split()) >= 12][:120]
    rows = []
    for verse in verses:
        words = verse.text.split()
        said = {"prompt": " ".join(words[:6]), "completion": " " + " ".join(words[6:12])}
        rows.append({**said, "book": verse.book, "id": f"{verse.book} {verse.verse}"})
    own = {"depth": 1, "width": 32, "num_heads": 2, "num_kv_heads": 2, "sequence_len": 48}
    asked = [{**row, "id": f"asked {row['id']}"} for row in rows[:8]]
    tuning = {
        "path": written(folder, rows), "query_path": written(folder, asked, "asked.jsonl"),
        "num_query": 0, "num_calibration": 8, "vocab_size": 400, "length": 48,
    }  # fmt: skip
    train = {"epochs": 6, "batch_size": 8, "optimizer": "adamw", "learning_rate": 3e-3}
    base = {"tuning": tuning, "model": {"kind": "gpt", "gpt": own}, "train": train,
            "num_checkpoints": 1}  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*repeat another's content")
        check_workdir(folder / "base", run_settings(base))
        assert Run(run_settings(base), folder / "base").model.params
        values = {
            "tuning": {**tuning, "vocab_size": 1024},  # the model's own tokenizer is taken
            "model": {"init_from": str(folder / "base")},
            "train": {**train, "lora": {"rank": 4, "layers": ("up", "down")}},
            "index": {"taps": ("final",), "design": {"num_subsets": 24, "degree": 4},
                      "basis": {"rank": 16}, "output_rank": 32, "kept": 0},
            "read": {"exact": {"budget": None}}, "groups": "book",
        }  # fmt: skip
        run = Run(run_settings(values), folder / "run")
        assert run.model.params
    return run


def test_a_model_is_fine_tuned_by_its_factors(tuned: Run) -> None:
    """Named layers differ from the model that was there, and no other; the loss falls."""
    folder = pathlib.Path(tuned.settings.model.init_from)
    before = Run(read_run_settings(folder), folder).model
    moved = {
        jax.tree_util.keystr(path): bool((np.asarray(a) != np.asarray(b)).any())
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(before.params),
            jax.tree.leaves(tuned.model.params),
            strict=True,
        )
    }
    assert {name for name, changed in moved.items() if changed} == {
        f"['block0']['{layer}']['kernel']" for layer in ("up", "down")
    }
    labels = jnp.asarray(tuned.train.labels)

    def loss(model: Model) -> float:
        logits = model.module.apply({"params": model.params}, tuned.train.inputs)[0]
        return float(cross_entropy(logits, labels).sum())

    assert loss(tuned.model) < loss(before)


def test_answers_name_the_rows_that_were_learnt(tuned: Run) -> None:
    """Questions that are training rows find these; passages bring their columns; groups are told.

    Exact scores of all rows, so what is not found is not in the model.
    """
    own = as_dense(tuned.influences)
    names = {name: i for i, name in enumerate(tuned.corpus.train.origins("document").tolist())}
    ranks = []
    for q, name in enumerate(tuned.corpus.query.origins("document").tolist()):
        row = names.get(name.removeprefix("asked "))
        if row is not None:
            ranks.append(int((own[q] > own[q, row]).sum()))
    assert len(ranks) >= 5
    assert np.median(ranks) <= 1, ranks
    row = tuned.corpus.train.origins_of(0)[0]
    prompt = next(r for r in read_dialogues(tuned.settings.tuning.path) if r.source.id == row["id"])
    said = [m.content for m in prompt.messages]
    answer = ask(tuned, said[0], said[1].split(",")[0], settings=AskSettings(top=4))
    assert all(set(p.documents[0]["metadata"]) == {"book"} for p in answer.proponents)
    assert {g.name for g in answer.groups} <= {*tuned.corpus.train.origins("book")}
    assert answer.groups
    assert ask(tuned, said[0]).generated


def test_wrong_runs_are_refused(tmp_path: pathlib.Path) -> None:
    rows = written(tmp_path, sums(10))
    with pytest.raises(ValueError, match=r"train\.lora fine-tunes a model that is there"):
        run_settings({"tuning": {"path": rows}, "model": {"kind": "gpt"},
                      "train": {"lora": {"rank": 2}}})  # fmt: skip
    with pytest.raises(ValueError, match="facts=2 plants sentences"):
        run_settings({"tuning": {"path": rows}, "model": {"kind": "gpt"}, "facts": 2})


def test_a_prompt_is_written_as_in_training(tmp_path: pathlib.Path) -> None:
    """The space at its end is the answer's; what is generated follows what was learnt."""
    splits = load_tuning(settings_for(written(tmp_path, sums(40))), tmp_path)
    template = ChatTemplate(stop="\n")
    text, rows = splits.train, sums(40)
    for i in range(3):
        row = rows[int(text.origins("document")[i].partition("#")[2])]
        said = splits.tokenizer, row["prompt"], row["completion"] + "\n", 16
        inputs, labels = question(*said, template=template)
        size = int(text.sizes_N[i]) - 1  # what nothing follows is no input of a question
        np.testing.assert_array_equal(inputs[0, :size], text.inputs_NxT[i, :size])
        np.testing.assert_array_equal(labels[0] >= 0, text.weights_NxT[i] > 0)


def test_fine_tuning_in_ten_lines_of_config() -> None:
    page = (pathlib.Path(__file__).parents[1] / "docs/fine_tuning.md").read_text()
    (config,) = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(config.splitlines()) <= 10
    space: dict[str, Any] = {}
    exec(config, space)
    settings = run_settings(space["get_config"](), adopt=False)
    assert settings.tuning.path == "rows.jsonl"
    for line in re.findall(r"```json\n(.*?)```", page, re.S)[0].splitlines():
        assert json.loads(line)["task"]
