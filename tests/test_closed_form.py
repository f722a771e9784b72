"""The closed form against dense float64 algebra, and by its invariances."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import stride_jax
from stride_jax import operators as ops
from stride_jax import reading, stride, taps
from stride_jax.design import Design, membership, subset_sum
from stride_jax.examples import Examples
from stride_jax.frozen import freeze, resolve
from stride_jax.index import Index
from stride_jax.measure import MeasureSettings, measure
from stride_jax.observed import as_training, forward_all, observed_source
from stride_jax.operators.factor import cholesky
from stride_jax.operators.gradients import steering_gradients
from stride_jax.operators.losses import loss_drop
from stride_jax.operators.moments import FORMS
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import UnreadableFileError

DESIGN = Design(num_subsets=16, degree=3)
SETTINGS = stride_jax.IndexSettings(
    design=DESIGN, taps=("input", "hidden0"), basis=ops.BasisSettings(rank=6)
)
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
    """`(F + gamma I)^{-1} right` in float64, from each form's definition, damping 2 (and 1)."""
    b = np.asarray(ops.example_features(basis, observed.activations), np.float64)[:, 0]
    p = np.asarray(jax.nn.softmax(observed.logits_NxTxC), np.float64)[:, 0]
    n, r, o = g.shape
    if site.name == "logit":
        outputs = np.stack([np.diag(row) - np.outer(row, row) for row in p])
    else:  # g = b deltaᵀ, and the constant feature, the last, shows delta itself
        outputs = np.einsum("ni,nj->nij", g[:, -1], g[:, -1])
    exact = np.einsum("nr,ns,nop->rosp", b, b, outputs).reshape(r * o, r * o) / n
    if form == "exact":
        matrix = exact + 2 * np.trace(exact) / (r * o) * np.eye(r * o)
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
    ("where", "form"),
    [("logit", "exact"), ("logit", "eigen"), ("logit", "kronecker"),
     ("hidden1", "eigen"), ("hidden1", "kronecker")],
)  # fmt: skip
def test_operators_and_direct_scores_are_the_dense_solution(scene, where, form):
    subsets, site, basis, source = scene[where]
    observed = source.data[0]
    how = ops.ClosedFormSettings(fisher=form)
    small = Execution(batch_size=150, memory=320_000)
    moments, norms = ops.accumulate(
        DESIGN, subsets, site, basis, source, ops.Curvature(form), small
    )
    p = np.asarray(jax.nn.softmax(observed.logits_NxTxC))[:, 0]
    errors = np.eye(10)[observed.labels_NxT[:, 0]] - p
    np.testing.assert_allclose(norms, np.linalg.norm(errors, axis=1), rtol=1e-4, atol=1e-6)
    g = gradients(*scene[where])
    sums = np.asarray(subset_sum(subsets, jnp.asarray(g, jnp.float32), 16), np.float64)
    size = 400 * 3 / 16
    expected = reference(form, site, basis, observed, g, sums / size)
    made = ops.closed_form(basis, moments, how)
    found = np.asarray(made.a_KxRxO) * np.asarray(made.size_K)[:, None, None]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())
    # Direct scores are <g_x, (F + gamma I)^{-1} g_i>, and sum over subsets to the measurements.
    v = np.asarray(ops.directions(moments, basis, site, source, how))
    scores = ops.direct_scores(v, basis, site, source, memory=200_000)
    dense = reference(form, site, basis, observed, g, g[:5])
    expected = dense.reshape(5, -1) @ g.reshape(400, -1).T / size
    np.testing.assert_allclose(scores[:5], expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())
    y = measure(site, made, source, MeasureSettings("first_order"))
    summed = np.asarray(subset_sum(subsets, jnp.asarray(scores.T), 16)).T
    np.testing.assert_allclose(y, summed, rtol=1e-3, atol=1e-4 * np.abs(y).max())


@pytest.mark.parametrize(("rank", "width"), [(7, 3), (9, 10), (3, 25)])
@pytest.mark.parametrize("shape", [None, (1, 1), (2, 4), (1, 5)])
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


@pytest.mark.parametrize("form", ["exact", "eigen"])
def test_devices_and_batches_change_nothing(scene, form):
    basis = scene["logit"][2]

    def made(mesh, batch_size):
        execution = Execution(mesh, batch_size=batch_size)
        moments, _ = ops.accumulate(DESIGN, *scene["logit"], ops.Curvature(form), execution)
        return moments, ops.closed_form(basis, moments, ops.ClosedFormSettings(fisher=form))

    _, whole = made(one_device(), 2048)
    for mesh, batch_size in ((meshes.make_mesh(2, 4), 2048), (one_device(), 97)):
        moments, other = made(mesh, batch_size)
        close(other.a_KxRxO, whole.a_KxRxO)
        close(other.size_K, whole.size_K)
        if mesh.size == 8:
            spec = jax.sharding.PartitionSpec("subset")
            assert moments.gradients_KxRxO[0].sharding.spec == spec


def test_an_appended_index_is_the_index_built_at_once(trained):
    train = trained.train
    args = trained.tapped, trained.params
    half = train.take(slice(250))
    start = stride.fit(*args, half.inputs, half.labels, SETTINGS, ids=half.ids, keep_moments=True)
    rest = train.inputs[250:], train.labels[250:]
    grown = stride.append(*args, start, *rest, ids=train.ids[250:])
    # Built at once, on the basis that the first half fixed.
    frozen = freeze(*args, train, SETTINGS)
    basis = start.operators["logit"].basis
    source = observed_source(as_training(frozen.observe(train).observed, 0.005), {})
    moments, _ = ops.accumulate(
        DESIGN, membership(DESIGN, train.ids), frozen.sites["logit"], basis, source,
        ops.Curvature("exact"),
    )  # fmt: skip
    whole = ops.closed_form(basis, moments, SETTINGS.closed_form)
    close(grown.operators["logit"].a_KxRxO, whole.a_KxRxO)
    close(grown.operators["logit"].size_K, whole.size_K)
    np.testing.assert_array_equal(grown.train_ids, train.ids)
    assert grown.nbytes == start.nbytes, "an index does not grow with its training set"
    with pytest.raises(ValueError, match="has no moments"):
        stride.append(*args, dataclasses.replace(start, moments=None), *rest)
    with pytest.raises(ValueError, match="150 of the new examples are in the index already"):
        stride.append(*args, grown, *rest, ids=train.ids[250:])


def test_sites_add_up_and_an_index_comes_back_from_its_file(trained, tmp_path):
    train, query = trained.train, trained.query
    args = trained.tapped, trained.params
    settings = dataclasses.replace(SETTINGS, sites=("logit", "hidden1"))
    fitted = stride.fit(*args, train.inputs, train.labels, settings, ids=train.ids)
    fitted.save(tmp_path / "index.npz")
    back = Index.load(tmp_path / "index.npz")
    assert back.settings == settings
    first_order = READ.measure
    both = reading.measure_all(
        freeze(*args, query, back.settings), back.operators, query, first_order
    )
    parts = []
    for name in settings.sites:
        alone = dataclasses.replace(settings, sites=(name,))
        one = stride.fit(*args, train.inputs, train.labels, alone, ids=train.ids)
        frozen = freeze(*args, query, alone)
        parts.append(reading.measure_all(frozen, one.operators, query, first_order))
        assert np.linalg.norm(parts[-1]) > 0
    np.testing.assert_allclose(both, sum(parts), rtol=1e-4, atol=1e-6)
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    with pytest.raises(UnreadableFileError, match=r"other.npz lacks .*'settings', 'train_ids'"):
        Index.load(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"unknown tap 'hiden1'.*hidden1"):
        stride.fit(
            *args, train.inputs, train.labels, dataclasses.replace(settings, sites=("hiden1",))
        )


def test_attribution_agrees_with_direct_scores_and_ensembles_average(trained):
    train, query = trained.train, trained.query
    args = trained.tapped, trained.params
    settings = dataclasses.replace(SETTINGS, design=Design(160, 10))
    examples = (train.inputs, train.labels), (query.inputs[:30], query.labels[:30])
    fitted = stride.fit(*args, *examples[0], settings, ids=train.ids, keep_moments=True)
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
    assert ops.ClosedFormSettings().form(257, ops.LogitSite(10)) == "exact"
    assert ops.ClosedFormSettings().form(257, ops.LogitSite(100)) == "eigen"
