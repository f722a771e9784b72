"""A corpus prepared by any number of processes, read by a run; against text held in memory."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python import array_record_module

from stride_jax.applications.answer import ask
from stride_jax.applications.inquiry import AskSettings
from stride_jax.cli import prepare as command
from stride_jax.cli.doors import read_settings
from stride_jax.data import ShardSettings, load_shards
from stride_jax.data.corpus_files import Columns, CorpusError, cut_parts, list_files
from stride_jax.data.corpus_parts import is_held_out, part_name
from stride_jax.data.corpus_rows import read_rows
from stride_jax.data.documents import Document, Source
from stride_jax.data.packing import pack_stream, tokenise
from stride_jax.data.prepare import PrepareSettings, plan
from stride_jax.data.prepare_workers import write_parts
from stride_jax.data.prepared import check_files, finish
from stride_jax.data.text_examples import named
from stride_jax.data.tokens import load_tokenizer, train_tokenizer
from stride_jax.design import known_membership
from stride_jax.evaluation.bank_files import bank_origin
from stride_jax.fitting import fit_operators
from stride_jax.run import summary
from stride_jax.run.pipeline import Run
from stride_jax.run.planning import Extent, extent_of
from stride_jax.run.settings import run_settings
from stride_jax.run.verify import verify
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import UnreadableFileError, read_json

T = 16


@pytest.fixture(scope="module")
def texts():
    """Documents of made-up words, of very different lengths; some say the same."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdeé数 "), rng.integers(2, 7))) for _ in range(150)]
    lengths = rng.integers(1, 40, 240)
    made = [" ".join(rng.choice(words, n)) + "." for n in lengths]
    return [*made, *made[:12]]


@pytest.fixture(scope="module")
def corpus(texts, tmp_path_factory):
    """The documents as two Parquet files, and a tokenizer of them."""
    home = tmp_path_factory.mktemp("corpus")
    for i, part in enumerate((texts[:150], texts[150:])):
        names, pages = zip(*((f"{i}-{n}", 7 * n) for n in range(len(part))), strict=True)
        table = pa.table({"text": part, "id": names, "page": pages})
        pq.write_table(table, home / f"{i}.parquet", row_group_size=20)
    train_tokenizer(texts, 300).save(home / "tokenizer.json")
    return home


def settings_for(corpus, **changes):
    base = PrepareSettings(str(corpus), tokenizer=str(corpus / "tokenizer.json"), length=T)
    return dataclasses.replace(base, **changes)


def prepared(settings, folder, workers=1, shares=((0, 1),), part=None, monkeypatch=None):
    """A prepared folder; `part` cuts the input into parts of so many bytes."""
    if part is not None:
        cut = lambda files, size, columns: cut_parts(files, part, columns)  # noqa: E731
        monkeypatch.setattr("stride_jax.data.prepare.cut_parts", cut)
    job = plan(settings, folder)
    for share in shares:
        assert write_parts(job, workers, lambda tokens, parts: None, share)
    assert finish(job)["format"] == 1
    return folder


def content(folder):
    """Every file of a folder by its name."""
    files = (p for p in sorted(pathlib.Path(folder).rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def oracle(texts, tokenizer, predict_bos=False):
    documents = [Document(Source(f"{n}", f"{n}"), text) for n, text in enumerate(texts)]
    stream = tokenise(documents, tokenizer)
    return pack_stream(stream, T, tokenizer.bos_id, predict_bos=predict_bos)


@pytest.mark.parametrize("predict_bos", [False, True])
def test_packed_sequences_are_those_of_text_in_memory(
    corpus, texts, tmp_path, predict_bos, monkeypatch
):
    monkeypatch.setattr("stride_jax.data.corpus_parts._BATCH", 200)
    folder = prepared(settings_for(corpus, predict_bos=predict_bos), tmp_path / "out")
    tokenizer = load_tokenizer(corpus / "tokenizer.json")
    packed = [oracle(part, tokenizer, predict_bos) for part in (texts[:150], texts[150:])]
    splits = load_shards(ShardSettings(str(folder), num_query=1, num_calibration=0))
    whole = splits.train.stream
    rows = np.arange(len(whole))
    tokens = whole.read(rows)
    inputs_NxT = np.concatenate([own.inputs_NxT for own in packed])
    weights_NxT = np.concatenate([own.weights_NxT for own in packed])
    labels_NxT = np.concatenate([own.labels_NxT for own in packed])
    np.testing.assert_array_equal(tokens[:, :-1], inputs_NxT)
    np.testing.assert_array_equal(
        whole.labels(tokens, rows), np.where(weights_NxT > 0, labels_NxT, -1)
    )
    np.testing.assert_array_equal(whole.sizes(rows), np.concatenate([p.sizes_N for p in packed]))
    np.testing.assert_array_equal(
        whole.is_full(), np.concatenate([own.sizes_N for own in packed]) == T
    )


def test_documents_are_where_the_table_says(corpus, texts, tmp_path):
    folder = prepared(settings_for(corpus, held_out=0.3), tmp_path / "out")
    tokenizer = load_tokenizer(corpus / "tokenizer.json")
    streams = load_shards(ShardSettings(str(folder), num_query=1, num_calibration=0))
    train, lying, first = streams.train, [], 0
    for number, part in enumerate((texts[:150], texts[150:])):
        name = folder / "parts" / part_name(number)
        flat = {role: np.fromfile(f"{name}.{role}.tokens", "<u2") for role in ("train", "held")}
        for row in pq.read_table(f"{name}.documents.parquet").to_pylist():
            text = part[row["place"]]
            assert row["id"] == f"{number}-{row['place']}"
            assert row["stream"] == ("held" if is_held_out(text, 0.3) else "train")
            start = row["sequence"] * T + row["offset"]
            own = flat[row["stream"]][start : start + row["tokens"]]
            assert own[0] == tokenizer.bos_id
            assert own[1:].tolist() == tokenizer.encode(text).tolist()
            if row["stream"] == "train":
                lying.append((first + start, first + start + row["tokens"], row["id"]))
        first += train.stream.sequences[number] * T
    assert len(lying) > 100
    for row, place in enumerate(train.rows[np.arange(len(train.rows))].tolist()):
        own = range(place * T, place * T + int(train.sizes_N[row]))
        inside = [name for a, b, name in lying if a < own.stop and b > own.start]
        assert train.references(row) == inside
        for document in train.origins_of(row):
            number, at = map(int, document["id"].split("-"))
            assert document["metadata"] == {"page": 7 * at}
            if begin := document["offset"]:
                ids = tokenizer.encode((texts[:150], texts[150:])[number][at])
                assert train.examples.inputs[row, 0] == ids[begin]


@pytest.mark.parametrize(("workers", "shares"), [(2, ((0, 1),)), (1, ((2, 3), (0, 3), (1, 3)))])
def test_bytes_do_not_depend_on_the_processes(corpus, tmp_path, workers, shares, monkeypatch):
    settings = settings_for(corpus, held_out=0.2)
    alone = prepared(settings, tmp_path / "alone", part=900, monkeypatch=monkeypatch)
    shared = prepared(settings, tmp_path / "shared", workers, shares)
    assert len(list((alone / "parts").glob("*.json"))) > 6
    assert content(shared) == content(alone)
    assert check_files(shared) > 30


def test_stopped_anywhere_and_resumed_is_the_same(corpus, tmp_path, monkeypatch):
    settings = settings_for(corpus, held_out=0.2)
    monkeypatch.setattr("stride_jax.data.corpus_parts._BATCH", 300)
    alone = prepared(settings, tmp_path / "alone", part=900, monkeypatch=monkeypatch)

    class Killed(BaseException):
        pass

    rng, folder = np.random.default_rng(3), tmp_path / "killed"
    for writes in rng.integers(0, 12, 20):
        left = [int(writes)]

        def dies(real=os.replace, left=left):
            def replace(*paths):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                real(*paths)

            return replace

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dies())
            try:
                job = plan(settings, folder)
                write_parts(job, 1, lambda tokens, parts: None)
                finish(job)
            except Killed:
                pass
    prepared(settings, folder)
    left_over = {name for name in content(folder) if not pathlib.Path(name).name.startswith(".")}
    assert {n: v for n, v in content(folder).items() if n in left_over} == content(alone)


def test_command_killed_by_a_signal_goes_on(corpus, tmp_path):
    words = [
        sys.executable, "-m", "stride_jax", "prepare", f"--source={corpus}",
        f"--out={tmp_path / 'out'}", f"--tokenizer={corpus / 'tokenizer.json'}", f"--length={T}",
        "--workers=1",
    ]  # fmt: skip
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "out" / "job.json").exists():
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    alone = prepared(settings_for(corpus), tmp_path / "alone")
    assert command.main([*words[4:], "--check"]) == 0
    told = content(tmp_path / "out")
    assert {n: v for n, v in told.items() if ".lock" not in n and not n.endswith(".part")} == (
        content(alone)
    )


def rows_of(path, size=100, columns=Columns()):
    files = list_files(str(path))
    parts = cut_parts(files, size, columns)
    return [row for part in parts for row in read_rows(files[part.file], part, columns)], parts


def test_every_kind_of_file_gives_the_same_documents(texts, tmp_path):
    json_file, text_file = tmp_path / "a.jsonl", tmp_path / "b.txt"
    lines = [json.dumps({"text": text, "id": n}) for n, text in enumerate(texts)]
    json_file.write_text("\n\n".join(lines), encoding="utf-8")
    rows, parts = rows_of(json_file, 333)
    assert [row.text for row in rows] == texts
    assert [row.id for row in rows] == [str(n) for n in range(len(texts))]
    assert len(parts) > 10
    whole = json_file.read_bytes()
    assert all(whole[row.place :].startswith(b'{"text"') for row in rows)

    text_file.write_text("\n==\n".join(texts), encoding="utf-8")
    rows, _ = rows_of(text_file, columns=Columns(separator="\n==\n"))
    assert [row.text for row in rows] == texts
    (row,), _ = rows_of(text_file)
    assert row.text == text_file.read_text()

    for name, encode in {
        "c.array_record": str.encode,
        "d.array_record-00000-of-00001": None,
    }.items():
        writer = array_record_module.ArrayRecordWriter(str(tmp_path / name), "group_size:1")
        for text, line in zip(texts, lines, strict=True):
            writer.write(encode(text) if encode else line.encode())
        writer.close()
        rows, parts = rows_of(tmp_path / name, 999)
        assert [row.text for row in rows] == texts
        assert len(parts) > 3


def test_addresses_are_opened_by_fsspec(texts, corpus, tmp_path):
    remote = fsspec.filesystem("memory")
    for file in corpus.glob("*.parquet"):
        remote.pipe(f"/bucket/text/{file.name}", file.read_bytes())
    here = prepared(settings_for(corpus), tmp_path / "here")
    packed = {n: v for n, v in content(here).items() if n.startswith("parts")}
    for address in ("memory://bucket/text", f"file://{corpus}"):
        settings = settings_for(corpus, source=address)
        there = prepared(settings, tmp_path / address.partition(":")[0])
        assert packed == {n: v for n, v in content(there).items() if n.startswith("parts")}
    with pytest.raises(CorpusError, match=r"gs://b/x can't be opened here .*gcsf.*mount it"):
        list_files("gs://b/x")


def test_bad_rows_are_counted_and_named(texts, corpus, tmp_path):
    lines = [json.dumps({"text": text}).encode() for text in texts[:3]]
    bad = [b"{", b"[1]", b"{}", b'{"text": null}', b'{"text": 3}', b'{"text": " "}', b"\xff",
           b'{"text": "\\ud800"}']  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*bad, *lines]))
    folder = prepared(settings_for(corpus, source=str(tmp_path / "a.jsonl")), tmp_path / "out")
    manifest = read_json(folder / "manifest.json")
    assert manifest["documents"] == 3
    assert manifest["faults"] == {
        "not JSON": 1, "no JSON object": 1, "no 'text'": 1, "no text": 2, "not text": 1,
        "not UTF-8": 2,
    }  # fmt: skip
    assert manifest["named"][:2] == ["a.jsonl#0: not JSON", "a.jsonl#2: no JSON object"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"PAR1 torn", r"a\.parquet can't be read as Parquet"),
        ("a.array_record", b"torn", r"a\.array_record can't be read as array_record"),
        ("a.jsonl", b"", r"a\.jsonl is empty"),
        ("a.csv", b"1,2", r"holds 1 files, none ending in one of \.parquet"),
        ("a.jsonl", b'{"text": ""}', r"holds no text to train on \(1 rows left out: 1 no text"),
    ],
)
def test_input_that_is_no_corpus_is_refused_by_name(corpus, tmp_path, name, content, message):
    source = tmp_path / "source"
    source.mkdir()
    (source / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        prepared(settings_for(corpus, source=str(source)), tmp_path / "out")


def test_another_job_in_the_folder_is_refused(corpus, tmp_path):
    folder = prepared(settings_for(corpus), tmp_path / "out")
    with pytest.raises(ValueError, match=r"another job \(length: 16 there, 32 here\)"):
        plan(settings_for(corpus, length=32), folder)
    copied = tmp_path / "source"
    copied.mkdir()
    for file in corpus.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    settings = settings_for(copied, tokenizer=str(corpus / "tokenizer.json"))
    own = prepared(settings, tmp_path / "own")
    pq.write_table(pa.table({"text": ["more"]}), copied / "2.parquet")
    with pytest.raises(ValueError, match=r"1 files of the source changed, such as 2\.parquet"):
        plan(settings, own)
    with pytest.raises(ValueError, match=r"no column .body.: give --text_column as one of"):
        plan(settings_for(corpus, text_column="body"), tmp_path / "body")


def test_damaged_shards_are_told_by_name(corpus, tmp_path):
    folder = prepared(settings_for(corpus), tmp_path / "out")
    own = ShardSettings(str(folder), num_query=2, num_calibration=2)
    tokens = folder / "parts" / "00001.train.tokens"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-2])
    with pytest.raises(UnreadableFileError, match=r"00001\.train\.tokens has \d+ bytes, and \d+"):
        load_shards(own)
    tokens.write_bytes(b"\xff\xff" * (len(whole) // 2))
    with pytest.raises(UnreadableFileError, match=r"00001\.train\.tokens is missing, or not what"):
        check_files(folder)
    train = load_shards(own).train.examples
    with pytest.raises(UnreadableFileError, match=r"00001\.train\.tokens holds the token 65535"):
        np.asarray(train.inputs)
    tokens.unlink()
    with pytest.raises(UnreadableFileError, match=r"00001\.train\.tokens is missing"):
        load_shards(own)
    tokens.write_bytes(whole)
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b" ")
    with pytest.raises(UnreadableFileError, match=r"not the one that the corpus was tokenised"):
        load_shards(own)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="some of its parts are missing"):
        load_shards(own)
    with pytest.raises(ValueError, match="make one with stride-jax prepare"):
        load_shards(ShardSettings(str(tmp_path)))
    with pytest.raises(ValueError, match=r"shards.folder='gs://b/tokens': these are local"):
        load_shards(ShardSettings("gs://b/tokens"))


def test_sequences_are_named_as_in_memory_copies_too(corpus, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    text = "abc " * 40
    (folder / "a.jsonl").write_text("\n".join([json.dumps({"text": text})] * 9))
    settings = settings_for(corpus, source=str(folder))
    shards = load_shards(
        ShardSettings(str(prepared(settings, tmp_path / "out")), num_query=1, num_calibration=0)
    )
    tokenizer = load_tokenizer(corpus / "tokenizer.json")
    with pytest.warns(UserWarning, match="repeat another's content"):
        (memory,) = named({"train": oracle([text] * 9, tokenizer)}, ()).values()
    query = set(shards.query.examples.ids.tolist())
    ids = shards.train.examples.ids.tolist()
    assert len(set(ids)) == len(ids) == len(memory) - 1
    assert {*ids, *query} == set(memory.ids.tolist())
    keys = shards.train.examples.keys
    assert keys is not None
    same = [tuple(row) for row in np.asarray(shards.train.examples.inputs).tolist()]
    assert len(set(zip(same, keys.tolist(), strict=True))) == len(set(keys.tolist()))


SMALL = {
    "model": {"kind": "gpt", "gpt": {
        "depth": 1, "width": 16, "num_heads": 2, "num_kv_heads": 2, "smear": False,
        "backout": False, "sequence_len": T,
    }},
    "train": {"epochs": 1, "batch_size": 16, "optimizer": "adamw", "learning_rate": 8e-3},
    "num_checkpoints": 1,
    "index": {
        "design": {"num_subsets": 48, "kind": "hash"}, "kept": 0, "basis": {"rank": 8},
        "taps": ("embedding", "final"), "output_rank": 32,
    },
    "read": {"exact": {"budget": 0}},
}  # fmt: skip


def test_run_from_shards_is_the_run_from_text_in_memory(corpus, texts, tmp_path):
    source = tmp_path / "all.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts[:240]))
    settings = settings_for(corpus, source=str(source))
    folder = prepared(settings, tmp_path / "tokens")
    held = {"num_query": 6, "num_calibration": 6, "max_train": 150}
    text = {"name": "files", "path": str(source), "tokenizer": settings.tokenizer, "length": T}
    memory = Run(run_settings({**SMALL, "text": {**text, **held}}), tmp_path / "memory")
    run = Run(run_settings({**SMALL, "shards": {"folder": str(folder), **held}}), tmp_path / "run")
    for role, own in memory.data[0].items():
        other = run.data[0][role]
        for name in ("inputs", "labels", "ids"):
            np.testing.assert_array_equal(getattr(other, name)[:], getattr(own, name))
    # Data that are not held are named by their ids.
    data = dict.fromkeys(("train_data", "query_data"), "")
    here, there = (bank_origin(one.retraining) for one in (run, memory))
    assert dataclasses.replace(here, **data) == dataclasses.replace(there, **data)
    # The same model, so that only what is read, and how, may differ.
    subsets_Nxd = known_membership(run.frozen.settings.design, memory.train.ids)
    np.testing.assert_array_equal(run.index.subsets_Nxd, subsets_Nxd)
    fitted = fit_operators(run.frozen, memory.train, subsets_Nxd, Execution(run.mesh))
    for site, own in fitted.operators.items():
        other = run.index.operators[site]
        np.testing.assert_allclose(other.a_KxRxO, own.a_KxRxO, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other.size_K, own.size_K, rtol=1e-5)
    assert run.measurements.shape == (6, 48)
    assert summary.write(run, until="attribution")["num_train"] == 150
    said = list(verify(Run(run.settings, run.workdir)))
    assert not [one for one in said if one.level == "error"]
    with pytest.raises(IndexError, match="row 150 of 150"):
        _ = run.train.inputs[150]
    shards = {"folder": str(folder), **held}
    assert extent_of({"shards": {**shards, "num_query": "6"}}) == Extent(150, 6, (T,), 300)
    assert extent_of({"shards": shards, "plan": {"num_train": 10**7}}).num_train == 10**7


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"groups": "document"}, "groups"),
        ({"near_copies": {}}, "near_copies"),
        ({"facts": 3}, "facts"),
        ({"read": {"exact": {"sources": ("bm25",)}}}, "read.exact.sources=bm25"),
    ],
)
def test_what_reads_all_texts_is_refused_with_shards(changes, name):
    with pytest.raises(ValueError, match=rf"{name} reads all texts into memory, .* leave it out"):
        run_settings({"shards": {"folder": "tokens"}, **changes})


@pytest.mark.slow
def test_a_run_of_shards_is_asked_after_recovery_without_a_bank(corpus, tmp_path):
    folder = prepared(settings_for(corpus), tmp_path / "tokens")
    read = {"measure": {"form": "first_order", "group": 4}, "exact": {"budget": 20}}
    held = {"num_query": 6, "num_calibration": 6}
    values = {**SMALL, "read": read, "shards": {"folder": str(folder), **held}}
    run = Run(run_settings(values), tmp_path / "run")
    summary.write(run, until="recovery")
    words = run.corpus.tokenizer.decode(run.train.inputs[3][1:12])
    for completion in (words[6:], words[4:9]):
        answer = ask(run, words[:4], completion, settings=AskSettings(sources=("features",)))
        assert answer.proponents
        assert answer.opponents
        for passage in answer.proponents:
            assert [own["id"] for own in passage.documents] == passage.references
            assert all(own["metadata"]["page"] % 7 == 0 for own in passage.documents)


def test_held_out_documents_are_in_no_training_sequence(corpus, tmp_path):
    folder = prepared(settings_for(corpus, held_out=0.3), tmp_path / "out")
    own = ShardSettings(str(folder), num_query=3, num_calibration=3, split="document")
    splits = load_shards(own)
    names = {
        role: {i for row in range(len(split.rows)) for i in split.references(row)}
        for role, split in (("train", splits.train), ("query", splits.query))
    }
    assert names["query"]
    assert not names["query"] & names["train"]
    few = load_shards(dataclasses.replace(own, max_train=20)).train
    assert len(few.rows) == 20
    assert set(few.examples.ids.tolist()) < set(splits.train.examples.ids.tolist())
    with pytest.raises(ValueError, match="hold out fewer, or prepare with more"):
        load_shards(dataclasses.replace(own, num_query=10**6))


def test_own_text_in_ten_lines_of_config(corpus, tmp_path, monkeypatch, capsys):
    page = (pathlib.Path(__file__).parents[1] / "docs/own_text.md").read_text()
    (config,) = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(config.splitlines()) <= 10
    (words,) = re.findall(r"stride-jax prepare (.*)", page)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").symlink_to(corpus)
    small = f"--workers=1 --tokenizer={corpus / 'tokenizer.json'} --length={T}"
    assert command.main([*words.split(), *small.split()]) == 0
    assert "252 documents" in capsys.readouterr().out
    (tmp_path / "own.py").write_text(config)
    (words,) = re.findall(r"stride-jax run (.*)", page)
    flags = dict(word.removeprefix("--").split("=") for word in words.split())
    _, settings = read_settings(flags["config"], {"shards.num_query": "5"})
    run = Run(settings, flags["workdir"])
    assert run.query.inputs.shape == (5, T)
    assert run.train.inputs.shape == (len(run.train), T)
    assert run.data[1] == 300
    assert run.module is not None
