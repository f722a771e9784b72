"""Operators at a layer and at the logits, against Gauss-Newton matrices written out in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import stride_jax
from stride_jax import Design, Execution, IndexSettings, taps
from stride_jax import operators as ops
from stride_jax.examples import Examples
from stride_jax.frozen import freeze
from stride_jax.index import Index, to_arrays
from stride_jax.measure import MeasureSettings
from stride_jax.objectives import Hessian
from stride_jax.operators.basis import example_features
from stride_jax.runtime import mesh as meshes
from stride_jax.self_influence import self_influence

SITE = "dense0+logit"
SETTINGS = IndexSettings(
    design=Design(num_subsets=16, degree=3, kind="hash"),
    taps=("input",),
    basis=ops.BasisSettings(rank=5),
    closed_form=ops.ClosedFormSettings(decay=0.2),
)
FEW, ALL = 40, 6 * 34  # pairs of 6 features and 24 + 10 outputs


def with_pairs(pairs, rows=10, **changes):
    how = dataclasses.replace(SETTINGS.closed_form, pairs=pairs, rows=rows)
    return dataclasses.replace(SETTINGS, closed_form=how, **changes)


def fitted(case, settings, **more):
    train = case.train
    return stride_jax.fit(
        case.tapped, case.params, train.inputs, train.labels, settings, ids=train.ids, **more
    )


def close(ours, theirs, tolerance=1e-3):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


# ── the oracle ───────────────────────────────────────────────────────────────────────────────────


def plain(params, x, steer_z, steer_o):
    """The MLP by hand, with something added to its first layer and to its logits."""
    z = x @ params["dense0"]["kernel"] + params["dense0"]["bias"] + steer_z
    h = jax.nn.relu(z) @ params["dense1"]["kernel"] + params["dense1"]["bias"]
    return jax.nn.relu(h) @ params["head"]["kernel"] + params["head"]["bias"] + steer_o


def per_example(case, index, examples, doubt):
    """Features, gradients `[N, R O]` and Gauss-Newton matrices, by forward mode in the matrix."""
    frozen = freeze(case.tapped, case.params, examples, index.settings)
    seen = frozen.observe(examples).observed
    b = example_features(index.operators[SITE].basis, seen.activations)[:, 0]
    x = jnp.asarray(examples.inputs).reshape(len(examples), -1)

    def logits(a, row, b):
        return plain(case.params, row, (b @ a)[:24], (b @ a)[24:])

    zero = jnp.zeros((b.shape[1], 34))
    j = jax.vmap(jax.jacfwd(logits), in_axes=(None, 0, 0))(zero, x, b)
    j = np.asarray(j, np.float64).reshape(len(x), 10, -1)
    p = np.asarray(jax.nn.softmax(jax.vmap(logits, (None, 0, 0))(zero, x, b)), np.float64)
    p = (1 - doubt) * p + doubt / 10
    h = p[:, :, None] * np.eye(10) - p[:, :, None] * p[:, None]
    g = np.einsum("ncg,nc->ng", j, np.eye(10)[examples.labels] - p)
    return np.asarray(b, np.float64), g, j, h


def curvature(j, h):
    return np.einsum("ncg,ncd,ndk->gk", j, h, j, optimize=True) / len(j)


def leading(h, rows):
    """What the first columns of LAPACK's pivoted Cholesky factor hold of a matrix."""
    factor, pivots, _, _ = scipy.linalg.lapack.dpstrf(h, lower=1, tol=0.0)
    columns = np.zeros((len(h), rows))
    columns[pivots - 1] = np.tril(factor)[:, :rows]
    return columns @ columns.T


def solution(case, index, right):
    """`(F + gamma S^-2)^{-1} right`: the prior of half the logits' variance through each output.

    Beyond the block of the strongest pairs F is the diagonal in the eigenvectors of its factors. In
    the block only the leading rows of each example's curvature count beside the diagonal.
    """
    b, _, j, h = per_example(case, index, case.train, index.settings.closed_form.doubt)
    whole = curvature(j, h)
    # The constant feature is the last: its block of F is the outputs' factor.
    factor = whole.reshape(6, 34, 6, 34)[5, :, 5]
    scale = np.full(34, 0.5**0.5)
    scale[:24] *= np.sqrt(np.trace(factor[24:, 24:]) / np.trace(factor[:24, :24]))
    values, q_o = np.linalg.eigh(scale[:, None] * factor * scale)
    of_b, q_b = np.linalg.eigh(b.T @ b / len(b))
    q = np.kron(q_b, scale[:, None] * q_o)
    rotated = q.T @ whole @ q
    how = index.settings.closed_form
    strongest = np.argsort(-np.outer(of_b, values).ravel())[: how.pairs]
    kept, among = np.diag(np.diag(rotated)), np.ix_(strongest, strongest)
    few = np.stack([leading(own, how.rows) for own in h]) if how.rows < 9 else h
    kept[among] = (q.T @ curvature(j, few) @ q)[among]
    np.fill_diagonal(kept, np.diag(rotated))
    gamma = 0.2 * (b**2).sum(axis=1).mean() / len(b)
    return q @ np.linalg.solve(kept + gamma * np.eye(len(kept)), q.T @ right.T)


@pytest.mark.parametrize(("pairs", "rows"), [(FEW, 2), (FEW, 9), (ALL, 4)])
def test_direct_scores_are_those_of_the_written_out_gauss_newton_matrix(trained, pairs, rows):
    index = fitted(trained, with_pairs(pairs, rows))
    assert index.settings.sites == (SITE,)
    query = trained.query.take(slice(0, 30))
    found = stride_jax.direct(trained.tapped, trained.params, index, trained.train, query)
    _, g_train, _, _ = per_example(trained, index, trained.train, 0.005)
    _, g_query, _, _ = per_example(trained, index, query, 0.0)
    close(found.scores, (solution(trained, index, g_query).T @ g_train.T) / len(g_train))
    own = self_influence(trained.tapped, trained.params, index, trained.train)
    expected = (solution(trained, index, g_train).T * g_train).sum(axis=1) / len(g_train)
    close(own.scores_N, expected)


def test_all_pairs_are_a_ridge_of_the_layer_and_of_the_logits(trained):
    """With every pair the eigenvectors drop out: F plus a decay for each of the two parts."""
    index = fitted(trained, with_pairs(ALL))
    b, g, j, h = per_example(trained, index, trained.train, 0.005)
    whole = curvature(j, h)
    power = np.diag(whole.reshape(6, 34, 6, 34)[5, :, 5])
    decay = np.repeat([power[:24].sum() / power[24:].sum(), 1.0], (24, 10)) * 2
    gamma = 0.2 * (b**2).sum(axis=1).mean() / len(b) * np.tile(decay, 6)
    found = self_influence(trained.tapped, trained.params, index, trained.train)
    close(found.scores_N, (g * np.linalg.solve(whole + np.diag(gamma), g.T).T).sum(axis=1) / len(g))


# ── as any other site ────────────────────────────────────────────────────────────────────────────


def test_measurements_are_sums_of_direct_scores_and_what_steering_does(trained):
    index = fitted(trained, with_pairs(FEW))
    query = trained.query.take(slice(0, 20))
    frozen = freeze(trained.tapped, trained.params, query, index.settings)
    linear = stride_jax.asking.measure_all(
        frozen, index.operators, query, MeasureSettings("first_order")
    )
    scores = stride_jax.direct(trained.tapped, trained.params, index, trained.train, query).scores
    member = np.zeros((400, 16))
    np.put_along_axis(member, np.asarray(index.subsets_Nxd), 1.0, axis=1)
    close(linear, scores @ member)
    steered = stride_jax.asking.measure_all(
        frozen, index.operators, query, MeasureSettings("exact", scale=1e-3)
    )
    close(steered, linear, 0.02)
    # `steer` adds the operator to the layer and to the logits.
    x, own = np.asarray(query.inputs).reshape(20, -1), index.operators[SITE]
    a = own.size_K[3] * own.a_KxRxO[3]
    b = example_features(index.operators[SITE].basis, {"input": x[:, None]})[:, 0]
    rows = jax.vmap(plain, (None, 0, 0, 0))
    by_hand = rows(trained.params, x, (b @ a)[:, :24], (b @ a)[:, 24:])
    close(stride_jax.steer(trained.tapped, trained.params, index, query.inputs, subset=3), by_hand)


def turned(ours, theirs):
    """-1 for each strongest pair whose eigenvectors came out as the negative of the other's."""
    np.testing.assert_array_equal(ours.strongest_M, theirs.strongest_M)
    signs_R, signs_O = (
        np.sign(np.sum(np.asarray(a) * np.asarray(b), axis=0))
        for a, b in zip(ours.rotation, theirs.rotation, strict=True)
    )
    return np.outer(signs_R, signs_O).reshape(-1)[np.asarray(ours.strongest_M)]


def test_devices_batches_appending_and_files_change_nothing(trained, tmp_path):
    settings = with_pairs(FEW, rows=4, design=dataclasses.replace(SETTINGS.design, kind="clusters"))
    whole = fitted(trained, settings, keep_moments=True)
    one = meshes.arranged((1, 1), jax.devices())
    for execution in (Execution(meshes.make_mesh(2, 2)), Execution(one, batch_size=97)):
        other = fitted(trained, settings, execution=execution)
        close(other.operators[SITE].a_KxRxO, whole.operators[SITE].a_KxRxO, 1e-4)
        signs_M = turned(other.fisher[SITE], whole.fisher[SITE])
        block_MxM = np.outer(signs_M, signs_M) * other.fisher[SITE].coupled_MxM
        close(block_MxM, whole.fisher[SITE].coupled_MxM, 1e-5)
        np.testing.assert_array_equal(other.cluster_N, whole.cluster_N)
    whole.save(tmp_path / "index.npz")
    back = Index.load(tmp_path / "index.npz")
    assert back.settings == whole.settings
    for name, value in to_arrays(whole).items():
        np.testing.assert_array_equal(value, to_arrays(back)[name])
    # Half of the examples at first, the others later: the same sums in the same coordinates.
    args, train = (trained.tapped, trained.params), trained.train
    half = train.take(slice(200))
    start = stride_jax.fit(
        *args, half.inputs, half.labels, with_pairs(FEW, rows=4), ids=half.ids, keep_moments=True
    )
    grown = stride_jax.append(*args, start, train.inputs[200:], train.labels[200:],
                              ids=train.ids[200:])  # fmt: skip
    doubled = stride_jax.append(*args, start, half.inputs, half.labels,
                                ids=np.char.add(half.ids, "'"))  # fmt: skip
    close(doubled.fisher[SITE].coupled_MxM, start.fisher[SITE].coupled_MxM, 1e-5)
    assert float(grown.fisher[SITE].tokens) == 400
    assert np.abs(grown.fisher[SITE].coupled_MxM - start.fisher[SITE].coupled_MxM).max() > 0


@pytest.mark.parametrize("form", ["diagonal", "rank one", "whole"])
def test_roots_of_hessians(form):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), size=5)
    own = {
        "diagonal": Hessian(jnp.asarray(p)),
        "rank one": Hessian(jnp.asarray(p), jnp.asarray(0.7 * p)),
        "whole": Hessian(whole=jnp.asarray(np.einsum("nc,nd->ncd", p, p))),
    }[form]
    rows = np.asarray(own.root())
    matrix = np.einsum("nrc,nrd->ncd", rows, rows)
    ones = jnp.asarray(rng.uniform(size=5))
    np.testing.assert_allclose(np.einsum("n,ncd->cd", ones, matrix), own.total(ones), atol=1e-6)


# ── which site is taken ──────────────────────────────────────────────────────────────────────────


def sites_of(case, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return freeze(case.tapped, case.params, case.train, settings).settings.sites


def test_a_classifier_is_steered_at_its_first_layer_where_that_is_cheap(trained):
    assert sites_of(trained) == (SITE,)
    assert sites_of(trained, taps=()) == (SITE,)  # digits are told apart by their input
    assert sites_of(trained, taps=("hidden0",)) == ("logit",)
    assert sites_of(trained, taps=("input", "hidden0")) == ("logit",)
    assert sites_of(trained, fit="joint") == ("logit",)
    cooled = taps.with_temperature(trained.tapped, 2.0)
    assert cooled.layers == trained.tapped.layers == ("dense0", "dense1")
    x, y = np.random.default_rng(0).normal(size=(40, 900)).astype(np.float32), np.arange(40) % 10
    big = stride_jax.models.MLP(10, (90,))
    params = stride_jax.models.initial_params(big, jax.random.key(0), jnp.asarray(x))
    wide = IndexSettings(taps=("input",), design=SETTINGS.design)
    frozen = freeze(stride_jax.from_model(big), params, Examples(x, y), wide)
    assert frozen.settings.sites == ("logit",)  # 257 · 100 numbers a matrix


def test_what_a_layer_site_cannot_be_is_said_early(trained):
    with pytest.raises(ValueError, match=r"unknown tap 'dens0'"):
        sites_of(trained, sites=("dens0+logit",))
    how = dataclasses.replace(SETTINGS.closed_form, fisher="coupled")
    alone = dataclasses.replace(SETTINGS, closed_form=how, sites=("logit",))
    with pytest.raises(ValueError, match="'coupled' for layer sites"):
        fitted(trained, alone)
    for wrong in ({"pairs": 0}, {"rows": 0}):
        with pytest.raises(ValueError, match="one of each"):
            ops.ClosedFormSettings(**wrong)
    table = jnp.asarray(np.random.default_rng(0).normal(size=(5, 5)), jnp.float32)
    model = stride_jax.from_function(
        lambda p, x: (p[x], {"embedding": p[x]}), suffix=lambda p, x, z: z["embedding"]
    )
    tokens = np.stack(np.unravel_index(np.arange(20), (5, 5, 5)), 1)
    settings = IndexSettings(
        taps=("embedding",), sites=("embedding+logit",), design=SETTINGS.design
    )
    with pytest.raises(ValueError, match=r"use sites=\('logit', 'embedding'\)"):
        stride_jax.fit(model, table, tokens, tokens, settings)
