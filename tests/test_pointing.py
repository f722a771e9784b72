"""Answers that point: what is kept, exact scores, peeling, subsets that follow content, keys."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stride_jax
from stride_jax import asking, exact, listing, reading, stride, unmixing
from stride_jax import operators as ops
from stride_jax.design import Design, Membership
from stride_jax.estimate import key_shares, rest_sizes
from stride_jax.examples import Examples
from stride_jax.frozen import freeze
from stride_jax.index import Index
from stride_jax.measure import MeasureSettings
from stride_jax.observed import as_training
from stride_jax.operators import content as contents
from stride_jax.operators.fisher import blocks, fisher_of, precondition
from stride_jax.operators.moments import pairs
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.rows import Taken
from stride_jax.scores import as_dense
from stride_jax.settings import ExactSettings, IndexSettings, ReadSettings
from stride_jax.unit import Unit

ONE = Execution(mesh=meshes.arranged((1, 1), jax.devices()))


def settings_of(kind, kept=0, **changes):
    design = Design(20, 3, kind=kind)
    basis = ops.BasisSettings(rank=12)
    return IndexSettings(
        design=design, taps=("input",), basis=basis, kept=kept, sites=("logit",),
        closed_form=ops.ClosedFormSettings(decay=0.2), **changes,
    )  # fmt: skip


def fitted(trained, settings, train=None, execution=ONE, **more):
    train = trained.train if train is None else train
    return stride_jax.fit(
        trained.tapped, trained.params, train.inputs, train.labels, settings, ids=train.ids,
        execution=execution, **more,
    )  # fmt: skip


FIRST = MeasureSettings("first_order")


def asked(
    trained, index, read=ReadSettings(measure=FIRST), queries=slice(6), execution=ONE, **more
):
    few = trained.query.take(queries)
    return stride_jax.attribute(
        trained.tapped, trained.params, index, few.inputs, few.labels, read, ids=few.ids,
        execution=execution, **more,
    )  # fmt: skip


def budget(count, **more):
    return ReadSettings(measure=FIRST, exact=ExactSettings(budget=count, **more))


def direct(trained, index, queries=slice(6), train=None):
    train = trained.train if train is None else train
    few = trained.query.take(queries)
    return stride_jax.direct(trained.tapped, trained.params, index, train, few).scores_QxN


def close(a, b, tolerance=1e-5):
    assert np.abs(np.asarray(a) - np.asarray(b)).max() <= tolerance * np.abs(b).max()


@pytest.fixture(scope="module", params=["hash", "clusters"])
def plain(request, trained):
    """An index that keeps nothing, and its direct scores of six queries."""
    index = fitted(trained, settings_of(request.param), keep_moments=True)
    return index, direct(trained, index)


def pieces(trained, index):
    """Features and errors of the training set, float64."""
    frozen = freeze(trained.tapped, trained.params, trained.train, index.settings, ONE)
    observed = as_training(frozen.observe(trained.train, ONE).observed, 0.005)
    b = ops.example_features(index.operators["logit"].basis, observed.activations)
    e = frozen.sites["logit"].errors(None, observed, {})
    return np.asarray(b, np.float64)[:, 0], np.asarray(e, np.float64)[:, 0]


# ── exact scores and peeling ─────────────────────────────────────────────────────────────────────


def test_scoring_everything_exactly_is_direct_scoring(trained, plain):
    index, scores = plain
    found = asked(trained, index, budget(400), train=trained.train)
    close(found.scores_QxN, scores)
    assert found.diagnostics["exact"].tolist() == [400] * 6
    assert (found.diagnostics["explained"] > 0.999).all()
    assert (found.diagnostics["verdict"] == 0).all()


ASKED_OTHERWISE = ({"question": "margin"}, {"together": "mean"}, {"together": "max"},
                   {"against": 3})  # fmt: skip


@pytest.mark.parametrize("more", [{}, *ASKED_OTHERWISE])
def test_an_answer_that_is_exact_throughout_measures_nothing(trained, plain, more, monkeypatch):
    index, _ = plain
    if "against" in more:
        more = {"against": (trained.query.labels[:6] + more["against"]) % 10}
    keeps = fitted(trained, settings_of(index.settings.design.kind, kept=2**20))
    ways = ((index, budget(400), {"train": trained.train}), (keeps, ReadSettings(), {}))
    for own, read, data in ways:
        assert asking.needs_no_sketch(own, read, bool(data), 6, ONE.memory)
    with monkeypatch.context() as patched:
        patched.setattr(stride, "needs_no_sketch", lambda *_: False)
        wanted = [asked(trained, own, read, **data, **more) for own, read, data in ways]

    def refuse(*_, **__):
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr(asking, "measure_all", refuse)
    for (own, read, data), slowly in zip(ways, wanted, strict=True):
        for memory in (ONE.memory, 2000):  # in one block, and query by query
            monkeypatch.setattr(stride, "needs_no_sketch", lambda *_: True)
            execution = dataclasses.replace(ONE, memory=memory)
            found = asked(trained, own, read, execution=execution, **data, **more)
            assert found.exact.nnz == found.scores_QxN.size
            close(found.scores_QxN, as_dense(slowly.scores))
            assert found.query_ids.tolist() == slowly.query_ids.tolist()
            for name in found.diagnostics:
                np.testing.assert_allclose(
                    found.diagnostics[name], slowly.diagnostics[name], atol=1e-3
                )


def test_listed_examples_are_exact_and_the_rest_is_peeled(trained, plain):
    index, scores = plain
    sketch = asked(trained, index).scores_QxN
    before = np.linalg.norm(sketch - scores)
    for rounds in (1, 3):
        found = asked(trained, index, budget(60, rounds=rounds), train=trained.train)
        listed = found.exact.toarray() > 0
        assert (listed.sum(axis=1) == 60).all()
        close(found.scores_QxN[listed], scores[listed])
        # Twenty measurements hold little; a cluster tells its members apart by size alone.
        assert np.linalg.norm(found.scores_QxN - scores) < 0.9 * before
        table = found.top(5)
        assert set(table["found_by"]) <= {"sketch", "estimate"}
        assert table["found_by"].iloc[0] == "sketch"


def test_an_answer_does_not_depend_on_queries_devices_or_memory(trained, plain):
    index, _ = plain
    read = budget(40)
    whole = asked(trained, index, read, train=trained.train)
    alone = asked(trained, index, read, queries=slice(2, 3), train=trained.train)
    close(alone.scores_QxN[0], whole.scores_QxN[2], 1e-4)
    np.testing.assert_array_equal(alone.exact.toarray()[0], whole.exact.toarray()[2])
    devices = Execution(mesh=meshes.arranged((2, 2), jax.devices()))
    split = asked(trained, index, read, train=trained.train, execution=devices)
    # Rounding may decide who comes last on a list of forty.
    same_QxN = split.exact.toarray() == whole.exact.toarray()
    assert (~same_QxN).sum() <= 2
    close(split.scores_QxN[same_QxN], whole.scores_QxN[same_QxN], 1e-3)
    small = dataclasses.replace(ONE, memory=400_000)
    close(asked(trained, index, read, train=trained.train, execution=small).scores_QxN,
          whole.scores_QxN, 1e-4)  # fmt: skip
    shuffled = trained.train.take(np.random.default_rng(0).permutation(400))
    close(asked(trained, index, read, train=shuffled).scores_QxN, whole.scores_QxN, 1e-4)


def test_named_candidates_come_first_and_say_their_source(trained, plain):
    index, scores = plain
    weakest = np.argsort(np.abs(scores[0]))[:3]
    ids = [trained.train.ids[i] for i in weakest]
    found = asked(
        trained, index, budget(5), train=trained.train, candidates={"mine": ids, "none": []}
    )
    close(found.scores_QxN[:, weakest], scores[:, weakest], 1e-4)
    named = found.to_pandas().set_index(["query_row", "train_row"]).loc[0]["found_by"]
    assert set(named.loc[weakest]) == {"mine"}
    assert (found.diagnostics["exact"] == 5).all()


def test_shrinking_takes_the_same_from_all(trained, plain):
    index, scores = plain
    found = asked(trained, index, budget(400, shrink=0.9), train=trained.train).scores_QxN
    level = np.sort(np.abs(scores), axis=1)[:, int(0.9 * 399)]
    expected = np.sign(scores) * np.maximum(np.abs(scores) - level[:, None], 0)
    close(found, expected, 1e-4)


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [pytest.param("hash", marks=pytest.mark.slow), "clusters"])
def test_the_heaviest_are_kept_and_their_scores_exact(trained, kind):
    each = (13 + 10) * 4 + 12
    index = fitted(trained, settings_of(kind, kept=each * 50), keep_moments=True)
    b, e = pieces(trained, index)
    norms = np.linalg.norm(b, axis=1) * np.linalg.norm(e, axis=1)
    heaviest = np.sort(np.argsort(-norms)[:50])
    kept = index.kept["logit"]
    np.testing.assert_array_equal(kept.row_H, heaviest)
    close(index.norm_N, norms, 1e-4)
    assert (rest_sizes(index)[heaviest] == 0).all()
    scores, found = direct(trained, index), asked(trained, index)
    close(found.scores_QxN[:, heaviest], scores[:, heaviest])
    named = found.top(3)
    assert set(named["found_by"]) <= {"kept", "estimate"}
    # Others' estimates improve too, since what is kept no longer hides them.
    nothing = asked(trained, fitted(trained, settings_of(kind))).scores_QxN
    rest = np.setdiff1d(np.arange(400), heaviest)
    assert np.linalg.norm((found.scores_QxN - scores)[:, rest]) < np.linalg.norm(
        (nothing - scores)[:, rest]
    )
    for shape in ((4, 1), (2, 2)):
        mesh = Execution(mesh=meshes.arranged(shape, jax.devices()), batch_size=120)
        other = fitted(trained, settings_of(kind, kept=each * 50), execution=mesh)
        np.testing.assert_array_equal(other.kept["logit"].row_H, heaviest)
        close(other.kept["logit"].b_HxR, kept.b_HxR, 1e-3)
    everything = fitted(trained, settings_of(kind, kept=2**20))
    assert len(everything.kept["logit"]) == 400
    found = asked(trained, everything)
    close(found.scores_QxN, direct(trained, everything))
    if kind == "clusters":
        # Nothing is left to estimate: examples are the centroids, and the first order is measured.
        sizes = np.linalg.norm(everything.content.centroids_KxZ, axis=1)
        np.testing.assert_allclose(sizes, 1, rtol=1e-5)
        np.testing.assert_allclose(found.diagnostics["explained"], 1, atol=1e-4)


def test_half_precision_halves_the_index_and_hardly_moves_a_score(trained):
    size = 60 * ((13 + 10) * 2 + 12)
    index = fitted(trained, settings_of("clusters", kept=size, precision="float16"))
    full = fitted(trained, settings_of("clusters", kept=60 * ((13 + 10) * 4 + 12)))
    assert len(index.kept["logit"]) == len(full.kept["logit"]) == 60
    assert index.nbytes < 0.62 * full.nbytes
    ours, theirs = (asked(trained, own).scores_QxN for own in (index, full))
    assert np.linalg.norm(ours - theirs) < 0.01 * np.linalg.norm(theirs)


@pytest.mark.parametrize("width", [2, 3, 10])
def test_a_fisher_is_kept_without_what_repeats(width):
    rng = np.random.default_rng(0)
    b = rng.normal(size=(50, 4)).astype(np.float32)
    p = rng.dirichlet(np.ones(width), 50).astype(np.float32)
    outputs = np.stack([np.diag(row) - np.outer(row, row) for row in p])
    first, second = pairs(width)
    fisher_PxRxR = np.einsum("nr,ns,np->prs", b, b, outputs[:, first, second]) / 50
    zero = jnp.zeros(())
    sums = ops.Moments(
        (jnp.zeros((4, 4)), zero), (jnp.zeros((width, width)), zero),
        (jnp.asarray(fisher_PxRxR) * 50, zero), None, (zero, zero), (zero, zero),
        (jnp.float32(50), zero), None,
    )  # fmt: skip
    stored = fisher_of(sums, invariant=True)
    assert stored.exact_LxS is not None
    assert stored.exact_LxS.size == 10 * width * (width - 1) // 2
    close(blocks(stored.exact_LxS, 4, width), fisher_PxRxR, 1e-5)
    dense = np.einsum("nr,ns,nop->rosp", b, b, outputs).reshape(4 * width, -1) / 50
    dense += 2 * np.trace(dense) / len(dense) * np.eye(len(dense))
    v = rng.normal(size=(3, 4, width)).astype(np.float32)
    expected = np.linalg.solve(dense, v.reshape(3, -1).T).T.reshape(v.shape)
    close(precondition(stored, v, 2.0), expected, 1e-4)


# ── subsets that follow content ──────────────────────────────────────────────────────────────────


def test_members_join_the_nearest_centroid_and_share_out_its_measurement(trained):
    index = fitted(trained, settings_of("clusters"), keep_moments=True)
    b, e = pieces(trained, index)
    z = np.einsum("nr,no->nro", b, e).reshape(400, -1)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    centroids = np.asarray(index.content.centroids_KxZ, np.float64)
    distance = ((z[:, None] - centroids[None]) ** 2).sum(axis=2)
    ours = distance[np.arange(400), index.cluster_N]
    assert (ours <= distance.min(axis=1) + 1e-5).all()
    g = np.einsum("nr,no->nro", b, e)
    sums = np.zeros((20, *g.shape[1:]))
    np.add.at(sums, index.cluster_N, g)
    close(index.moments["logit"].gradients_KxRxO[0], sums, 1e-4)
    scores, found = direct(trained, index), asked(trained, index).scores_QxN
    for k in range(20):
        mine = index.cluster_N == k
        close(found[:, mine].sum(axis=1), scores[:, mine].sum(axis=1), 2e-3)
        share = index.norm_N[mine] / index.norm_N[mine].sum()
        close(found[:, mine], found[:, mine].sum(axis=1, keepdims=True) * share, 1e-4)
    hashed = asked(trained, fitted(trained, settings_of("hash"))).scores_QxN
    assert np.linalg.norm(found - scores) < np.linalg.norm(hashed - scores)


def test_clusters_do_not_depend_on_devices_or_batches(trained):
    whole = fitted(trained, settings_of("clusters"), keep_moments=True)
    for shape, size in (((1, 1), 64), ((2, 2), 100), ((1, 4), 2048)):
        mesh = meshes.arranged(shape, jax.devices())
        other = fitted(
            trained, settings_of("clusters"), execution=Execution(mesh=mesh, batch_size=size),
            keep_moments=True,
        )  # fmt: skip
        assert (other.cluster_N != whole.cluster_N).mean() < 0.01  # a tie may turn by rounding
        if (other.cluster_N == whole.cluster_N).all():
            close(*(i.moments["logit"].gradients_KxRxO[0] for i in (other, whole)), 1e-4)


def test_an_index_grown_on_fixed_centroids_is_the_one_fitted_at_once(trained, tmp_path):
    each = 60 * ((13 + 10) * 4 + 12)
    start = fitted(
        trained, settings_of("clusters", kept=each), trained.train.take(slice(300)),
        keep_moments=True,
    )  # fmt: skip
    start.save(tmp_path / "index.npz")
    start = Index.load(tmp_path / "index.npz")
    new = trained.train.take(slice(300, 400))
    grown = stride_jax.append(
        trained.tapped, trained.params, start, new.inputs, new.labels, ids=new.ids, execution=ONE
    )
    nothing = dataclasses.replace(
        start, train_ids=start.train_ids[:0], residual_N=start.residual_N[:0],
        norm_N=start.norm_N[:0], cluster_N=start.cluster_N[:0], kept={},
        moments=jax.tree.map(jnp.zeros_like, start.moments),
    )  # fmt: skip
    train = trained.train
    at_once = stride_jax.append(
        trained.tapped, trained.params, nothing, train.inputs, train.labels, ids=train.ids,
        execution=ONE,
    )  # fmt: skip
    assert grown.unit is start.unit is None
    double = dataclasses.replace(grown, unit=Unit(2.0, (1.5, 2.5)))
    close(asked(trained, double).scores_QxN, 2 * asked(trained, grown).scores_QxN)
    assert asked(trained, double).unit == double.unit
    np.testing.assert_array_equal(grown.cluster_N, at_once.cluster_N)
    np.testing.assert_array_equal(grown.kept["logit"].row_H, at_once.kept["logit"].row_H)
    close(asked(trained, grown).scores_QxN, asked(trained, at_once).scores_QxN, 1e-4)


def test_spherical_means_serve_every_direction():
    rng = np.random.default_rng(0)
    centres = np.eye(6)[:, :6]
    z = np.repeat(centres, 30, axis=0) + 0.05 * rng.normal(size=(180, 6))
    z = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    found = contents.spherical_means(z, rng.exponential(size=180), 12, seed=0)
    own = ((z[:, None] - found[None]) ** 2).sum(axis=2).min(axis=1)
    assert own.max() < 0.3
    assert contents.spherical_means(z[:3], np.ones(3), 5, seed=0).shape == (5, 6)


@pytest.mark.parametrize("kept", [0, 40 * ((13 + 10) * 4 + 12)])
def test_a_list_has_the_scores_of_the_whole_answer(trained, kept, monkeypatch):
    index = fitted(trained, settings_of("clusters", kept=kept))
    weakest = trained.train.ids[:2].tolist()
    more = {"train": trained.train, "candidates": {"mine": weakest}}
    exact = budget(50)
    for read, options in ((exact, more), (ReadSettings(measure=FIRST), {})):
        whole = asked(trained, index, read, **options)
        with monkeypatch.context() as patched:
            patched.setattr(listing, "_LEAST", 120)
            patched.setattr(reading, "_is_long", lambda *_: True)
            listed = asked(trained, index, read, **options)
        found = listed.scores_QxN
        there = found != 0
        assert there.mean() < 0.6
        close(found[there], whole.scores_QxN[there], 1e-4)
        # What is left out is weaker than every estimate that is listed.
        left = np.abs(np.where(there, 0, whole.scores_QxN)).max(axis=1)
        estimates = np.where(there & (whole.exact.toarray() == 0), np.abs(found), np.inf)
        assert (left <= estimates.min(axis=1) * 1.001).all()
        np.testing.assert_array_equal(listed.exact.toarray(), whole.exact.toarray())
        for name, values in whole.diagnostics.items():
            np.testing.assert_allclose(listed.diagnostics[name], values, rtol=1e-3)


@pytest.mark.parametrize("copied", [False, True])
def test_names_that_nothing_holds_change_no_answer(trained, copied, monkeypatch):
    train = trained.train
    if copied:
        rows = np.concatenate([np.arange(400), [5] * 30])
        train = Examples(train.inputs[rows], train.labels[rows], [f"n{i}" for i in range(430)])
    index = fitted(trained, settings_of("hash"), train)
    rows = np.arange(len(train))
    unheld = lambda names: None if names is None else Taken(names, rows)  # noqa: E731
    lazy = dataclasses.replace(index, train_ids=unheld(index.train_ids), keys=unheld(index.keys))
    assert isinstance(lazy.subsets_Nxd, Membership)
    more = {"train": train, "candidates": {"mine": train.ids[[3, 399]].tolist()}}
    # Strengths are looked at in several parts.
    monkeypatch.setattr(unmixing, "_TOGETHER", 6 * 70)
    own, other = (asked(trained, one, budget(60), **more) for one in (index, lazy))
    close(other.scores_QxN, own.scores_QxN, 1e-5)
    assert other.exact.toarray().tolist() == own.exact.toarray().tolist()
    assert other.top(4).equals(own.top(4)) or copied  # the order of equal scores is free
    if copied:
        close(other.by_key().scores_QxN, own.by_key().scores_QxN)


# ── keys and the unit ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [pytest.param("hash", marks=pytest.mark.slow), "clusters"])
def test_copies_under_different_ids_act_as_one(trained, kind, monkeypatch):
    train = trained.train
    rows = np.concatenate([np.arange(400), [5] * 30])
    copies = Examples(train.inputs[rows], train.labels[rows], [f"n{i}" for i in range(430)])
    assert copies.keys[400:].tolist() == ["n5"] * 30
    index = fitted(trained, settings_of(kind), copies)
    subsets = index.subsets_Nxd
    assert (subsets[400:] == subsets[5]).all()
    found = asked(trained, index)
    scores = found.scores_QxN
    close(scores[:, 400:], np.repeat(scores[:, 5:6], 30, axis=1), 1e-4)
    by_key = found.by_key()
    assert by_key.scores_QxN.shape == (6, 400)
    place = by_key.train_ids.tolist().index("n5")
    close(by_key.scores_QxN[:, place], 31 * scores[:, 5], 1e-3)
    exact_scores = direct(trained, index, train=copies)
    parted = asked(trained, index, budget(430), train=copies)
    close(parted.scores_QxN, exact_scores)
    # One copy is scored for all of them.
    few = asked(trained, index, budget(1), train=copies, candidates={"mine": ["n420"]})
    close(few.scores_QxN[:, 400:], exact_scores[:, 400:], 1e-4)
    if kind == "clusters":  # a list says the same
        monkeypatch.setattr(reading, "_is_long", lambda *_: True)
        some = asked(trained, index, budget(1), train=copies, candidates={"mine": ["n420"]})
        close(some.scores_QxN, few.scores_QxN, 1e-4)
        assert some.exact.toarray().tolist() == few.exact.toarray().tolist()
    close(few.scores_QxN[:, 5], exact_scores[:, 5], 1e-4)


def test_keys_that_group_nothing_change_nothing(trained):
    train = trained.train
    index = fitted(trained, settings_of("hash"))
    same = fitted(trained, settings_of("hash"), keys=[f"k{i}" for i in range(400)])
    assert same.keys is None
    np.testing.assert_array_equal(same.subsets_Nxd, index.subsets_Nxd)
    shares = key_shares(np.array([0, 1, 0]), np.zeros(3)).toarray()
    np.testing.assert_allclose(shares, [[0.5, 0, 0.5], [0, 1, 0]])
    sources = fitted(trained, settings_of("hash"), keys=[f"s{i % 50}" for i in range(400)])
    assert len(np.unique(sources.subsets_Nxd[::50], axis=0)) == 1
    assert len(train) == 400


def test_a_score_is_in_nats_of_leaving_the_example_out():
    """A classifier refitted without an example, against its scores: the curvature is its own."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)).astype(np.float32)
    y = (x @ rng.normal(size=(3, 3)) + rng.gumbel(size=(300, 3))).argmax(axis=1)
    ridge = 0.002

    def loss(w, rows):
        log_p = jax.nn.log_softmax(x[rows] @ w)
        return -log_p[jnp.arange(len(rows)), y[rows]].mean() + ridge / 2 * (w**2).sum()

    def trained_on(rows):
        w = jnp.zeros((3, 3))
        for _ in range(12):  # Newton's steps
            g = jax.grad(loss)(w, rows).reshape(-1)
            h = jax.hessian(loss)(w, rows).reshape(9, 9)
            w = w - jnp.linalg.solve(h, g).reshape(3, 3)
        return w

    everyone = np.arange(300)
    w = trained_on(everyone)
    tapped = stride_jax.from_function(lambda p, v: (v @ p, {"input": v}))
    queries = x[:8] + 0.3, y[:8]

    def losses(w):
        log_p = np.asarray(jax.nn.log_softmax(queries[0] @ w))
        return -log_p[np.arange(8), queries[1]]

    scores = []
    for design in (Design(30, 2, kind="hash"), Design(12, 5, kind="hash")):
        settings = IndexSettings(
            design=design, taps=("input",), kept=0,
            closed_form=ops.ClosedFormSettings(damping=0.02, doubt=0.0),
        )  # fmt: skip
        index = stride_jax.fit(tapped, w, x, y, settings)
        train = Examples(x, y)
        scores.append(stride_jax.direct(tapped, w, index, train, queries).scores_QxN)
    close(scores[0], scores[1], 1e-4)  # whatever the design
    rows = [0, 7, 31, 99, 150]
    real = np.stack([losses(trained_on(np.delete(everyone, i))) - losses(w) for i in rows], 1)
    predicted = scores[0][:, rows]
    slope = (real * predicted).sum() / (predicted**2).sum()
    assert 0.6 < slope < 1.6
    assert np.corrcoef(real.ravel(), predicted.ravel())[0, 1] > 0.9


# ── bad input ────────────────────────────────────────────────────────────────────────────────────


def test_bad_questions_say_what_is_wrong(trained, plain):
    index, _ = plain
    train = trained.train
    with pytest.raises(ValueError, match=r"budget=401 .* has 400 training examples"):
        asked(trained, index, budget(401), train=train)
    with pytest.raises(ValueError, match=r"'mine': 1 ids are not among .* first 'nobody'"):
        asked(trained, index, train=train, candidates={"mine": ["nobody"]})
    with pytest.raises(ValueError, match=r"2 lists for 6 queries"):
        asked(trained, index, train=train, candidates={"mine": [[], []]})
    with pytest.raises(ValueError, match=r"\['mine'\] are scored from the training data"):
        asked(trained, index, candidates={"mine": [train.ids[0]]})
    with pytest.raises(ValueError, match=r"holds 100 examples, but 300 of the index' 400"):
        asked(trained, index, train=train.take(slice(100)))
    with pytest.raises(ValueError, match=r"keys of shape \(3,\) for 400 examples"):
        fitted(trained, settings_of("hash"), keys=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"kind='random': use 'auto', 'hash' or 'clusters'"):
        Design(kind="random")
    with pytest.raises(ValueError, match=r"num_subsets=20 clusters of 12 examples"):
        fitted(trained, settings_of("clusters"), train.take(slice(12)))
    with pytest.raises(ValueError, match=r"kind='clusters' with fit='joint'"):
        fitted(trained, settings_of("clusters", fit="joint"))
    with pytest.raises(ValueError, match=r"kept=-1 bytes"):
        IndexSettings(kept=-1)
    with pytest.raises(ValueError, match=r"precision='int8'"):
        IndexSettings(precision="int8")
    with pytest.raises(ValueError, match=r"shrink=1.0 is a quantile"):
        ExactSettings(shrink=1.0)
    assert exact.positions(index, train).tolist() == list(range(400))
