"""Lists of the strongest against peeling of all examples."""

import dataclasses
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stride_jax import listing
from stride_jax.candidates import Candidates, padded
from stride_jax.estimate import Estimator, membership_matrix
from stride_jax.exact import Columns
from stride_jax.peeling import peel
from stride_jax.settings import ExactSettings, ReadSettings

LEAST = 5


@dataclasses.dataclass
class Case:
    """An index by content, what is known of it, and queries."""

    own: Estimator
    w_QxN: np.ndarray
    kept: Columns | None
    others: list[Candidates]
    settings: ExactSettings
    ties: bool

    @property
    def y_QxK(self):
        return (self.own.matrix_KxN @ self.w_QxN.T).T.astype(np.float32)

    def score(self, rows):
        return self.w_QxN[:, rows]

    def first(self, rows):
        return rows if self.own.twin_N is None else self.own.twin_N[rows]


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, queries = draw(st.integers(1, 300)), draw(st.integers(1, 3))
    k, ties = draw(st.integers(1, 30)), draw(st.booleans())
    cluster_N = rng.integers(0, k, n).astype(np.int32)
    size_N = rng.integers(0, 4, n) if ties else np.exp(rng.normal(size=n))
    w_QxN = rng.normal(size=(queries, n)) * size_N
    if ties:
        w_QxN = np.round(w_QxN)
    w_QxN[rng.random(queries) < 0.3] = 0  # queries of no signal
    twin_N = None
    if draw(st.booleans()):
        source_N = rng.integers(0, draw(st.integers(1, n)), n)
        _, first, group_N = np.unique(source_N, return_index=True, return_inverse=True)
        twin_N = first[group_N]
        cluster_N, size_N, w_QxN = cluster_N[twin_N], size_N[twin_N], w_QxN[:, twin_N]
    size_N, w_QxN = size_N.astype(np.float32), w_QxN.astype(np.float32)
    kept = None
    if draw(st.booleans()):
        row_U = np.flatnonzero(rng.random(n) < draw(st.sampled_from([0.2, 0.5, 1.0])))
        if ties and twin_N is not None:  # copies stay together, so that no tie decides
            row_U = np.flatnonzero(np.isin(twin_N, twin_N[row_U]))
        size_N[row_U] = 0
        kept = Columns(row_U, w_QxN[:, row_U])
    others = []
    if draw(st.booleans()):
        others = [Candidates("mine", rng.integers(-1, n, (queries, 4)))]
    budget = draw(st.sampled_from([0, 1, 7, 40, 300]))
    exact = ExactSettings(
        budget=min(budget, n),
        rounds=draw(st.sampled_from([1, 3])),
        control=draw(st.sampled_from([0, 20])),
    )
    matrix = membership_matrix(cluster_N[:, None], k)
    own = Estimator(matrix, size_N, None, None, twin_N, ReadSettings())
    return Case(own, w_QxN, kept, others, exact, ties)


def answered(case, queries=slice(None), settings=None):
    """The list of some of the queries."""
    kept = case.kept and Columns(case.kept.row_U, case.kept.w_YxU[queries])
    others = [Candidates(one.source, one.row_QxP[queries]) for one in case.others]
    with mock.patch.object(listing, "_LEAST", LEAST):
        return listing.listed(
            case.own, listing.filed(case.own), case.y_QxK[queries], kept,
            lambda rows: case.w_QxN[queries][:, rows], others, settings or case.settings,
        )  # fmt: skip


def kept_rows(case):
    return np.zeros(0, int) if case.kept is None else case.kept.row_U


def chosen(case, peeled, query):
    """What a list scored exactly, one of all copies each."""
    return np.unique(case.first(np.flatnonzero(peeled.exact_QxN.toarray()[query] > 1)))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_a_shortlist_holds_what_is_asked_for_and_then_the_strongest(case):
    own, budget, n = case.own, case.settings.budget, len(case.own.rest_N)
    peeled, _ = answered(case, settings=dataclasses.replace(case.settings, rounds=1))
    left_QxK = case.y_QxK.astype(np.float64)
    if case.kept is not None:
        np.subtract.at(left_QxK.T, own.cluster_N[case.kept.row_U], case.kept.w_YxU.T)
    size_K = np.bincount(own.cluster_N, own.rest_N, len(left_QxK[0]))
    share_QxK = left_QxK / np.where(size_K > 0, size_K, np.inf)
    together_N = np.bincount(case.first(np.arange(n)), own.rest_N, n)
    for q, share_K in enumerate(share_QxK):
        strength_N = np.abs(share_K[own.cluster_N]) * together_N
        strength_N[strength_N < 1e-6 * np.abs(case.y_QxK).max()] = 0  # rounding
        asked = np.zeros(n, bool)
        for one in case.others:
            asked[case.first(one.row_QxP[q][one.row_QxP[q] >= 0])] = True
        asked[kept_rows(case)] = False
        inside = np.zeros(n, bool)
        inside[chosen(case, peeled, q)] = True
        assert (inside & asked).sum() == (
            min(budget, asked.sum()) if len(kept_rows(case)) < n else 0
        )
        assert inside.sum() <= budget
        out = ~inside & (strength_N > 0)
        if out.any():
            assert inside.sum() == budget, "there was room"
            for these in (asked, ~asked):
                weakest = strength_N[inside & these].min(initial=np.inf)
                assert weakest >= strength_N[out & these].max(initial=0) * (1 - 1e-4)
        np.testing.assert_array_equal(
            peeled.exact_QxN.toarray()[q],
            np.isin(np.arange(n), kept_rows(case))
            | inside[case.first(np.arange(n))] * np.where(asked, 4, 2)[case.first(np.arange(n))],
        )


@settings(max_examples=200, deadline=None)
@given(cases())
def test_a_list_is_peeling_where_it_lists(case):
    # Several rounds may take the same candidates in another order, and then others.
    case = dataclasses.replace(case, settings=dataclasses.replace(case.settings, rounds=1))
    peeled, estimate = answered(case)
    queries = len(case.w_QxN)
    # Of equal strength any may be chosen: peeling is told to choose the same.
    same = [Candidates("same", padded([chosen(case, peeled, q).tolist() for q in range(queries)]))]
    whole, _ = peel(case.own, case.y_QxK, queries, case.kept, case.score, same, case.settings)
    scale = 1e-5 * max(1e-3, np.abs(case.y_QxK).max())
    np.testing.assert_array_equal(peeled.exact_QxN.toarray() > 0, whole.exact_QxN.toarray() > 0)
    assert peeled.scores.has_canonical_format, "no column twice in a row"
    assert estimate.share_YxK.dtype == np.float32
    for q, expected_N in enumerate(whole.scores):
        row = peeled.scores[[q]].tocsr()
        np.testing.assert_allclose(row.data, expected_N[row.indices], atol=scale)
        estimates = np.setdiff1d(row.indices, np.flatnonzero(peeled.exact_QxN.toarray()[q]))
        length = max(LEAST, case.settings.budget)
        assert len(estimates) <= length
        weakest = np.abs(expected_N[estimates]).min(initial=np.inf)
        unlisted = np.delete(np.abs(expected_N), row.indices).max(initial=0)
        assert unlisted <= (weakest if len(estimates) == length else 0) + scale
    np.testing.assert_allclose(peeled.explained_Q, whole.explained_Q, atol=1e-4)
    np.testing.assert_allclose(peeled.error_Q, whole.error_Q, rtol=1e-3, atol=1e-4)
    if not case.ties:
        np.testing.assert_allclose(peeled.agreement_Q, whole.agreement_Q, atol=1e-3)


@settings(max_examples=50, deadline=None)
@given(cases())
def test_an_answer_does_not_depend_on_the_other_queries(case):
    together, _ = answered(case)
    for q in range(len(case.w_QxN)):
        alone, _ = answered(case, slice(q, q + 1))
        np.testing.assert_array_equal(alone.scores.toarray()[0], together.scores.toarray()[q])
        np.testing.assert_array_equal(alone.exact_QxN.toarray()[0], together.exact_QxN.toarray()[q])


def test_a_kept_copy_is_named_with_the_others_and_counted_once():
    copies = np.array([0, 0, 0, 3])
    w_QxN, size_N = np.array([[3, 3, 3, 1]], np.float32), np.array([0, 3, 3, 1], np.float32)
    matrix = membership_matrix(np.zeros((4, 1), np.int32), 1)
    own = Estimator(matrix, size_N, None, None, copies, ReadSettings())
    kept = Columns(np.array([0]), w_QxN[:, :1])
    case = Case(own, w_QxN, kept, [], ExactSettings(budget=1, control=0), ties=False)
    peeled, _ = answered(case)
    assert peeled.exact_QxN.toarray().tolist() == [[1 | 2, 2, 2, 0]]
    np.testing.assert_allclose(peeled.scores.toarray(), w_QxN, rtol=1e-6)
