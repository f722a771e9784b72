"""Text: Bible, splits on disk."""

import dataclasses
import datetime
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from stride_jax.data import TextSettings, bible, load_text
from stride_jax.data.text import split_documents
from stride_jax.data.tokens import train_tokenizer
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
    (changed.folder / "train.npz").write_bytes((splits.folder / "train.npz").read_bytes())
    with pytest.raises(UnreadableFileError, match=r"it is another file.*delete its folder"):
        load_text(own, tmp_path)  # whole, and of the text as it was
    (changed.folder / "train.npz").write_bytes(b"torn")
    with pytest.raises(UnreadableFileError, match=r"train.npz can't be read.*delete its folder"):
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
        ({"path": ""}, r"name='files', path=''"),
        ({"max_train": 0}, r"max_train=0 must be at least 1"),
        ({"length": 1}, r"length=1 must be at least 2"),
        ({"tokenizer": "none.json"}, r"no tokenizer file none.json"),
        ({"vocab_size": 9999}, r"vocab_size=9999 is too large"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_text(dataclasses.replace(own, **change), tmp_path)
