"""The closed form against dense float64 algebra, and by its invariances."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import stride_jax
from stride_jax import appending, asking, stride, taps
from stride_jax import operators as ops
from stride_jax.design import Design, membership, subset_sum
from stride_jax.exact import score_rows
from stride_jax.examples import Examples
from stride_jax.fitting import store_of
from stride_jax.frozen import freeze, resolve
from stride_jax.index import Index, to_arrays
from stride_jax.measure import MeasureSettings, measure
from stride_jax.objectives.cross_entropy import loss_drop
from stride_jax.observed import as_training, forward_all, observed_source
from stride_jax.operators import content as contents
from stride_jax.operators.factor import cholesky
from stride_jax.operators.gradients import steering_gradients
from stride_jax.operators.moments import FORMS
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import UnreadableFileError

DESIGN = Design(num_subsets=16, degree=3, kind="hash")
KINDS = pytest.mark.parametrize("kind", ["hash", "clusters"])
SETTINGS = stride_jax.IndexSettings(
    design=DESIGN, taps=("input", "hidden0"), basis=ops.BasisSettings(rank=6),
    closed_form=ops.ClosedFormSettings(decay=0.2),
)  # fmt: skip
# A feature, an error, and 12 bytes of what is said of a token.
KEPT_BYTES = 4 * (7 + 10) + 12
READ = stride_jax.ReadSettings(measure=MeasureSettings("first_order"))


@pytest.fixture(scope="module")
def scene(trained):
    """`(subsets, site, basis, source)` of 400 digits at each site."""
    train = trained.train
    observed = forward_all(trained.tapped, trained.params, train)
    basis = ops.fit_basis({"input": observed.activations["input"]}, ops.BasisSettings(rank=6))
    subsets = membership(DESIGN, train.ids)
    both = dataclasses.replace(SETTINGS, taps=("input",), sites=("logit", "hidden1"))
    sites = resolve(trained.tapped, trained.params, train.inputs[:1], both).sites
    return {
        name: (
            subsets,
            site,
            basis,
            observed_source(observed, site.context(observed, train.inputs), trained.params),
        )
        for name, site in sites.items()
    }


def of_kind(settings, kind):
    return dataclasses.replace(settings, design=dataclasses.replace(settings.design, kind=kind))


def content_of(site, basis, source):
    """Clusters of the examples themselves."""
    b = ops.example_features(basis, source.data[0].activations)
    e = site.errors(source.params, *source.data)
    norms = np.asarray(contents.token_norms(b, e))
    fresh = contents.unfitted(norms.ravel(), 0.25, site.width, 0)
    return contents.fit_content(fresh, [contents.sketches(fresh, b, e)], DESIGN)


def gradients(subsets, site, basis, source):
    """`g_i` by reverse mode through the steered model, `[N, R, O]` float64."""
    observed, context = source.data
    b = ops.example_features(basis, observed.activations)

    def drop(a_RxO, i):
        own = jax.tree.map(lambda v: v[i][None], context)
        shift = site.shift(source.params, a_RxO, b[i][None], own)
        return loss_drop(shift, observed.logits_NxTxC[i][None], observed.labels_NxT[i][None]).sum()

    zero = jnp.zeros((basis.rank, site.width))
    g = jax.lax.map(lambda i: jax.grad(drop)(zero, i), jnp.arange(len(observed)))
    return np.asarray(g, np.float64)


@pytest.mark.parametrize("where", ["logit", "hidden1"])
def test_gradients_are_those_of_the_steered_loss(scene, where):
    _, site, basis, source = scene[where]
    b = ops.example_features(basis, source.data[0].activations)
    found = steering_gradients(site, source.params, b, *source.data)
    expected = gradients(*scene[where])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def reference(form, site, basis, observed, g, right):
    """`(F + gamma I)^{-1} right` in float64, each form by its definition, at default dampings."""
    b = np.asarray(ops.example_features(basis, observed.activations), np.float64)[:, 0]
    p = np.asarray(jax.nn.softmax(observed.logits_NxTxC), np.float64)[:, 0]
    n, r, o = g.shape
    if site.name == "logit":
        outputs = np.stack([np.diag(row) - np.outer(row, row) for row in p])
    else:  # g = b deltaᵀ, and the constant feature, the last, shows delta itself
        outputs = np.einsum("ni,nj->nij", g[:, -1], g[:, -1])
    exact = np.einsum("nr,ns,nop->rosp", b, b, outputs).reshape(r * o, r * o) / n
    if form == "exact":
        matrix = exact + 0.2 * (b**2).sum(axis=1).mean() / n * np.eye(r * o)
    elif form == "kronecker":
        sides = b.T @ b / n, outputs.mean(axis=0)
        left, right_side = (
            s + c * np.trace(s) / len(s) * np.eye(len(s))
            for s, c in zip(sides, (2, 1), strict=True)
        )
        matrix = np.kron(left, right_side)
    else:
        rotation = np.kron(*(np.linalg.eigh(s)[1] for s in (b.T @ b, outputs.sum(axis=0))))
        values = np.diag(rotation.T @ exact @ rotation)
        matrix = rotation @ np.diag(values + 2 * values.mean()) @ rotation.T
    return np.linalg.solve(matrix, right.reshape(len(right), -1).T).T.reshape(right.shape)


@pytest.mark.parametrize(
    ("where", "form", "kind"),
    [("logit", "exact", "hash"), ("logit", "eigen", "hash"), ("logit", "kronecker", "hash"),
     pytest.param("hidden1", "eigen", "hash", marks=pytest.mark.slow),
     ("hidden1", "kronecker", "hash"),
     ("logit", "exact", "clusters"), ("hidden1", "eigen", "clusters")],
)  # fmt: skip
def test_operators_and_direct_scores_are_the_dense_solution(scene, where, form, kind):
    subsets, site, basis, source = scene[where]
    observed = source.data[0]
    how = ops.ClosedFormSettings(fisher=form)
    small = Execution(batch_size=150, memory=320_000)
    members = subsets if kind == "hash" else content_of(site, basis, source)
    made = ops.accumulate(
        DESIGN, members, site, basis, source, ops.Curvature(form), small, ops.Store(50)
    )
    if kind == "hash":
        assert (made.cluster_N == -1).all()
    else:
        subsets = made.cluster_N[:, None]
        assert len(np.unique(subsets)) > 12
    p = np.asarray(jax.nn.softmax(observed.logits_NxTxC))[:, 0]
    errors = np.eye(10)[observed.labels_NxT[:, 0]] - p
    np.testing.assert_allclose(
        made.residual_N, np.linalg.norm(errors, axis=1), rtol=1e-4, atol=1e-6
    )
    g = gradients(*scene[where])
    norms = np.linalg.norm(g.reshape(400, -1), axis=1)
    np.testing.assert_allclose(made.norm_N, norms, rtol=1e-3, atol=1e-5 * norms.max())
    # The heaviest 50 are kept as they are.
    assert made.kept is not None
    assert norms[made.kept.row_H].min() >= np.sort(norms)[-50] * (1 - 1e-3)
    outer = np.asarray(made.kept.b_HxR)[:, :, None] * np.asarray(made.kept.e_HxO)[:, None]
    np.testing.assert_allclose(outer, g[made.kept.row_H], rtol=1e-3, atol=1e-5 * norms.max())
    sums = np.asarray(subset_sum(subsets, jnp.asarray(g, jnp.float32), 16), np.float64)
    expected = reference(form, site, basis, observed, g, sums / 400)
    fitted = ops.closed_form(basis, made.moments, how)
    found = np.asarray(fitted.a_KxRxO) * np.asarray(fitted.size_K)[:, None, None]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())
    # Direct scores are <g_x, (F + gamma I)^{-1} g_i>, and sum over subsets to the measurements.
    v = ops.directions(ops.fisher_of(made.moments), basis, site, source, how)
    parts = score_rows({where: (site, basis, v)}, source, np.arange(400), small)
    scores = np.concatenate([own for _, own in parts], axis=1)
    dense = reference(form, site, basis, observed, g, g[:5])
    expected = dense.reshape(5, -1) @ g.reshape(400, -1).T / 400
    np.testing.assert_allclose(scores[:5], expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())
    y = measure(site, fitted, source, MeasureSettings("first_order"))
    summed = np.asarray(subset_sum(subsets, jnp.asarray(scores.T), 16)).T
    np.testing.assert_allclose(y, summed, rtol=1e-3, atol=1e-4 * np.abs(y).max())


@pytest.mark.parametrize(("rank", "width"), [(7, 3), (9, 10), (3, 25)])
@pytest.mark.parametrize("shape", [None, (1, 1), (2, 2), (1, 3)])
def test_devices_factorise_a_fisher_together(rank, width, shape):
    rng = np.random.default_rng(0)
    # Σ b bᵀ ⊗ (diag p − p pᵀ): its blocks are symmetric.
    b, p = rng.normal(size=(200, rank)), rng.dirichlet(np.ones(width), size=200)
    outputs = p[:, :, None] * (np.eye(width) - p[:, None])
    whole = np.einsum("nr,ns,nco->cros", b, b, outputs).reshape(rank * width, -1)
    first, second = np.triu_indices(width)
    blocks = whole.reshape(width, rank, width, rank)[first, :, second]
    expected = np.linalg.cholesky(whole + 0.3 * np.eye(rank * width))
    work = functools.partial(cholesky, width=width, mesh=None)
    if shape:
        mesh = meshes.arranged(shape, jax.devices())
        work = jax.shard_map(
            functools.partial(cholesky, width=width, mesh=mesh),
            mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec()), out_specs=PartitionSpec(),
            check_vma=False,
        )  # fmt: skip
    found = jax.jit(work)(jnp.asarray(blocks, jnp.float32), jnp.asarray(0.3))
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def close(a, b, tolerance=1e-5):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


def one_device():
    return meshes.arranged((1, 1), jax.devices())


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        pytest.param("exact", "hash", marks=pytest.mark.slow),
        ("eigen", "hash"),
        ("exact", "clusters"),
    ],
)
def test_devices_and_batches_change_nothing(scene, form, kind):
    subsets, site, basis, source = scene["logit"]
    members = subsets if kind == "hash" else content_of(site, basis, source)

    def made(mesh, batch_size):
        execution = Execution(mesh, batch_size=batch_size)
        passed = ops.accumulate(
            DESIGN, members, site, basis, source, ops.Curvature(form), execution, ops.Store(30)
        )
        settings = ops.ClosedFormSettings(fisher=form)
        return passed, ops.closed_form(basis, passed.moments, settings)

    first, whole = made(one_device(), 2048)
    for mesh, batch_size in ((meshes.make_mesh(2, 2), 2048), (one_device(), 97)):
        passed, other = made(mesh, batch_size)
        close(other.a_KxRxO, whole.a_KxRxO)
        close(other.size_K, whole.size_K)
        close(passed.norm_N, first.norm_N)
        close(passed.residual_N, first.residual_N)
        np.testing.assert_array_equal(passed.cluster_N, first.cluster_N)
        same_store(passed.kept, first.kept)
        if mesh.size == 4:
            spec = jax.sharding.PartitionSpec("subset")
            assert passed.moments.gradients_KxRxO[0].sharding.spec == spec


def same_store(a, b):
    np.testing.assert_array_equal(a.row_H, b.row_H)
    np.testing.assert_array_equal(a.token_H, b.token_H)
    for name in ("b_HxR", "e_HxO", "norm_H"):
        close(getattr(a, name), getattr(b, name))


@KINDS
def test_an_appended_index_is_the_index_built_at_once(trained, kind):
    train, settings = trained.train, of_kind(SETTINGS, kind)
    settings = dataclasses.replace(settings, kept=40 * KEPT_BYTES)
    args = trained.tapped, trained.params
    half = train.take(slice(250))
    start = stride.fit(*args, half.inputs, half.labels, settings, ids=half.ids, keep_moments=True)
    rest = train.inputs[250:], train.labels[250:]
    grown = appending.append(*args, start, *rest, ids=train.ids[250:])
    # Built at once, on the basis and the centroids that the first half fixed.
    frozen = freeze(*args, train, settings)
    basis = start.operators["logit"].basis
    source = observed_source(as_training(frozen.observe(train).observed, 0.005), {})
    members = start.content if kind == "clusters" else membership(DESIGN, train.ids)
    made = ops.accumulate(
        DESIGN, members, frozen.sites["logit"], basis, source, ops.Curvature("exact"),
        store=store_of(frozen, basis, "logit", (400,)),
    )  # fmt: skip
    whole = ops.closed_form(basis, made.moments, settings.closed_form)
    close(grown.operators["logit"].a_KxRxO, whole.a_KxRxO)
    close(grown.operators["logit"].size_K, whole.size_K)
    close(grown.norm_N, made.norm_N)
    close(grown.residual_N, made.residual_N)
    close(grown.fisher["logit"].exact_LxS, ops.fisher_of(made.moments, invariant=True).exact_LxS)
    assert len(grown.kept["logit"]) == len(start.kept["logit"]) == 40
    same_store(grown.kept["logit"], made.kept)
    np.testing.assert_array_equal(grown.train_ids, train.ids)
    np.testing.assert_array_equal(grown.subsets_Nxd[:250], start.subsets_Nxd)
    if kind == "clusters":
        np.testing.assert_array_equal(grown.cluster_N, made.cluster_N)
    of_each = 8 if kind == "clusters" else 4
    said = "an index' operators do not grow with its training set"
    assert grown.nbytes == start.nbytes + 150 * of_each, said
    with pytest.raises(ValueError, match="has no moments"):
        appending.append(*args, dataclasses.replace(start, moments=None), *rest)
    with pytest.raises(ValueError, match="150 of the new examples are in the index already"):
        appending.append(*args, grown, *rest, ids=train.ids[250:])


@KINDS
def test_sites_add_up_and_an_index_comes_back_from_its_file(trained, tmp_path, kind):
    train, query = trained.train, trained.query
    args = trained.tapped, trained.params
    taps = ("input", "logit:hidden1", "hidden1:hidden0")
    settings = dataclasses.replace(of_kind(SETTINGS, kind), sites=("logit", "hidden1"), taps=taps)
    fitted = stride.fit(*args, train.inputs, train.labels, settings, ids=train.ids)
    fitted.save(tmp_path / "index.npz")
    back = Index.load(tmp_path / "index.npz")
    assert back.settings == settings
    np.testing.assert_array_equal(back.train_ids, train.ids)
    arrays, others = to_arrays(back), to_arrays(fitted)
    assert set(arrays) == set(others)
    assert {"norm_N", "logit:fisher:exact_LxS", "hidden1:kept:row_H"} <= set(arrays)
    assert ({"cluster_N", ":content:centroids_KxZ"} <= set(arrays)) == (kind == "clusters")
    for name, value in arrays.items():
        np.testing.assert_array_equal(value, others[name])
    first_order = READ.measure
    both = asking.measure_all(
        freeze(*args, query, back.settings), back.operators, query, first_order
    )
    parts = []
    for name in settings.sites:
        alone = dataclasses.replace(settings, sites=(name,), taps=settings.taps_of(name))
        assert set(back.operators[name].basis.mean) == set(alone.taps)
        # The first site's content chooses the clusters of all.
        one = back.operators
        if kind == "hash" or name == "logit":
            one = stride.fit(*args, train.inputs, train.labels, alone, ids=train.ids).operators
        frozen = freeze(*args, query, alone)
        parts.append(asking.measure_all(frozen, one, query, first_order))
        assert np.linalg.norm(parts[-1]) > 0
    np.testing.assert_allclose(both, sum(parts), rtol=1e-4, atol=1e-6)
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    with pytest.raises(UnreadableFileError, match=r"other.npz lacks .*'settings', 'train_ids'"):
        Index.load(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"unknown tap 'hiden1'.*hidden1"):
        stride.fit(
            *args,
            train.inputs,
            train.labels,
            dataclasses.replace(settings, sites=("hiden1",), taps=("input",)),
        )


@KINDS
def test_attribution_agrees_with_direct_scores_and_ensembles_average(trained, kind):
    train, query = trained.train, trained.query
    args = trained.tapped, trained.params
    settings = dataclasses.replace(SETTINGS, design=Design(160, 10, kind=kind), kept=0)
    examples = (train.inputs, train.labels), (query.inputs[:30], query.labels[:30])
    fitted = stride.fit(*args, *examples[0], settings, ids=train.ids)
    exact = stride.direct(*args, fitted, *examples)
    found = stride.attribute(*args, fitted, *examples[1], READ)
    assert np.corrcoef(exact.scores_QxN.ravel(), found.scores_QxN.ravel())[0, 1] > 0.8
    both = stride_jax.ensemble([exact, found])
    np.testing.assert_allclose(both.scores_QxN, (exact.scores_QxN + found.scores_QxN) / 2)
    with pytest.raises(ValueError, match="0 and 1 differ in their train_ids"):
        stride_jax.ensemble([exact, dataclasses.replace(exact, train_ids=exact.train_ids[::-1])])
    with pytest.raises(ValueError, match="index' 400 training examples; got 30"):
        stride.direct(*args, fitted, examples[1], examples[1])


def test_energies_are_variance_times_squared_jacobian():
    rng = np.random.default_rng(0)
    first, second = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((6, 5), (5, 3)))

    def function(params, x):
        hidden = x @ params[0]
        return hidden @ params[1], {"input": x, "hidden": hidden, "tiny": hidden[:, :1] * 1e-3}

    def suffix(params, x, replace):
        hidden = replace.get("hidden", replace.get("input", x) @ params[0])
        return hidden @ params[1] + 0 * replace.get("tiny", jnp.zeros((len(x), 1)))

    tapped = taps.from_function(function, suffix=suffix)
    x = rng.normal(size=(300, 6)).astype(np.float32) * np.arange(1, 7, dtype=np.float32)
    examples, params = Examples(x, np.arange(300) % 3), (first, second)
    seen = forward_all(tapped, params, examples)
    found = ops.tap_energies(tapped, params, seen, x, probes=400)
    jacobians = {"input": np.asarray(first @ second), "hidden": np.asarray(second)}
    for name, jacobian in jacobians.items():
        variance = np.asarray(seen.activations[name])[:, 0].var(axis=0).sum()
        assert found[name] == pytest.approx(variance * (jacobian**2).sum(), rel=0.15)
    assert found["tiny"] == 0
    assert freeze(tapped, params, examples).settings.taps == (ops.choose_tap(found),)
    blind = taps.from_function(function)
    with pytest.warns(UserWarning, match="no suffix, so no tap can be chosen"):
        chosen = freeze(blind, params, examples).settings.taps
    assert chosen == ("hidden", "input", "tiny"), "all, where the model has no suffix"
    with pytest.raises(ValueError, match="or name the taps"):
        ops.tap_energies(blind, params, seen, x)


def test_doubt_mixes_in_the_uniform_distribution(scene):
    seen = scene["logit"][3].data[0]
    p = np.asarray(jax.nn.softmax(seen.logits_NxTxC))
    for doubt in (0.0, 0.2):
        found = as_training(seen, doubt).logits_NxTxC
        expected = (1 - doubt) * p + doubt / 10
        np.testing.assert_allclose(jax.nn.softmax(found), expected, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="doubt=1"):
        ops.ClosedFormSettings(doubt=1.0)


def test_bad_settings_are_refused(scene):
    assert "exact" in FORMS
    with pytest.raises(ValueError, match="'exact' is for the logit site alone"):
        ops.accumulate(DESIGN, *scene["hidden1"], ops.Curvature("exact"))
    with pytest.raises(ValueError, match="damping=0"):
        ops.ClosedFormSettings(damping=0)
    with pytest.raises(ValueError, match="fit='trained'"):
        stride_jax.IndexSettings(fit="trained")
    with pytest.raises(ValueError, match="each once"):
        stride_jax.IndexSettings(sites=("logit", "logit"))
    with pytest.raises(ValueError, match="none for the site 'logit': add one such as 'logit:a'"):
        stride_jax.IndexSettings(sites=("logit", "b"), taps=("b:a",))
    with pytest.raises(ValueError, match="names 'a' 2 times"):
        stride_jax.IndexSettings(taps=("a", "logit:a"))
    assert ops.ClosedFormSettings().form(257, ops.LogitSite(10)) == "exact"
    assert ops.ClosedFormSettings().form(257, ops.LogitSite(100)) == "eigen"
