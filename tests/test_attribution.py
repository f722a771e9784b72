"""Files of attributions: lossless, and readable by others."""

import dataclasses

import datasets
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from stride_jax.attribution import Attribution, load, save
from stride_jax.runtime.files import UnreadableFileError


@pytest.fixture
def attribution():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, 30)).astype(np.float32) * (rng.random((4, 30)) < 0.4)
    scores[3] = 0
    return Attribution(
        np.array([f"q{i}" for i in range(4)]),
        np.array([f"t{i}" for i in range(30)]),
        scores,
        {"design": {"num_subsets": 9}},
    )


def test_all_scores_come_back_bit_for_bit(attribution, tmp_path):
    save(tmp_path / "a.parquet", attribution)
    back = load(tmp_path / "a.parquet")
    np.testing.assert_array_equal(back.scores_QxN, attribution.scores_QxN)
    np.testing.assert_array_equal(back.query_ids, attribution.query_ids)
    np.testing.assert_array_equal(back.train_ids, attribution.train_ids)
    assert back.settings == attribution.settings
    assert back.versions == attribution.versions
    assert back.versions["jax"].count(".") == 2


def test_top_k_keeps_the_strongest_of_either_sign(attribution, tmp_path):
    save(tmp_path / "a.parquet", attribution, top_k=3)
    frame = pd.read_parquet(tmp_path / "a.parquet")
    for q, name in enumerate(attribution.query_ids):
        rows = frame[frame.query_id == name].set_index("rank")
        scores = attribution.scores_QxN[q]
        for side, best in ((1, np.sort(scores)[::-1]), (-1, np.sort(scores))):
            expected = [s for s in best[:3] if s * side > 0]
            assert rows.score[rows.index * side > 0].tolist() == expected
        listed = attribution.proponents(name, 3)
        assert [s for _, s in listed] == rows.score[rows.index > 0].tolist()
        assert [t for t, _ in attribution.opponents(name, 3)] == (
            rows.train_id[rows.index < 0].tolist()
        )
    back = load(tmp_path / "a.parquet")
    kept = back.scores_QxN != 0
    np.testing.assert_array_equal(back.scores_QxN[kept], attribution.scores_QxN[kept])


def test_sparse_scores_answer_like_dense_ones_and_from_the_support_alone(attribution, tmp_path):
    dense = attribution.scores_QxN
    sparse = dataclasses.replace(attribution, scores=scipy.sparse.csr_array(dense))
    for name in attribution.query_ids:
        assert sparse.proponents(name, 40) == attribution.proponents(name, 40)
        assert sparse.opponents(name, 3) == attribution.opponents(name, 3)
    chosen = attribution.train_ids[[3, 7, 20, 21]]
    for a in (attribution, sparse):
        np.testing.assert_allclose(a.subset_sums(chosen), dense[:, [3, 7, 20, 21]].sum(axis=1))
        assert [a.score("q1", t) for t in attribution.train_ids] == dense[1].tolist()
        with pytest.raises(ValueError, match=r"1 ids are not among the 30 .* first 'nobody'"):
            a.subset_sums(["t1", "nobody"])
    save(tmp_path / "dense.parquet", attribution)
    save(tmp_path / "sparse.parquet", sparse)
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "sparse.parquet"), pd.read_parquet(tmp_path / "dense.parquet")
    )
    save(tmp_path / "short.parquet", sparse, top_k=1, all_ids=False)
    short = load(tmp_path / "short.parquet")
    assert 1 < len(short.train_ids) <= 8
    assert short.proponents("q0", 1) == attribution.proponents("q0", 1)


def test_hugging_face_datasets_read_the_file(attribution, tmp_path):
    save(tmp_path / "a.parquet", attribution)
    table = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path))
    assert set(table.column_names) == {"query_id", "train_id", "score", "rank"}
    assert len(table) == (attribution.scores_QxN != 0).sum()


def test_bad_files_and_shapes_are_refused(attribution, tmp_path):
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(UnreadableFileError, match=r"torn.parquet can't be read"):
        load(tmp_path / "torn.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "foreign.parquet")
    with pytest.raises(UnreadableFileError, match="no stride_jax metadata"):
        load(tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match=r"\(30, 4\) do not fit 4 queries and 30"):
        Attribution(attribution.query_ids, attribution.train_ids, attribution.scores_QxN.T)
    with pytest.raises(ValueError, match="no query 'q9'"):
        attribution.proponents("q9")
