"""Membership and products, against scipy.sparse and by their properties."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.stats

from stride_jax import design as designs
from stride_jax.design import Design


def ids(count: int) -> list[str]:
    return [f"example {i}" for i in range(count)]


def test_products_agree_with_scipy():
    design = Design(num_subsets=50, degree=4)
    subsets = designs.membership(design, ids(300))
    table = np.asarray(subsets)
    m = scipy.sparse.csc_matrix(
        (np.ones(1200), (table.reshape(-1), np.repeat(np.arange(300), 4))), shape=(50, 300)
    )
    rng = np.random.default_rng(0)
    w, r = rng.normal(size=(300, 3)), rng.normal(size=(50, 2))
    sums = designs.subset_sum(subsets, jnp.asarray(w, jnp.float32), 50)
    np.testing.assert_allclose(sums, m @ w, rtol=1e-4, atol=1e-5)
    back = designs.gather_add(jnp.asarray(r, jnp.float32), subsets.T)
    np.testing.assert_allclose(back, m.T @ r, rtol=1e-4, atol=1e-5)
    rows, mask = designs.members(subsets, 50)
    for k in range(50):
        np.testing.assert_array_equal(rows[k][mask[k] > 0], m.tocsr()[k].indices)


def test_membership_is_a_function_of_seed_and_id_alone():
    design = Design(num_subsets=40, degree=5, seed=3)
    first = np.asarray(designs.membership(design, ids(200)))
    order = np.random.default_rng(0).permutation(200)
    shuffled = designs.membership(design, [ids(200)[i] for i in order])
    np.testing.assert_array_equal(shuffled, first[order])
    np.testing.assert_array_equal(designs.membership(design, ids(260))[:200], first)
    assert (np.diff(first, axis=1) > 0).all(), "subsets of an example are distinct"
    other = designs.membership(Design(num_subsets=40, degree=5, seed=4), ids(200))
    assert (np.asarray(other) != first).any()


def test_every_pair_of_subsets_is_equally_likely():
    table = np.asarray(designs.membership(Design(num_subsets=6, degree=2), ids(6000)))
    counts = np.bincount(table[:, 0] * 6 + table[:, 1], minlength=36)
    drawn = counts[counts > 0]
    assert len(drawn) == 15
    assert scipy.stats.chisquare(drawn).pvalue > 1e-3


def test_keys_join_subsets_together_and_move_no_others():
    design = Design(num_subsets=40, degree=5, kind="hash")
    alone = np.asarray(designs.known_membership(design, ids(200)))
    keys = np.array(ids(200))
    keys[[3, 50, 199]] = "a document"
    joined = np.asarray(designs.known_membership(design, ids(200), keys))
    others = np.setdiff1d(np.arange(200), [3, 50, 199])
    np.testing.assert_array_equal(joined[others], alone[others])
    assert len(np.unique(joined[[3, 50, 199]], axis=0)) == 1


def test_clusters_follow_where_classifiers_are_fitted_in_closed_form():
    resolved = lambda *asked: Design(50).resolved(*asked).kind  # noqa: E731
    assert resolved((100,), "closed_form") == resolved((100, 1), "closed_form") == "clusters"
    for shape, fit in (((99,), "closed_form"), ((100, 2), "closed_form"), ((100,), "joint")):
        assert resolved(shape, fit) == "hash"
    for kind in ("hash", "clusters"):
        assert Design(50, kind=kind).resolved((60, 9), "closed_form").kind == kind
    assert designs.known_membership(Design(50, kind="clusters"), ids(60)) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Design(num_subsets=5, degree=6), "degree=6 exceeds num_subsets=5"),
        (lambda: Design(num_subsets=0), "num_subsets=0"),
        (lambda: Design(kind="random"), "kind='random': use 'auto', 'hash' or 'clusters'"),
        (lambda: Design(kind="clusters").resolved((9,), "joint"), "kind='clusters' with fit='jo"),
        (
            lambda: designs.known_membership(Design(21, 2, kind="clusters"), ids(20)),
            "num_subsets=21 clusters of 20 examples",
        ),
        (lambda: designs.membership(Design(100, 2), ids(20)), r"exceeds .* 20 \* 2 = 40"),
        (lambda: designs.membership(Design(100, 2), ids(60)), "of 100 subsets are empty"),
        (lambda: designs.membership(Design(2, 1), ["a", "a", "b"]), "1 of 3 example ids"),
        (lambda: designs.subsets_needed(10, 11), "sparsity=11"),
    ],
)
def test_impossible_designs_are_refused_with_their_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_random_sets_of_examples_have_the_neighbours_of_an_expander():
    table = np.asarray(designs.membership(Design(num_subsets=200, degree=5), ids(800)))
    rng = np.random.default_rng(0)
    sets = [table[rng.choice(800, 10, replace=False)] for _ in range(200)]
    neighbours = [len(np.unique(rows)) for rows in sets]
    # 10 examples of 5 subsets are 50 balls in 200 bins: they hit 200 (1 − (1 − 1/200)^50) of them.
    assert np.mean(neighbours) == pytest.approx(200 * (1 - (1 - 1 / 200) ** 50), abs=1)
