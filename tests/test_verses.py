"""Verse retrieval's truth, planted facts and completions."""

import dataclasses
import itertools

import numpy as np
import pytest

from stride_jax.data import TextSettings, bible, load_text
from stride_jax.data.completions import pack_completions
from stride_jax.data.planted import plant, planted_facts
from stride_jax.data.truths import read_truth, relevant
from stride_jax.data.verses import VerseSettings, load_verses
from stride_jax.runtime.files import UnreadableFileError

# Short texts repeat one another; the warning is tested where a test asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:.*repeat another:UserWarning")

BOOKS = ("Exodus", "Deuteronomy")
SETTINGS = VerseSettings(vocab_size=600, num_query=1500, max_train=4000)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where two books of three translations are prepared: all of them would take half a minute."""
    packaged = bible.packaged_verses

    def some(name):
        first = itertools.takewhile(lambda v: v.book != "Joshua", packaged(name))
        return (verse for verse in first if verse.book in BOOKS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bible, "packaged_verses", some)
        place = tmp_path_factory.mktemp("verses")
        bible.read_verses(("kjv", "asv", "web"), place / "data" / "tfds")
    return place


@pytest.fixture(scope="module")
def splits(home):
    with pytest.warns(UserWarning, match="repeat another's content"):
        return load_verses(SETTINGS, home)


def _row(examples, reference):
    [row] = [row for row in range(len(examples)) if examples.references(row) == [reference]]
    return row


def test_the_truth_is_the_same_verse_in_the_other_translations(splits):
    train_texts = splits.train.texts(splits.tokenizer)
    relevant_QxN = relevant(splits.truth, splits.query.ids, splits.train.ids)
    assert relevant_QxN.shape == (1500, len(splits.train))
    assert relevant_QxN.sum(axis=1).min() == 2
    for reference, said in {
        "Exodus 2:1": [
            "And there went a man of the house of Levi, and took to wife a daughter of Levi.",
            "And there went a man of the house of Levi, and took to wife a daughter of Levi.",
        ],
        "Deuteronomy 34:5": [
            "So Moses the servant of the LORD died there in the land of Moab, according to the "
            "word of the LORD.",
            "So Moses the servant of Jehovah died there in the land of Moab, according to the "
            "word of Jehovah.",
        ],
        "Exodus 20:13": [],
    }.items():
        row = _row(splits.query, f"web {reference}")
        found = np.flatnonzero(relevant_QxN[row])
        names = [splits.train.references(i)[0] for i in found]
        assert {f"kjv {reference}", f"asv {reference}"} <= set(names)
        if said:
            assert [train_texts[i] for i in found] == said
        else:
            assert {train_texts[i] for i in found} == {"Thou shalt not kill."}
            assert "kjv Deuteronomy 5:17" in names, "what repeats a relevant verse is relevant"


def test_splits_share_no_verse_and_come_back_from_disk(splits, home):
    keys = {
        role: {
            getattr(splits, role).references(row)[0].partition(" ")[2]
            for row in range(len(getattr(splits, role)))
        }
        for role in ("train", "calibration", "query")
    }
    assert not keys["train"] & keys["calibration"]
    assert keys["query"] <= keys["train"]
    assert {r.sources[0].metadata["translation"] for r in [splits.train]} == {"kjv"}
    again = load_verses(SETTINGS, home)
    assert again.truth == splits.truth
    np.testing.assert_array_equal(again.train.inputs_NxT, splits.train.inputs_NxT)
    torn = again.folder / "truth.json"
    kept = torn.read_text()
    torn.write_text("{")
    with pytest.raises(UnreadableFileError, match=r"truth.json can't be read"):
        read_truth(torn)
    torn.write_text(kept)


def test_several_verses_a_sequence_are_true_while_they_last(home):
    settings = dataclasses.replace(SETTINGS, verses_per_sequence=3, num_query=50)
    splits = load_verses(settings, home)
    relevant_QxN = relevant(splits.truth, splits.query.ids, splits.train.ids)
    assert splits.train.references(0) == ["kjv Exodus 1:1-3"]
    assert splits.train.references(1) == ["kjv Exodus 1:4-5"], "verse 6 lies beyond the cut"
    assert splits.train.sources[1].labels == ("4", "5", "6")
    for row in range(50):
        [reference] = splits.query.references(row)
        chapter, verse = reference.removeprefix("web ").split(":")
        for answer in np.flatnonzero(relevant_QxN[row]):
            [held] = splits.train.references(answer)
            place, ends = held.partition(" ")[2].split(":")
            first, _, last = ends.partition("-")
            assert place == chapter
            assert int(first) <= int(verse) <= int(last or first)


def test_verses_that_cannot_be_asked_for_are_refused(home):
    for change, message in [
        ({"query_translation": "kjv"}, "query_translation='kjv' must not be among"),
        ({"num_query": 9999}, r"num_query=9999 is more than the \d+ verses of 'web'"),
        ({"num_calibration": 9999}, r"num_calibration=9999 leaves nothing of the \d+ blocks"),
        ({"max_train": 1}, "max_train=1 must be at least 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_verses(dataclasses.replace(SETTINGS, **change), home)
    with pytest.raises(ValueError, match="no truth for 1 of 1 queries: x"):
        relevant({}, ["x"], ["y"])


def test_planted_facts_are_unique_and_their_truth_is_their_sentence(home):
    facts = planted_facts(seed=1, count=200)
    assert facts == planted_facts(seed=1, count=200) != planted_facts(seed=2, count=200)
    assert len(set(facts.prompts)) == len(set(facts.completions)) == 200
    with pytest.raises(ValueError, match="count=5000 must lie in 1 to 1000"):
        planted_facts(0, 5000)
    settings = TextSettings(books=("Exodus",), vocab_size=600, max_train=100, length=32)
    base = load_text(settings, home)
    splits = plant(base, facts)
    assert len(splits.train) == 300
    relevant_QxN = relevant(splits.truth, splits.query.ids, splits.train.ids)
    np.testing.assert_array_equal(np.argwhere(relevant_QxN)[:, 1], np.arange(100, 300))
    texts = splits.train.texts(splits.tokenizer)
    for row in range(200):
        assert texts[100 + row] == facts.prompts[row] + facts.completions[row]
        asked = splits.query.labels_NxT[row][splits.query.weights_NxT[row] > 0]
        assert splits.tokenizer.decode(asked) == facts.completions[row]
    assert splits.train.references(99) == base.train.references(99)
    assert splits.train.references(100) == ["fact 0"]
    with pytest.raises(ValueError, match=r"query \d+ takes \d+ tokens.* 9 fit"):
        plant(load_text(dataclasses.replace(settings, length=8), home), facts)


def test_completions_alone_are_weighted(splits):
    tokenizer = splits.tokenizer
    prompts, completions = ["And God said", ""], [" Let there be light", "In the beginning"]
    packed, sources = pack_completions(prompts, completions, tokenizer, 32)
    for row, completion in enumerate(completions):
        asked = packed.labels_NxT[row][packed.weights_NxT[row] > 0]
        assert tokenizer.decode(asked) == completion
    assert [source.labels for source in sources] == [("prompt", "completion"), ("completion",)]
    exact = len(tokenizer.encode(prompts[0] + completions[0]))
    tight, _ = pack_completions(prompts[:1], completions[:1], tokenizer, exact)
    assert tight.weights_NxT.sum() == packed.weights_NxT[0].sum()
    with pytest.raises(ValueError, match=f"query 0 takes {exact + 1} tokens.* {exact} fit"):
        pack_completions(prompts[:1], completions[:1], tokenizer, exact - 1)
    with pytest.raises(ValueError, match=r"completion '' of query 0 has no token of its own"):
        pack_completions(["And"], [""], tokenizer, 32)
