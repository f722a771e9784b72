"""Text: Bible and own files, tokenizer, packing, batches, verse retrieval, planted facts."""

import numpy as np
import pytest

from stride_jax.data import TextSettings, load_text


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where the translations are prepared once."""
    return tmp_path_factory.mktemp("text")


@pytest.mark.filterwarnings("ignore:.*repeat another:UserWarning")
def test_kjv_is_split_into_disjoint_sequences_that_name_their_verses(home):
    splits = load_text(TextSettings(books=("Genesis",), max_train=500), home)
    assert [len(splits.train), len(splits.calibration), len(splits.query)] == [500, 200, 200]
    assert splits.train.inputs_NxT.shape == (500, 64)
    places = [
        (d, p, a, row)
        for split in (splits.train, splits.query)
        for row, a, _, d, p in zip(*(c.tolist() for c in split.spans.columns()), strict=True)
    ]
    assert len(places) == len(set(places))
    again = load_text(TextSettings(books=("Genesis",), max_train=500), home)
    np.testing.assert_array_equal(again.train.inputs_NxT, splits.train.inputs_NxT)
    np.testing.assert_array_equal(again.query.ids, splits.query.ids)
