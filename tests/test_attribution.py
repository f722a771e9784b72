"""Attributions as tables, answers by name and files: lossless, and readable by others."""

import dataclasses

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse

from stride_jax.attribution import Attribution, ensemble
from stride_jax.runtime.files import UnreadableFileError
from stride_jax.runtime.rows import Rows
from stride_jax.runtime.tables import read_table, write_table


def ids(letter, count):
    return np.array([f"{letter}{i}" for i in range(count)])


@pytest.fixture
def attribution():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, 30)).astype(np.float32) * (rng.random((4, 30)) < 0.4)
    scores[3] = 0
    return Attribution(
        ids("q", 4), ids("t", 30), scores, {"index": {"design": {"num_subsets": 9, "degree": 2}}}
    )


def exact_bits(attribution):
    """Sources of two scores of three, bits of three sources."""
    bits = (np.arange(120, dtype=np.uint8) % 8).reshape(4, 30)
    return bits * (np.arange(120).reshape(4, 30) % 3 > 0) * (attribution.scores != 0)


def named(bits):
    names = [name for i, name in enumerate(("kept", "sketch", "bm25")) if bits >> i & 1]
    return "+".join(names) or "estimate"


@pytest.fixture
def labelled(attribution):
    """The same with all that an attribution may know, its scores sparse."""
    return dataclasses.replace(
        attribution,
        scores=scipy.sparse.coo_array(attribution.scores),
        exact=scipy.sparse.csr_array(exact_bits(attribution)),
        sources=("kept", "sketch", "bm25"),
        train_keys=[f"k{i // 2}" for i in range(30)],
        query_labels=[3, 1, 0, 2],
        train_labels=jnp.arange(30) % 4,
        diagnostics={
            "fraction": np.array([0.1, 0.02, 0.5, 1]),
            "signal": np.array([True, True, True, False]),
            "held_out_r2": np.array([0.3, 0.2, 1 / 3, np.nan], np.float32),
        },
    )


def expected_pairs(scores, k):
    """Query, example, rank and score, by plain loops."""
    for q, row in enumerate(scores):
        for sign in (1, -1):
            order = sorted(np.flatnonzero(sign * row > 0), key=lambda i: (-sign * row[i], i))
            for place, i in enumerate(order[:k], start=1):
                yield q, i, sign * place, row[i]


@pytest.mark.parametrize("k", [1, 3, 100])
def test_the_top_is_a_table_of_all_queries(attribution, labelled, k):
    table = labelled.top(k)
    assert list(table) == [
        "query_id", "query_row", "train_id", "train_row", "rank", "score", "found_by",
        "query_label", "train_label",
    ]  # fmt: skip
    pairs = list(expected_pairs(attribution.scores, k))
    columns = ["query_row", "train_row", "rank", "score"]
    assert list(table[columns].itertuples(index=False, name=None)) == pairs
    assert table.query_id.tolist() == [f"q{q}" for q, *_ in pairs]
    assert table.train_id.tolist() == [f"t{i}" for _, i, *_ in pairs]
    assert table.query_label.tolist() == [[3, 1, 0, 2][q] for q, *_ in pairs]
    assert table.train_label.tolist() == [i % 4 for _, i, *_ in pairs]
    bits = exact_bits(attribution)
    assert table.found_by.tolist() == [named(bits[q, i]) for q, i, *_ in pairs]
    plain = attribution.top(k)
    known = ["found_by", "query_label", "train_label"]
    pd.testing.assert_frame_equal(plain, table.drop(columns=known))
    if k == 100:
        pd.testing.assert_frame_equal(attribution.to_pandas(), plain)
    for name in attribution.query_ids:
        own = plain[plain.query_id == name]
        for side, asked in ((1, labelled.proponents), (-1, labelled.opponents)):
            rows = own[own["rank"] * side > 0]
            assert asked(name, k) == list(zip(rows.train_id, rows.score, strict=True))


def test_numpy_and_people_can_read_it(attribution, labelled):
    dense = attribution.scores
    for a in (attribution, labelled):
        np.testing.assert_array_equal(np.asarray(a), dense)
        assert np.asarray(a, np.float64).dtype == np.float64
        assert np.array(a) is not dense
    assert np.asarray(attribution) is dense
    with pytest.raises(ValueError, match="need a copy"):
        np.array(labelled, copy=False)
    share = 100 * np.count_nonzero(dense) / 120
    shown = f"Attribution(4 queries x 30 training examples, {share:.3g} % non-zero; K=9, d=2; "
    shown += "relative: unit not measured)"
    assert repr(labelled) == repr(attribution) == shown


def test_sparse_scores_answer_like_dense_ones(attribution, labelled):
    dense, chosen = attribution.scores_QxN, attribution.train_ids[[3, 7, 20, 21]]
    for a in (attribution, labelled):
        np.testing.assert_allclose(a.subset_sums(chosen), dense[:, [3, 7, 20, 21]].sum(axis=1))
        assert a.subset_sums([]).tolist() == [0] * 4
        assert [a.score("q1", t) for t in attribution.train_ids] == dense[1].tolist()
        with pytest.raises(ValueError, match=r"1 ids are not among the 30 .* first 'nobody'"):
            a.subset_sums(["t1", "nobody"])


def assert_same(back, attribution):
    np.testing.assert_array_equal(back.scores_QxN, attribution.scores_QxN)
    for name in ("query_ids", "train_ids", "query_labels", "train_labels", "train_keys"):
        np.testing.assert_array_equal(getattr(back, name), getattr(attribution, name))
    assert back.sources == attribution.sources
    assert (back.exact is None) == (attribution.exact is None)
    if attribution.exact is not None:
        np.testing.assert_array_equal(back.exact.toarray(), attribution.exact.toarray())
    assert back.settings == attribution.settings
    assert back.versions == attribution.versions
    assert set(back.diagnostics) == set(attribution.diagnostics)
    for name, value in attribution.diagnostics.items():
        np.testing.assert_array_equal(back.diagnostics[name], value)
        assert back.diagnostics[name].dtype == value.dtype


def test_all_that_is_known_comes_back_bit_for_bit(attribution, labelled, tmp_path):
    for a in (attribution, labelled):
        a.save(tmp_path / "a.parquet")
        assert_same(Attribution.load(tmp_path / "a.parquet"), a)
    assert attribution.versions["jax"] == jax.__version__


def test_the_file_holds_what_top_says_and_others_read_it(labelled, tmp_path):
    for k in (None, 3):
        labelled.save(tmp_path / "a.parquet", k)
        table = labelled.to_pandas() if k is None else labelled.top(k)
        expected = table.drop(columns=["query_row", "train_row"])
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet"), expected)
        rows = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path))
        assert rows.column_names == list(expected)
        assert rows["score"][:] == expected.score.tolist()
    back = Attribution.load(tmp_path / "a.parquet")
    stored = back.scores_QxN != 0
    np.testing.assert_array_equal(back.scores_QxN[stored], labelled.scores_QxN[stored])
    assert stored.sum() == len(expected)
    labelled.save(tmp_path / "short.parquet", top_k=1, all_ids=False)
    short = Attribution.load(tmp_path / "short.parquet")
    assert 1 < len(short.train_ids) <= 8
    assert short.proponents("q0", 1) == labelled.proponents("q0", 1)
    pd.testing.assert_frame_equal(
        short.top(1).drop(columns="train_row"), labelled.top(1).drop(columns="train_row")
    )


def test_bad_files_are_named_and_left_alone(attribution, tmp_path):
    attribution.save(tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "torn.parquet").write_bytes(whole[: len(whole) // 2])
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "foreign.parquet")
    noted = pa.table({"a": [1]}).replace_schema_metadata({b"stride_jax": b'{"x": 1}'})
    pq.write_table(noted, tmp_path / "noted.parquet")
    columns, note = read_table(tmp_path / "whole.parquet")
    write_table(tmp_path / "newer.parquet", columns, note | {"format": 99})
    changed = pq.read_table(tmp_path / "whole.parquet")
    scores = pa.array(changed["score"].to_numpy() + np.float32(1))
    changed = changed.set_column(changed.column_names.index("score"), "score", scores)
    pq.write_table(changed, tmp_path / "changed.parquet")
    (tmp_path / "folder.parquet").mkdir()
    expected = {
        "torn": "can't be read as Parquet", "foreign": "holds no attribution",
        "noted": "holds no attribution", "newer": "has format 99, where this library reads 1",
        "folder": "can't be read as Parquet",
        "changed": "can't be read as Parquet .it is not what was written",
    }  # fmt: skip
    for name, words in expected.items():
        with pytest.raises(UnreadableFileError, match=rf"{name}.parquet {words}") as caught:
            Attribution.load(tmp_path / f"{name}.parquet")
        assert "delete" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Attribution.load(tmp_path / "nowhere.parquet")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"scores": np.ones((30, 4))}, r"\(30, 4\) do not fit 4 queries and 30"),
        ({"query_ids": ["a", "b", "a", "a"]}, "2 of 4 query_ids repeat another, first 'a'"),
        ({"train_ids": ids("t", 15).tolist() * 2}, "15 of 30 train_ids repeat"),
        ({"query_labels": [1, 2]}, r"query_labels of shape \(2,\): .* each of 4"),
        ({"train_labels": np.ones((30, 2))}, "train_labels of shape"),
        ({"diagnostics": {"r2": [1.0]}}, r"r2 of shape \(1,\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused(attribution, changed, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(attribution, **changed)


def test_scores_ids_and_counts_that_mean_nothing_are_refused(attribution, tmp_path):
    for bad in (np.nan, np.inf):
        scores = attribution.scores.copy()
        scores[2, 5] = bad
        for form in (scores, scipy.sparse.csr_array(scores)):
            with pytest.raises(
                ValueError, match="of 1 of 4 queries are not finite, first of row 2"
            ):
                dataclasses.replace(attribution, scores=form)
    with pytest.raises(ValueError, match="no query 'q9' among the 4"):
        attribution.proponents("q9")
    for k in (0, -1, 2.5, True, "3"):
        for asked in (attribution.top, lambda k: attribution.proponents("q0", k)):
            with pytest.raises(ValueError, match=f"k={k!r} must be a positive integer"):
                asked(k)
        with pytest.raises(ValueError, match=f"top_k={k!r} must"):
            attribution.save(tmp_path / "a.parquet", top_k=k)


def test_numpy_reads_rows_of_sparse_scores_as_those_of_dense_ones(attribution, labelled):
    dense, sparse = attribution.scores, labelled.scores
    for asked in (2, np.int64(-1), (0, slice(None)), (slice(None), 3), (1, [4, 2, 9]), (1, 4)):
        np.testing.assert_array_equal(sparse[asked], dense[asked])
    for row in range(4):
        for order in (np.argsort, np.argmax, np.median, np.linalg.norm):
            np.testing.assert_array_equal(order(sparse[row]), order(dense[row]))
    with pytest.raises(ValueError, match=r"have no order: sort scores\[i\], or scores_QxN"):
        np.argsort(sparse)
    for kept in (sparse[1:3], sparse[[2, 0]], sparse[:, 4:9], 2 * sparse, abs(sparse), sparse.T):
        assert scipy.sparse.issparse(kept)
        assert kept.ndim == 2
    both = scipy.sparse.vstack([sparse, sparse]).toarray()
    np.testing.assert_array_equal(both, np.concatenate([dense, dense]))
    np.testing.assert_array_equal(sparse @ np.ones(30), dense @ np.ones(30))


def test_an_ensemble_is_the_mean_and_stays_sparse(attribution, labelled, monkeypatch):
    other = dataclasses.replace(labelled, scores=scipy.sparse.csr_array(labelled.scores[:, ::-1]))
    expected = (attribution.scores + attribution.scores[:, ::-1]) / 2
    mixed = ensemble([attribution, other])
    np.testing.assert_allclose(mixed.scores, expected, rtol=1e-6)
    monkeypatch.setattr(scipy.sparse.csr_array, "toarray", lambda _: pytest.fail("densified"))
    both = ensemble([labelled, other])
    monkeypatch.undo()
    np.testing.assert_allclose(both.scores_QxN, expected, rtol=1e-6)
    assert both.train_labels.tolist() == labelled.train_labels.tolist()
    assert "K=9" in repr(both)
    with pytest.raises(ValueError, match="attributions 0 and 1 differ in their train_ids"):
        ensemble([labelled, dataclasses.replace(labelled, train_ids=ids("u", 30))])
    with pytest.raises(ValueError, match="at least one"):
        ensemble([])


class _Numbered(Rows):
    """Names that nothing holds."""

    def __init__(self, count):
        self.shape, self.dtype = (count,), np.dtype("U16")

    def read(self, rows):
        assert len(rows) < 2**20, "all names at once"
        return np.array([f"{row:016x}" for row in rows.tolist()], "U16")


def test_names_are_read_as_they_are_asked_for(tmp_path):
    count, rng = 6_000_000, np.random.default_rng(0)
    scores = scipy.sparse.csr_array(
        (rng.normal(size=40), (np.repeat([0, 1], 20), rng.choice(count, 40, replace=False))),
        shape=(2, count),
    )
    names = _Numbered(count)
    own = Attribution(["x", "y"], names, scores, train_keys=names)
    own.save(tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 2**16
    table, top = pd.read_parquet(tmp_path / "a.parquet"), own.to_pandas()
    for name in ("query_id", "train_id", "rank", "score"):
        assert table[name].tolist() == top[name].tolist()
    back = Attribution.load(tmp_path / "a.parquet")
    best, score = own.proponents("x", 1)[0]
    assert back.proponents("x", 1) == [(best, score)]
    assert back.score("x", best) == score
    assert int(best, 16) == scores[[0]].toarray().argmax()
    one = scipy.sparse.csr_array(([1.0], ([0], [5])), shape=(2, 1000))
    few = Attribution(["x", "y"], names[:1000], one)
    few.save(tmp_path / "few.parquet")
    assert Attribution.load(tmp_path / "few.parquet").train_ids.tolist() == names[:1000].tolist()
