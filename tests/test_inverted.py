"""The inverted file against brute force; two levels of clusters against one."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import growth, growth_data, growth_search
from benchmarks.levels import assign_levels, dealt, fit_levels, nearest
from stride_jax.inverted import invert, strongest
from stride_jax.operators.content import spherical_means


def brute(cluster_N, size_N, share_K, count):
    """Rows by falling |share size|, then by row, those of weight zero left out."""
    weight_N = np.abs(share_K[cluster_N].astype(np.float64)) * size_N
    order = np.lexsort((np.arange(len(size_N)), -weight_N))
    return order[weight_N[order] > 0][:count]


@st.composite
def questions(draw):
    k, n = draw(st.integers(1, 12)), draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cluster_N = rng.integers(0, draw(st.integers(1, k)), n)
    if draw(st.booleans()):  # many ties, within clusters and across them
        size_N = rng.integers(0, 4, n).astype(np.float32)
        share_YxK = rng.integers(-2, 3, (3, k)).astype(np.float32)
    else:
        size_N = np.exp(20 * rng.normal(size=n)).astype(np.float32)
        share_YxK = rng.normal(size=(3, k)).astype(np.float32)
    size_N[rng.random(n) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0
    return cluster_N, size_N, share_YxK, draw(st.integers(0, 80))


@settings(max_examples=300, deadline=None)
@given(questions())
def test_the_strongest_are_those_of_brute_force(question):
    cluster_N, size_N, share_YxK, count = question
    file = invert(cluster_N, size_N, share_YxK.shape[1])
    row_YxP, weight_YxP = strongest(file, share_YxK, count)
    assert row_YxP.shape == weight_YxP.shape == (3, min(count, (size_N > 0).sum()))
    for share_K, row_P, weight_P in zip(share_YxK, row_YxP, weight_YxP, strict=True):
        rows = brute(cluster_N, size_N, share_K, count)
        np.testing.assert_array_equal(row_P[: len(rows)], rows)
        np.testing.assert_array_equal(
            weight_P[: len(rows)], share_K[cluster_N[rows]] * size_N[rows]
        )
        assert (row_P[len(rows) :] == -1).all(), "places that are free"
        assert (weight_P[len(rows) :] == 0).all()


@pytest.mark.parametrize("count", [1, 50, 3000])
def test_thousands_of_clusters_with_one_query(count):
    rng = np.random.default_rng(0)
    cluster_N = rng.zipf(1.3, 40_000) % 2000
    size_N = rng.lognormal(0, 2, 40_000).astype(np.float32)
    share_K = rng.normal(size=2000) ** 3
    row_P, weight_P = strongest(invert(cluster_N, size_N, 2000), share_K, count)
    assert row_P.shape == weight_P.shape == (count,)
    expected = brute(cluster_N, size_N, share_K.astype(np.float32), count)
    np.testing.assert_array_equal(row_P, expected)


def test_what_is_kept_whole_is_never_named():
    file = invert(np.zeros(5, int), np.array([0.0, 2.0, 0.0, 1.0, 0.0], np.float32), 3)
    assert strongest(file, np.ones(3), 100)[0].tolist() == [1, 3]
    assert strongest(file, np.array([[0.0, 1.0, 1.0]]), 2)[0].tolist() == [[-1, -1]]


def test_only_a_few_members_are_looked_at():
    """A size that is never read may be anything, here a nan."""
    n = 100_000
    file = invert(np.arange(n) % 10, np.linspace(2.0, 1.0, n), 10)
    looked = np.zeros(n, bool)

    class Watched(np.ndarray):
        def __getitem__(self, at):
            looked[at] = True
            return np.asarray(self)[at]

    watched = type(file)(file.row_M, file.size_M.view(Watched), file.start_K1)
    rows, _ = strongest(watched, np.ones(10), 100)
    assert sorted(rows) == list(range(100))
    assert looked.sum() < 1000


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="cluster 3 is none of the 3"):
        invert(np.array([0, 3]), np.ones(2), 3)
    with pytest.raises(ValueError, match="2 clusters of examples and 3 sizes"):
        invert(np.array([0, 1]), np.ones(3), 3)
    with pytest.raises(ValueError, match="2 shares for 3 clusters"):
        strongest(invert(np.array([0, 1]), np.ones(2), 3), np.ones(2), 1)


def directions(count, seed):
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(30, 8))
    rng = np.random.default_rng(seed)
    z = centres[rng.integers(0, 30, count)] + 0.3 * rng.normal(size=(count, 8))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def test_two_levels_serve_nearly_as_well_as_one():
    sample, others = directions(2000, 0), directions(1000, 1)
    weight_M = np.random.default_rng(0).exponential(size=2000)
    levels = fit_levels(sample, weight_M, 100, seed=0)
    flat = spherical_means(sample, weight_M, 100, seed=0)
    assert levels.coarse_JxZ.shape == (10, 8)
    assert levels.centroids_KxZ.shape == flat.shape
    own = assign_levels(levels, others)

    def error(centroids, of):
        return ((others - centroids[of]) ** 2).sum(axis=1).mean()

    assert error(levels.centroids_KxZ, own) < 1.2 * error(flat, nearest(flat, others))
    # Each is with the nearest of its coarse cluster's centroids.
    for z, coarse, fine in zip(others, nearest(levels.coarse_JxZ, others), own, strict=True):
        start, stop = levels.start_J1[coarse : coarse + 2]
        squares = ((levels.centroids_KxZ[start:stop] - z) ** 2).sum(axis=1)
        np.testing.assert_allclose(squares[fine - start], squares.min(), rtol=1e-4, atol=1e-6)


def test_two_levels_of_few_examples_and_of_one_cluster():
    z = directions(3, 0)
    levels = fit_levels(z, np.zeros(3), 20, seed=0)
    assert levels.centroids_KxZ.shape == (20, 8)
    np.testing.assert_allclose(levels.centroids_KxZ[assign_levels(levels, z)], z, atol=1e-6)
    one = fit_levels(z, np.ones(3), 1, seed=0)
    assert assign_levels(one, z).tolist() == [0, 0, 0]
    assert assign_levels(one, z[:0]).shape == (0,)


def test_all_of_a_total_is_dealt():
    for weight_J in np.random.default_rng(0).exponential(size=(20, 7)):
        counts_J = dealt(weight_J, 50)
        assert counts_J.sum() == 50
        assert counts_J.min() >= 1


def test_the_benchmark_writes_what_it_promises(tmp_path):
    sizes = ["--num_train=1500,4000", "--num_clusters=20,1500", "--budgets=50,400", "--queries=4"]
    places = [f"--workdir={tmp_path}", f"--out={tmp_path}/rows.json"]
    assert growth.main([*sizes, *places]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    ratio = "at N=4e+03 over N=2e+03, K=20"
    assert rows[f"growth: index bytes without numbers per example {ratio}"]["value"] == 1
    assert rows[f"growth: query seconds {ratio}, P=50"]["asked"] == 2
    assert rows["growth: true top 10 found, N=4e+03, K=1500, P=400"]["value"] > 0.9
    for flag in ("--budgets=10", "--num_train=1499"):
        with pytest.raises(ValueError, match="is below"):
            growth.main([*sizes, *places, flag])


def test_gradients_of_a_shorter_file_start_a_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(growth_data, "_CHUNK", 100)
    short = np.array(growth_data.gradients(tmp_path / "g", 150, 1.0))
    long = np.array(growth_data.gradients(tmp_path / "g", 350, 1.0))
    np.testing.assert_array_equal(long[:150], short)
    assert long.shape == (350, 32)
    assert np.isfinite(long).all()


def test_both_ways_of_ours_answer_as_a_scan_of_clusters_with_a_positive_sum(tmp_path):
    g_NxZ = growth_data.gradients(tmp_path / "g", 2000, 1.0)
    size_N = np.linalg.norm(g_NxZ, axis=1, keepdims=True)
    for two_levels in (False, True):
        clusters = growth_search.fit_clusters(g_NxZ, 50, two_levels)
        ours, own_N = (
            growth_search.build(g_NxZ, clusters),
            growth_search.assign(clusters, g_NxZ / size_N),
        )
        for v_Z in growth_data.Mixture().draw(3, np.random.default_rng(0)):
            w_N = g_NxZ @ v_Z
            w_N[np.bincount(own_N, w_N, 50)[own_N] <= 0] = -np.inf
            np.testing.assert_array_equal(ours.ask(v_Z, 2000)[:10], np.argsort(-w_N)[:10])
