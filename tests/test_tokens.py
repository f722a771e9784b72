"""STRIDE on tokens: streaming, output bases, token groups, padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stride_jax
from stride_jax import asking, fitting
from stride_jax import operators as ops
from stride_jax.adapters import from_model
from stride_jax.design import Design, known_membership, membership, subset_sum
from stride_jax.draws import signs_of
from stride_jax.examples import Examples
from stride_jax.frozen import freeze
from stride_jax.measure import MeasureSettings
from stride_jax.models import GPT, GPTSettings
from stride_jax.observed import as_training, observed_source
from stride_jax.recovery import LassoSettings
from stride_jax.runtime.execution import Execution

CLASSES, TOKENS, COUNT = 40, 12, 90
SETTINGS = stride_jax.IndexSettings(
    design=Design(16, 3),
    taps=("embedding", "previous", "final"),
    basis=ops.BasisSettings(rank=10),
    closed_form=ops.ClosedFormSettings(doubt=0.0),
)
READ = stride_jax.ReadSettings(
    measure=MeasureSettings("first_order"), lasso=LassoSettings(relative_gap=1e-4)
)
IDS = [str(i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def language():
    """A GPT with random weights, and sequences of random tokens whose ends do not count."""
    settings = GPTSettings(
        depth=2, width=16, num_heads=2, num_kv_heads=1, sequence_len=20, smear_channels=4,
        value_gate_channels=4,
    )  # fmt: skip
    module = GPT(CLASSES, settings)
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, CLASSES, (COUNT, TOKENS)).astype(np.int32)
    labels = rng.integers(0, CLASSES, (COUNT, TOKENS)).astype(np.int32)
    labels[::3, 9:] = -1
    params = module.init(jax.random.key(0), jnp.asarray(inputs[:1]))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [v + 0.3 * jax.random.normal(k, v.shape) for k, v in zip(keys, leaves, strict=True)]
    return from_model(module), jax.tree.unflatten(tree, leaves), inputs, labels


def frozen_with(language, settings, examples=None):
    tapped, params, inputs, labels = language
    examples = Examples(inputs, labels, IDS) if examples is None else examples
    return freeze(tapped, params, examples, settings), examples


def close(a, b, tolerance=1e-5):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize(
    ("sites", "output_rank", "kind"),
    [
        pytest.param(("logit",), 0, "hash", marks=pytest.mark.slow),
        pytest.param(("logit",), 12, "hash", marks=pytest.mark.slow),
        pytest.param(("final", "logit"), 256, "hash", marks=pytest.mark.slow),
        (("block0", "logit"), 12, "clusters"),
    ],
)
def test_chunks_and_padding_change_nothing(language, sites, output_rank, kind):
    inputs, labels = language[2:]
    settings = dataclasses.replace(
        SETTINGS, sites=sites, output_rank=output_rank, kept=20_000, design=Design(16, 3, kind=kind)
    )
    small, first_order = Execution(memory=80_000), READ.measure
    frozen, examples = frozen_with(language, settings)
    chunks = [len(list(frozen.chunks(examples, e, ""))) for e in (small, Execution())]
    assert chunks[0] > 4
    assert chunks[1] == 1
    subsets = known_membership(settings.design, IDS)
    fitted = fitting.fit_operators(frozen, examples, subsets)
    same_fit(fitting.fit_operators(frozen, examples, subsets, small), fitted)
    assert 20 < len(fitted.passed.kept[sites[0]]) < COUNT * TOKENS / 2
    y = asking.measure_all(frozen, fitted.operators, examples, first_order)
    close(asking.measure_all(frozen, fitted.operators, examples, first_order, small), y)
    wide = np.pad(inputs, ((0, 0), (0, 3))), np.pad(labels, ((0, 0), (0, 3)), constant_values=-1)
    frozen, padded = frozen_with(language, settings, Examples(*wide, IDS))
    same_fit(fitting.fit_operators(frozen, padded, subsets), fitted)
    close(asking.measure_all(frozen, fitted.operators, padded, first_order), y)


@pytest.mark.parametrize("site", ["block0", "up1", "logit"])
def test_gradients_are_those_of_the_loss_that_counts(language, site):
    """Of an answer in the middle: what comes after it says nothing, its prompt moves it."""
    tapped, params, inputs, labels = language
    labels = labels[:4].copy()
    labels[:, :5] = labels[:, 9:] = -1
    weights = np.linspace(0.5, 1.0, TOKENS, dtype=np.float32) * np.ones((4, 1), np.float32)
    examples = Examples(inputs[:4], labels, IDS[:4], weights)
    taps = ("embedding",) if site != "up1" else ("norm1",)
    settings = dataclasses.replace(SETTINGS, sites=(site,), taps=taps)
    frozen = freeze(tapped, params, examples, settings)
    acting, chunk = frozen.sites[site], frozen.observe(examples)
    basis = ops.fit_basis({n: chunk.observed.activations[n] for n in taps}, settings.basis)
    b = ops.example_features(basis, chunk.observed.activations)

    def losses(a):
        shift = acting.shift(params, a, b, chunk.contexts[site])
        said = chunk.observed.logits_NxTxC + shift
        own = -jnp.take_along_axis(
            jax.nn.log_softmax(said), jnp.maximum(labels, 0)[..., None], axis=-1
        )[..., 0]
        return jnp.where(labels >= 0, weights * own, 0).sum(axis=1)

    expected = -jax.jacobian(losses)(jnp.zeros((basis.rank, acting.width)))
    given = chunk.observed, chunk.contexts[site]
    close(ops.gradients.steering_gradients(acting, params, b, *given), expected)
    # The traced form, which pulls back in the same pass.
    source = frozen.source(examples)
    read, context = source.forward(source.params, acting, jax.tree.map(jnp.asarray, source.data))
    close(context.get("errors", read.weighted_errors()), acting.errors(params, *given))
    moving = np.asarray(acting.token_weights(read, acting.errors(params, *given)))
    if site == "logit":
        np.testing.assert_array_equal(moving, np.where(labels >= 0, weights, 0))
    else:  # the last block's MLP is read by no other token
        first = 0 if site == "block0" else 5
        np.testing.assert_array_equal(
            moving[0], (np.arange(TOKENS) >= first) & (np.arange(TOKENS) < 9)
        )


def same_fit(found, wanted):
    """The same operators, and the same said of every example and token."""
    assert set(found.operators) == set(wanted.operators) == set(wanted.passed.kept)
    close(found.passed.residual_N, wanted.passed.residual_N)
    close(found.passed.norm_N, wanted.passed.norm_N)
    if wanted.content is not None:
        assert len(np.unique(wanted.passed.cluster_N)) > 8
    np.testing.assert_array_equal(found.passed.cluster_N, wanted.passed.cluster_N)
    for site, own in wanted.operators.items():
        close(found.operators[site].a_KxRxO, own.a_KxRxO)
        some, kept = found.passed.kept[site], wanted.passed.kept[site]
        np.testing.assert_array_equal(some.row_H, kept.row_H)
        np.testing.assert_array_equal(some.token_H, kept.token_H)
        close(some.b_HxR, kept.b_HxR)
        close(some.e_HxO, kept.e_HxO)


def test_token_groups_add_up_to_the_sequence(language):
    subsets = membership(SETTINGS.design, IDS)
    for sites in (("logit",), ("block0",)):
        settings = dataclasses.replace(SETTINGS, sites=sites)
        frozen, examples = frozen_with(language, settings)
        made = fitting.fit_operators(frozen, examples, subsets).operators
        for form in ("first_order", "exact"):
            whole, y = (
                asking.measure_all(frozen, made, examples, MeasureSettings(form, group=group))
                for group in (0, 5)
            )
            assert y.shape == (COUNT * 3, 16)
            close(y.reshape(COUNT, 3, 16).sum(axis=1), whole)


def test_scores_of_groups_are_added_by_query(language):
    tapped, params, inputs, labels = language
    more = dataclasses.replace(SETTINGS, design=Design(80, 10, kind="hash"), kept=0)
    fitted = stride_jax.fit(tapped, params, inputs, labels, more)
    grouped = dataclasses.replace(READ, measure=MeasureSettings("first_order", group=4), prior=0.0)
    queries = inputs[:5], labels[:5]
    found = stride_jax.attribute(tapped, params, fitted, *queries, grouped).scores_QxN
    exact = stride_jax.direct(tapped, params, fitted, (inputs, labels), queries).scores_QxN
    assert found.shape == exact.shape == (5, COUNT)
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.9
    # Exact scores of groups add up to those of the whole query.
    train = Examples(inputs, labels)
    both = stride_jax.attribute(tapped, params, fitted, *queries, grouped, train=train)
    assert (both.exact.toarray() != 0).mean() > 0.9
    close(both.scores_QxN[both.exact.nonzero()], exact[both.exact.nonzero()])


def test_an_operator_at_the_last_residual_is_the_dense_solution(language):
    """Kronecker factors at the tap `final`, against float64 and a numerical pull-back."""
    params, labels = language[1], language[3]
    how = ops.ClosedFormSettings(damping=2.0, fisher="kronecker", doubt=0.0)
    settings = dataclasses.replace(SETTINGS, sites=("final",), closed_form=how)
    subsets = membership(settings.design, IDS)
    frozen, examples = frozen_with(language, settings)
    made = fitting.fit_operators(frozen, examples, subsets).operators
    seen = frozen.observe(examples).observed
    b = np.asarray(ops.example_features(made["final"].basis, seen.activations), np.float64)
    z = np.asarray(seen.activations["final"], np.float64)
    head = np.asarray(params["head"]["kernel"], np.float64)[:, :CLASSES]
    raw = z @ head
    capped = 15 * np.tanh(raw / 15)
    p = np.exp(capped - capped.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    counted = labels >= 0
    errors = (np.eye(CLASSES)[np.maximum(labels, 0)] - p) * counted[..., None]
    through = 1 - np.tanh(raw / 15) ** 2
    delta = (errors * through) @ head.T
    roots = np.sqrt(p) * np.asarray(signs_of(examples.inputs, seen.labels_NxT, CLASSES))
    drawn = (roots - p * roots.sum(axis=-1, keepdims=True)) * counted[..., None]
    expected_delta = (drawn * through) @ head.T
    tokens = counted.sum()
    left = np.einsum("ntr,nts,nt->rs", b, b, counted) / tokens
    right = np.einsum("ntd,nte->de", expected_delta, expected_delta) / tokens
    left += how.damping * np.trace(left) / len(left) * np.eye(len(left))
    right += how.output_damping * np.trace(right) / len(right) * np.eye(len(right))
    g = np.einsum("ntr,ntd->nrd", b, delta)
    sums = np.asarray(subset_sum(subsets, jnp.asarray(g, jnp.float32), 16), np.float64)
    expected = np.linalg.solve(left, sums / tokens) @ np.linalg.inv(right)
    found = np.asarray(made["final"].a_KxRxO) * np.asarray(made["final"].size_K)[:, None, None]
    close(found, expected)


def test_folding_keeps_dot_products_in_expectation():
    a, b = jnp.asarray(np.random.default_rng(0).normal(size=(2, CLASSES)), jnp.float32)
    found = []
    for seed in range(400):
        signs = ops.draw_signs(CLASSES, seed)
        u = np.asarray(ops.unfold(jnp.eye(9), signs), np.float64)
        folded = np.asarray(ops.fold(jnp.stack([a, b]), signs, 9))
        np.testing.assert_allclose(folded, np.stack([a, b]) @ u.T, rtol=1e-4, atol=1e-5)
        found.append(folded[0] @ folded[1] * CLASSES / 9)
    assert abs(np.mean(found) - float(a @ b)) < 3 * np.std(found) / 20


@pytest.mark.parametrize("form", ["kronecker", "eigen"])
def test_folded_operators_are_those_of_the_dense_basis(language, form):
    """At the logit site with outputs `e U` and shifts `b a Uᵀ`, by dense matrices."""
    subsets = membership(SETTINGS.design, IDS)
    how = dataclasses.replace(SETTINGS.closed_form, fisher=form)
    settings = dataclasses.replace(SETTINGS, closed_form=how, output_rank=12)
    frozen, examples = frozen_with(language, settings)
    fitted = fitting.fit_operators(frozen, examples, subsets)
    made, moments = fitted.operators, fitted.passed.moments
    seen = frozen.observe(examples).observed
    u = np.asarray(ops.unfold(jnp.eye(12), frozen.signs_C), np.float64).T
    p = np.asarray(jax.nn.softmax(as_training(seen, how.doubt).logits_NxTxC), np.float64)
    w = np.asarray(seen.weights_NxT, np.float64)
    fisher = np.einsum("nt,ntc,cd->cd", w, p, np.eye(CLASSES)) * np.eye(CLASSES)
    fisher = u.T @ (fisher - np.einsum("nt,ntc,ntd->cd", w, p, p)) @ u
    close(moments["logit"].outputs_OxO[0], fisher, 1e-4)
    b = np.asarray(ops.example_features(made["logit"].basis, seen.activations), np.float64)
    e = (np.eye(CLASSES)[np.asarray(seen.labels_NxT)] - p) @ u
    g = np.einsum("nt,ntr,nto->nro", w, b, e)
    sums = np.asarray(subset_sum(subsets, jnp.asarray(g, jnp.float32), 16), np.float64)
    close(moments["logit"].gradients_KxRxO[0], sums, 1e-4)
    if form == "eigen":
        left, right = (np.asarray(v, np.float64) for v in moments["logit"].rotation)
        turned = u @ right
        spread = p @ turned**2 - (p @ turned) ** 2
        values = np.einsum("nt,ntr,nto->ro", w, (b @ left) ** 2, spread)
        close(moments["logit"].eigenvalues_RxO[0], values, 1e-4)
    site = frozen.sites["logit"]
    shift = site.shift(None, made["logit"].a_KxRxO[0], jnp.asarray(b, jnp.float32), {})
    close(shift, b @ np.asarray(made["logit"].a_KxRxO[0], np.float64) @ u.T, 1e-4)
    source, basis = observed_source(seen, {}), made["logit"].basis
    with pytest.raises(ValueError, match="without an output basis"):
        ops.accumulate(SETTINGS.design, subsets, site, basis, source, ops.Curvature("exact"))
