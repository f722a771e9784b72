"""From files to tokens to packed sequences, and back."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stride_jax.data.documents import Document, Source, joined, read_documents
from stride_jax.data.packing import (
    pack_documents,
    pack_stream,
    tokenise,
)
from stride_jax.data.tokens import BOS, load_tokenizer, train_tokenizer

LINES = [
    "In the beginning God created the heaven and the earth.",
    "And the earth was without form, and void; and darkness was upon the face of the deep.",
    "Ægean seas — “naïve” café, 数据 🙂\n\ttabs  and   spaces ",
    "Let there be light: and there was light.",
]


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
        ("a.jsonl", '{"body": "x", "id": 1}', r"no column 'text'; name one of \['body', 'id'\]"),
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
    with pytest.raises(ValueError, match=r"no column 'text'; name one of \['body', 'id'\]"):
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
    np.testing.assert_array_equal(inputs, rows.tokens_L[: len(inputs)])
    assert len(inputs) >= len(rows.tokens_L) - 1
    np.testing.assert_array_equal(labels, rows.tokens_L[1:])
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
    sizes = np.diff(np.append(rows.starts_J, len(rows.tokens_L)))
    for length in (int(sizes[2]) - 1, int(sizes[2]), 500):
        packed = pack_documents(rows, length, tokenizer.bos_id)
        assert len(packed) == 3
        assert (packed.inputs_NxT[:, 0] == tokenizer.bos_id).all()
        np.testing.assert_array_equal(packed.weights_NxT.sum(axis=1), np.minimum(sizes - 1, length))
        np.testing.assert_array_equal(packed.sizes_N, np.minimum(sizes, length))
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
