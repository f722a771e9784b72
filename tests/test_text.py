"""Text: Bible and own files, tokenizer, packing, splits on disk, batches."""

import dataclasses
import datetime
import itertools
import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from stride_jax.data import TextExamples, TextSettings, bible, load_text
from stride_jax.data.batches import BatchSettings, batches, num_batches
from stride_jax.data.documents import Document, Source, joined, read_documents
from stride_jax.data.packing import (
    Spans,
    cut_documents,
    pack_documents,
    pack_stream,
    tokenise,
)
from stride_jax.data.text import split_documents
from stride_jax.data.tokens import BOS, load_tokenizer, train_tokenizer
from stride_jax.runtime.files import UnreadableFileError

LINES = [
    "In the beginning God created the heaven and the earth.",
    "And the earth was without form, and void; and darkness was upon the face of the deep.",
    "Ægean seas — “naïve” café, 数据 🙂\n\ttabs  and   spaces ",
    "Let there be light: and there was light.",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where the King James Version is prepared once."""
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def kjv(home):
    """All its verses."""
    return bible.read_verses(["kjv"], home / "data" / "tfds")


GENESIS = TextSettings(books=("Genesis",), max_train=500)


@pytest.fixture(scope="module")
def genesis(home):
    return load_text(GENESIS, home)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(LINES * 3, 300)


@pytest.fixture(scope="module")
def documents():
    """Two chapters of two verses and a document in one piece."""
    chapter = [
        joined(Source(f"b {n}", f"b {n}", ("1", "2")), LINES[n : n + 2], " ") for n in (0, 2)
    ]
    return [*chapter, Document(Source("note", "note"), LINES[3])]


# --- The Bible -------------------------------------------------------------------------------


def test_verses_are_read_in_order_from_array_record(home, kjv):
    verses = kjv
    assert len(verses) == 31_102, "66 books, none of the King James Version's verses empty"
    assert verses[0] == ("kjv", "Genesis", 1, 1, LINES[0])
    assert verses[-1].text == "The grace of our Lord Jesus Christ be with you all. Amen."
    assert tuple(dict.fromkeys(v.book for v in verses)) == bible.BOOKS
    chapters = bible.chapters(verses)
    assert len(chapters) == 1189
    assert len({chapter.source.id for chapter in chapters}) == 1189
    builder = tfds.builder("bible/kjv", data_dir=home / "data" / "tfds")
    assert builder.as_data_source("train")[1]["verse"] == 2, "TFDS knows it by name"


def test_verses_are_cleaned():
    assert bible.clean(" God`s [was] good.\nAnd ’twas") == "God's was good. And 'twas"
    assert bible.clean("in God.[Selah") == "in God. Selah"
    assert bible.clean("shall perish.      Psalm 2") == "shall perish."
    assert bible.clean("angry.      Psalm 3  A Psalm by David.") == "angry."


def test_unknown_names_are_refused_with_those_there_are(home):
    with pytest.raises(ValueError, match=r"no translation 'niv'.*kjv.*asv.*web"):
        load_text(TextSettings(translations=("niv",)), home)
    with pytest.raises(ValueError, match=r"no book 'Enoch'.*Genesis.*Revelation"):
        load_text(TextSettings(books=("Enoch",)), home)
    with pytest.raises(ValueError, match=r"no text 'quran'.*'bible'"):
        load_text(TextSettings("quran"), home)


# --- The user's own files ----------------------------------------------------------------------


def test_three_formats_give_the_same_documents(tmp_path):
    rows = [{"text": line, "id": f"d{i}", "year": 1900 + i} for i, line in enumerate(LINES)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("\n==\n".join(LINES))
    jsonl = read_documents(tmp_path / "a.jsonl")
    assert jsonl == read_documents(tmp_path / "a.parquet")
    assert jsonl[1].source == Source("d1", "d1", metadata={"year": 1901})
    txt = read_documents(tmp_path / "a.txt", separator="\n==\n")
    assert [d.text for d in txt] == [d.text for d in jsonl] == LINES
    assert txt[2].source.id == "a.txt#2"
    [whole] = read_documents(tmp_path / "a.txt")
    assert whole.source.id == "a.txt"
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("x")
    found = [document.source.id for document in read_documents(tmp_path)]
    assert found == ["d0", "d1", "d2", "d3", "a.txt", "in/a.txt"], "all of a folder's files"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "a.txt is empty.*put text into it"),
        ("a.txt", " \n ", "holds no text"),
        ("a.jsonl", '{"body": "x", "id": 1}', r"no column 'text'; it has \['body', 'id'\]"),
        ("a.jsonl", '{"text": "x"}\n{"text"', "line 2 is not JSON"),
        ("a.jsonl", '["x"]', "line 1 must be an object"),
        ("a.jsonl", '{"text": "x"}\n{"text": 3}', "line 2: column 'text' must hold text, not 3"),
        ("a.jsonl", '{"text": "x", "id": 1}\n{"text": "y", "id": 1}', "more than once.*'1'"),
        ("a.csv", "text", r"must end in one of \['.txt', '.jsonl', '.parquet'\], not '.csv'"),
    ],
)
def test_unreadable_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_documents(tmp_path / name)


def test_missing_files_and_columns_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        read_documents(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="holds no file ending in"):
        read_documents(tmp_path)
    pq.write_table(pa.table({"body": ["x"], "id": ["1"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no column 'text'; it has \['body', 'id'\]"):
        read_documents(tmp_path / "a.parquet")
    assert read_documents(tmp_path / "a.parquet", text_column="body")[0].text == "x"
    (tmp_path / "a.parquet").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"a.parquet can't be read as Parquet"):
        read_documents(tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a.txt is not UTF-8.*convert it"):
        read_documents(tmp_path / "a.txt")


# --- Tokens ------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(text=st.text())
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_is_deterministic_and_kept(tokenizer, tmp_path):
    # Trained in another process, on another day: the merges are the same.
    ids = tokenizer.encode("the heaven and earth")
    assert ids.tolist() == [257, 69, 221, 72, 261, 277, 78, 263, 287]
    assert tokenizer.pieces(ids) == ["th", "e", " ", "h", "ea", "ve", "n", " and", " earth"]
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.core.to_str() == tokenizer.core.to_str()
    assert train_tokenizer(LINES * 3, 300).core.to_str() == tokenizer.core.to_str()
    assert loaded.vocab_size == 300
    ids = loaded.encode(f"a {BOS} b")
    assert loaded.bos_id not in ids, "a mark spelled out in a text is text"
    assert loaded.decode(ids) == f"a {BOS} b"


def test_bad_vocabularies_and_tokenizers_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"vocab_size=100 is too small: 257"):
        train_tokenizer(LINES, 100)
    with pytest.raises(ValueError, match=r"vocab_size=5000 is too large.* use \d+ or fewer"):
        train_tokenizer(LINES, 5000)
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(ValueError, match=r"t.json can't be read as an HF tokenizer.json"):
        load_tokenizer(tmp_path / "t.json")
    with pytest.raises(ValueError, match="no tokenizer file"):
        load_tokenizer(tmp_path / "none.json")
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE()).save(str(tmp_path / "bare.json"))
    with pytest.raises(ValueError, match=r"bare.json has none of \['<\|bos\|>'"):
        load_tokenizer(tmp_path / "bare.json")


# --- Packing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 7, 16, 1000])
def test_stream_covers_every_token_once_and_labels_follow(documents, tokenizer, length):
    rows = tokenise(documents, tokenizer)
    packed = pack_stream(rows, length, tokenizer.bos_id, predict_bos=True)
    held = np.arange(length) < packed.sizes_N[:, None]
    inputs, labels = packed.inputs_NxT[held], packed.labels_NxT[packed.weights_NxT > 0]
    # One token that is last and alone in its sequence would have no label: it is a label only.
    np.testing.assert_array_equal(inputs, rows.tokens_S[: len(inputs)])
    assert len(inputs) >= len(rows.tokens_S) - 1
    np.testing.assert_array_equal(labels, rows.tokens_S[1:])
    silent = pack_stream(rows, length, tokenizer.bos_id)
    changed = packed.weights_NxT != silent.weights_NxT
    assert changed.sum() == len(documents) - 1
    assert (packed.labels_NxT[changed] == tokenizer.bos_id).all()


@pytest.mark.parametrize("length", [5, 16])
def test_spans_cover_the_inputs_and_give_back_each_passage(documents, tokenizer, length):
    packed = pack_stream(tokenise(documents, tokenizer), length, tokenizer.bos_id)
    covered = np.zeros(packed.inputs_NxT.shape, int)
    found: dict[tuple[int, int], list[int]] = {}
    for row, start, stop, document, passage in zip(*packed.spans.columns(), strict=True):
        covered[row, start:stop] += 1
        found.setdefault((document, passage), []).extend(packed.inputs_NxT[row, start:stop])
    np.testing.assert_array_equal(covered, np.arange(length) < packed.sizes_N[:, None])
    last_label = packed.labels_NxT[-1, packed.sizes_N[-1] - 1]
    if packed.weights_NxT[-1, packed.sizes_N[-1] - 1]:
        found[max(found)].append(last_label)
    for (document, passage), ids in found.items():
        text, bounds = documents[document].text, [*documents[document].starts, None]
        assert tokenizer.decode(ids) == text[bounds[passage] : bounds[passage + 1]]


def test_document_mode_cuts_and_pads(documents, tokenizer):
    rows = tokenise(documents, tokenizer)
    sizes = np.diff(np.append(rows.starts_D, len(rows.tokens_S)))
    for length in (int(sizes[2]) - 1, int(sizes[2]), 500):
        packed = pack_documents(rows, length, tokenizer.bos_id)
        assert len(packed) == 3
        assert (packed.inputs_NxT[:, 0] == tokenizer.bos_id).all()
        np.testing.assert_array_equal(packed.weights_NxT.sum(axis=1), np.minimum(sizes - 1, length))
        np.testing.assert_array_equal(packed.sizes_N, np.minimum(sizes, length))
        assert cut_documents(rows, length) == (sizes - 1 > length).sum()
        for row, size in zip(packed.inputs_NxT[:, 1:], packed.sizes_N - 1, strict=True):
            assert any(d.text.startswith(tokenizer.decode(row[:size])[:-1]) for d in documents)


def test_too_short_sequences_and_no_text_are_refused(documents, tokenizer):
    rows = tokenise(documents, tokenizer)
    for pack in (pack_stream, pack_documents):
        with pytest.raises(ValueError, match=r"length=1 must be at least 2"):
            pack(rows, 1, tokenizer.bos_id)
        with pytest.raises(ValueError, match="no tokens to pack"):
            pack(tokenise([], tokenizer), 8, tokenizer.bos_id)
    with pytest.raises(ValueError, match=r"one ascending start.*2 passages.*\(0,\)"):
        Document(Source("a", "a", ("1", "2")), "text")


# --- Splits ------------------------------------------------------------------------------------


def test_sequences_are_split_once_and_name_their_verses(genesis, home, kjv):
    splits = genesis
    assert [len(splits.train), len(splits.calibration), len(splits.query)] == [500, 200, 200]
    assert splits.train.inputs_NxT.shape == (500, 64)
    ids = np.concatenate([splits.train.ids, splits.calibration.ids, splits.query.ids])
    assert len(set(ids)) == 900
    chapters = bible.chapters(v for v in kjv if v.book == "Genesis")
    tokenizer, made = split_documents(chapters, GENESIS)
    assert tokenizer.core.to_str() == splits.tokenizer.core.to_str()
    _, larger = split_documents(chapters, dataclasses.replace(GENESIS, max_train=600))
    for role in ("train", "calibration", "query"):
        for name in ("inputs_NxT", "labels_NxT", "weights_NxT", "ids"):
            read, own = (getattr(e, name) for e in (getattr(splits, role), made[role]))
            np.testing.assert_array_equal(read, own)
            assert read.dtype == own.dtype
    np.testing.assert_array_equal(larger["query"].ids, splits.query.ids)
    assert set(splits.train.ids) < set(larger["train"].ids), "sizes of the training set nest"
    verses = {f"{v.book} {v.chapter}:{v.verse}": v.text for v in kjv}
    for row, text in enumerate(splits.query.texts(splits.tokenizer)[:50]):
        spans = splits.query.spans.of(row)
        for start, stop, document, passage in zip(*spans.columns()[1:], strict=True):
            source = splits.query.sources[document]
            piece = splits.tokenizer.decode(splits.query.inputs_NxT[row, start:stop])
            assert piece.strip() in verses[f"{source.key}:{source.labels[passage]}"]
            assert piece in text
        assert splits.query.references(row)[0].startswith("kjv Genesis")


def test_documents_are_split_without_a_document_on_both_sides(kjv):
    chapters = bible.chapters(v for v in kjv if v.book in ("Genesis", "Exodus"))
    settings = TextSettings(split="document", vocab_size=400, num_query=40, num_calibration=20)
    tokenizer, splits = split_documents(chapters, settings)
    assert [len(splits["query"]), len(splits["calibration"])] == [40, 20]
    of = {role: set(split.spans.document_P.tolist()) for role, split in splits.items()}
    assert not of["train"] & (of["query"] | of["calibration"])
    expected = train_tokenizer([chapters[d].text for d in sorted(of["train"])], 400)
    assert expected.core.to_str() == tokenizer.core.to_str(), "held-out text is not learned"


@pytest.fixture
def own(tmp_path):
    """Settings for a file of forty documents."""
    rng = np.random.default_rng(0)
    words = " ".join(LINES).split()
    days = [datetime.date(2026, 1, 1) + datetime.timedelta(i) for i in range(40)]
    rows = [
        {"text": " ".join(rng.choice(words, 12)), "id": i, "day": day} for i, day in enumerate(days)
    ]
    place = tmp_path / "own.parquet"
    pq.write_table(pa.Table.from_pylist(rows), place)
    return TextSettings(
        "files", path=str(place), vocab_size=300, length=8, num_query=5, num_calibration=5
    )


@pytest.mark.filterwarnings("ignore:.*repeat another:UserWarning")
def test_own_files_are_split_and_read_again_when_they_change(own, tmp_path):
    splits = load_text(own, tmp_path)
    assert len(splits.query) == 5
    assert splits.train.sources[3].metadata == {"day": "2026-01-04"}
    place = pathlib.Path(own.path)
    pq.write_table(pq.read_table(place)[:30], place)
    changed = load_text(own, tmp_path)
    assert changed.folder != splits.folder
    assert len(changed.train) < len(splits.train)
    file = str(splits.folder / "tokenizer.json")
    kept = load_text(dataclasses.replace(own, tokenizer=file), tmp_path)
    assert kept.tokenizer.core.to_str() == splits.tokenizer.core.to_str()
    (changed.folder / "train.npz").write_bytes(b"torn")
    with pytest.raises(UnreadableFileError, match=r"train.npz can't be read.*delete it"):
        load_text(own, tmp_path)


@pytest.mark.filterwarnings("ignore:.*repeat another:UserWarning")
def test_unfinished_folders_are_made_again(own, tmp_path):
    folder = load_text(own, tmp_path).folder
    (folder / "settings.json").unlink()
    (folder / "sources.json").write_text("torn")
    assert len(load_text(own, tmp_path).query) == 5


def test_settings_that_cannot_be_met_are_refused(own, tmp_path):
    for change, message in [
        ({"num_query": 900}, r"num_query=900 .* leave nothing of the text's \d+ to train on"),
        # One full sequence and a padded one, which can't be a query.
        ({"length": 1000, "num_calibration": 0}, r"num_query=5 .* the text's 1 to train on"),
        ({"num_query": 900, "split": "document"}, r"num_query=900 .* take all 40 documents"),
        ({"split": "verse"}, r"split='verse' must be 'sequence' or 'document'"),
        ({"path": ""}, r"name='files' with path=''"),
        ({"max_train": 0}, r"max_train=0 must be at least 1"),
        ({"length": 1}, r"length=1 must be at least 2"),
        ({"tokenizer": "none.json"}, r"no tokenizer file none.json"),
        ({"vocab_size": 9999}, r"vocab_size=9999 is too large"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_text(dataclasses.replace(own, **change), tmp_path)


# --- Batches -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sequences():
    none = np.zeros(0, np.int32)
    tokens = np.arange(23 * 4, dtype=np.int32).reshape(23, 4)
    ids = np.arange(23).astype("U")
    spans = Spans(none, none, none, none, none)
    return TextExamples(tokens, tokens + 1, np.ones((23, 4), np.float32), ids, spans, ())


def test_every_sequence_comes_once_an_epoch_in_a_seeded_order(sequences):
    deal = BatchSettings(batch_size=6, epochs=2, seed=3)
    dealt = list(batches(sequences, deal))
    assert len(dealt) == num_batches(23, deal) == 8
    rows = np.concatenate([batch["row"] for batch in dealt])
    assert sorted(rows[:23]) == sorted(rows[23:46]) == list(range(23))
    assert rows[:23].tolist() != rows[23:46].tolist()
    assert rows[46:].tolist() == [-1, -1]
    last = dealt[-1]
    np.testing.assert_array_equal(last["weights"].sum(axis=1), [4, 4, 4, 4, 0, 0])
    assert all(batch["inputs"].shape == (6, 4) for batch in dealt)
    np.testing.assert_array_equal(last["labels"], last["inputs"] + 1)
    again = np.concatenate([batch["row"] for batch in batches(sequences, deal)])
    np.testing.assert_array_equal(again, rows)
    other = BatchSettings(batch_size=6, epochs=2, seed=4)
    assert next(iter(batches(sequences, other)))["row"].tolist() != rows[:6].tolist()
    plain = BatchSettings(batch_size=6, shuffle=False)
    assert next(iter(batches(sequences, plain)))["row"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("done", [0, 1, 3, 7])
def test_resuming_equals_going_on(sequences, done):
    deal = BatchSettings(batch_size=6, epochs=2, seed=3)
    first = iter(batches(sequences, deal))
    for _ in range(done):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    second = iter(batches(sequences, deal))
    second.set_state(state)
    for a, b in itertools.zip_longest(first, second):
        np.testing.assert_array_equal(a["inputs"], b["inputs"])


def test_shards_of_three_processes_together_are_the_whole(sequences):
    deal = BatchSettings(batch_size=6, epochs=2, seed=3)
    shards = [list(batches(sequences, deal, process_index=p, process_count=3)) for p in range(3)]
    for whole, *parts in zip(batches(sequences, deal), *shards, strict=True):
        assert all(part["inputs"].shape == (2, 4) for part in parts)
        for name in ("inputs", "weights", "row"):
            together = np.stack([part[name] for part in parts], axis=1)
            np.testing.assert_array_equal(together.reshape(whole[name].shape), whole[name])


def test_uneven_shards_are_refused(sequences):
    with pytest.raises(ValueError, match="batch_size=16 must be a multiple of process_count=3"):
        batches(sequences, BatchSettings(), process_count=3)
    with pytest.raises(ValueError, match="there are 0"):
        batches(sequences.take(np.arange(0)), BatchSettings())
