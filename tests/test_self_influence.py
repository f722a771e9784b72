"""Self-influence against dense algebra and direct scores; planted wrong labels come first."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stride_jax
from stride_jax import Design, Examples, Execution, IndexSettings
from stride_jax import operators as ops
from stride_jax.frozen import freeze
from stride_jax.observed import as_training
from stride_jax.operators import basis as bases
from stride_jax.runtime import mesh as meshes
from stride_jax.self_influence import Root, by_pairs, self_influence, squared

SETTINGS = IndexSettings(
    design=Design(num_subsets=16, degree=3, kind="hash"),
    taps=("input", "hidden0"),
    basis=ops.BasisSettings(rank=6),
)


def changed(**changes):
    form = {k: changes.pop(k) for k in ("fisher", "doubt", "damping") if k in changes}
    own = dataclasses.replace(SETTINGS, **changes)
    return dataclasses.replace(own, closed_form=dataclasses.replace(own.closed_form, **form))


def fitted(case, settings):
    train = case.train
    return stride_jax.fit(
        case.tapped, case.params, train.inputs, train.labels, settings, ids=train.ids
    )


def close(ours, theirs, rtol=3e-4):
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())


# ── the oracle ───────────────────────────────────────────────────────────────────────────────────


def gradients(case, index):
    """Features, errors and probabilities of the training tokens as the closed form reads them."""
    frozen = freeze(case.tapped, case.params, case.train, index.settings)
    chunk = frozen.observe(case.train)
    read = as_training(chunk.observed, index.settings.closed_form.doubt)
    b = bases.example_features(index.operators["logit"].basis, read.activations)
    e = frozen.sites["logit"].errors(case.params, read, chunk.contexts["logit"])
    p = jax.nn.softmax(read.logits_NxTxC)
    weight = np.asarray(read.weights_NxT, np.float64)
    return np.asarray(b, np.float64), np.asarray(e, np.float64), np.asarray(p, np.float64), weight


def dense(case, index):
    """`vec(g)ᵀ (F + gamma I)^{-1} vec(g) / Σ omega` with F built from all tokens, float64."""
    b, e, p, weight = gradients(case, index)
    own, form = index.settings.closed_form, index.settings.closed_form.fisher
    damping = 2.0 if own.damping is None else own.damping
    rank, width = b.shape[2], e.shape[2]
    s = p[..., :, None] * np.eye(width) - p[..., :, None] * p[..., None, :]
    total, n = weight.sum(), rank * width
    a = np.einsum("nt,ntr,nts->rs", weight, b, b) / total
    o = np.einsum("nt,ntcd->cd", weight, s) / total
    if form == "kronecker":
        a, o = (
            a + damping * np.trace(a) / rank * np.eye(rank),
            o + (own.output_damping * np.trace(o) / width * np.eye(width)),
        )
        curvature = np.kron(a, o)
    elif form == "eigen":
        fisher = index.fisher["logit"]
        q = np.kron(*(np.asarray(v, np.float64) for v in fisher.rotation))
        exact = np.einsum("nt,ntr,nts,ntcd->rcsd", weight, b, b, s).reshape(n, n) / total
        values = np.einsum("ij,ik,kj->j", q, exact, q)
        curvature = q * (values + damping * values.mean()) @ q.T
    else:
        curvature = np.einsum("nt,ntr,nts,ntcd->rcsd", weight, b, b, s).reshape(n, n) / total
        gamma = damping * np.trace(curvature) / n
        if own.damping is None:
            gamma = own.decay * np.trace(a) / total
        curvature = curvature + gamma * np.eye(n)
    g = np.einsum("nt,ntr,nto->nro", weight, b, e).reshape(len(b), n)
    return (g * np.linalg.solve(curvature, g.T).T).sum(axis=1) / total


@pytest.mark.parametrize("doubt", [0.0, 0.05])
@pytest.mark.parametrize("form", ["exact", "eigen", "kronecker"])
def test_dense_algebra(trained, form, doubt):
    index = fitted(trained, changed(fisher=form, doubt=doubt))
    ours = self_influence(trained.tapped, trained.params, index, trained.train)
    close(ours.scores_N, dense(trained, index))
    assert ours.scores_N.min() >= 0


# ── sequences ────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True)
class Case:
    tapped: stride_jax.TappedModel
    params: jax.Array
    train: Examples


def sequences(tokens):
    """A model of five tokens by the one before; the last labels of some do not count."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, (60, tokens)).astype(np.int32)
    y = rng.integers(0, 5, (60, tokens)).astype(np.int32)
    y[::3, -2:] = -1
    table = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
    tapped = stride_jax.from_function(
        lambda p, x: (jnp.take(p[0], x, axis=0) @ p[1], {"input": jnp.take(p[0], x, axis=0)})
    )
    return Case(tapped, (table, head), Examples(x, y))


@pytest.mark.parametrize("tokens", [3, 12])
@pytest.mark.parametrize("form", ["exact", "eigen", "kronecker"])
def test_sequences(form, tokens):
    case = sequences(tokens)
    settings = changed(fisher=form, taps=("input",), kept=0)
    index = fitted(case, settings)
    ours = self_influence(case.tapped, case.params, index, case.train)
    close(ours.scores_N, dense(case, index))
    assert ours.labels_N is None
    with pytest.raises(ValueError, match="a label per token"):
        ours.by_class()


def test_both_formulas_of_sequences():
    """Products of pairs of tokens and the gradient itself give one number."""
    rng = np.random.default_rng(1)
    b, e = (rng.normal(size=(4, 9, n)).astype(np.float32) for n in (30, 40))
    left, right = (np.tril(rng.normal(size=(n, n))).astype(np.float32) for n in (30, 40))
    root = Root(None, jnp.asarray(left), jnp.asarray(right), None, jnp.float32(7))
    assert by_pairs(9, 30, 40)
    assert not by_pairs(18, 30, 40)
    pairs = squared(root, jnp.asarray(b), jnp.asarray(e))
    # The same tokens, and as many of no weight.
    whole = squared(root, *(jnp.asarray(np.concatenate([v, 0 * v], axis=1)) for v in (b, e)))
    close(pairs, whole)


# ── what it equals, and what it does not depend on ───────────────────────────────────────────────


@pytest.mark.parametrize(
    "settings",
    [
        changed(doubt=0.0),
        changed(doubt=0.0, output_rank=4),
        changed(doubt=0.0, sites=("logit", "hidden0")),
    ],
    ids=["logit", "folded", "two sites"],
)
def test_diagonal_of_direct_without_doubt(trained, settings):
    index = fitted(trained, settings)
    ours = self_influence(trained.tapped, trained.params, index, trained.train)
    theirs = stride_jax.direct(
        trained.tapped, trained.params, index, trained.train, trained.train
    ).scores_QxN
    close(ours.scores_N, np.diag(theirs))


def test_residual_site_is_doubted(trained):
    """Errors that are pulled back are doubted too: half a uniform share halves `e` of sure ones."""
    settings = changed(sites=("hidden0",), doubt=0.3)
    index = fitted(trained, settings)
    ours = self_influence(trained.tapped, trained.params, index, trained.train)
    frozen = freeze(trained.tapped, trained.params, trained.train, index.settings)
    read, context = frozen.forward(training=True)(
        trained.params, frozen.sites["hidden0"],
        {k: jnp.asarray(v) for k, v in frozen.source(trained.train).data.items()},
    )  # fmt: skip
    b = bases.example_features(index.operators["hidden0"].basis, read.activations)
    g = jnp.einsum("ntr,nto->nro", b, context["errors"])
    v = ops.fisher.precondition(index.fisher["hidden0"], g, *index.settings.closed_form.dampings)
    close(ours.scores_N, np.asarray((g * v).sum(axis=(1, 2)) / index.fisher["hidden0"].tokens))
    # The loss is the model's own.
    logits = trained.tapped(trained.params, trained.train.inputs)[0]
    own = jax.nn.log_softmax(logits)[np.arange(400), trained.train.labels]
    close(ours.loss_N, -np.asarray(own))
    assert (ours.predicted_N == np.asarray(logits).argmax(axis=1)).all()


def test_batches_devices_and_order(trained):
    index = fitted(trained, SETTINGS)
    train = trained.train
    ask = lambda train, **others: self_influence(  # noqa: E731
        trained.tapped, trained.params, index, train, execution=Execution(**others)
    )
    whole = ask(train)
    close(ask(train, mesh=meshes.single_mesh(), batch_size=37).scores_N, whole.scores_N, 1e-4)
    close(ask(train, memory=2**20).scores_N, whole.scores_N, 1e-4)
    order = np.random.default_rng(0).permutation(len(train))
    other = ask(train.take(order))
    close(other.scores_N, whole.scores_N, 1e-4)
    assert (other.labels_N == train.labels).all()
    assert other.ids.tolist() == index.train_ids.tolist()


# ── wrong labels ─────────────────────────────────────────────────────────────────────────────────


def test_planted_wrong_labels_come_first():
    """Logistic regression of three clear groups: the planted ones are the first suspects."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = (3 * np.eye(3)[y] + rng.normal(size=(300, 3)) * 0.7).astype(np.float32)
    wrong = rng.choice(300, 9, replace=False)
    y[wrong] = (y[wrong] + 1) % 3
    tapped = stride_jax.from_function(lambda w, x: (x @ w, {"input": x}))
    case = Case(tapped, jnp.eye(3), Examples(x, y))
    ours = self_influence(tapped, case.params, fitted(case, changed(taps=("input",))), case.train)
    table = ours.suspects(12)
    assert len(set(table["row"][:9]) & set(wrong.tolist())) >= 8
    assert table["rank"].tolist() == list(range(1, 13))
    assert (table["self_influence"].diff().dropna() <= 0).all()
    assert (table["id"] == case.train.ids[table["row"]]).all()
    assert (table["label"] == y[table["row"]]).all()
    classes = ours.by_class()
    assert classes["examples"].sum() == 300
    np.testing.assert_allclose(classes["share"].sum(), 1)
    at = classes.set_index("label")
    np.testing.assert_allclose(at["self_influence"][2], ours.scores_N[y == 2].mean(), rtol=1e-6)
    np.testing.assert_allclose(
        at["disagrees"][1], (ours.predicted_N[y == 1] != 1).mean(), rtol=1e-6
    )
    assert np.asarray(ours).tolist() == ours.scores_N.tolist()


def test_refused(trained):
    index = fitted(trained, SETTINGS)
    with pytest.raises(ValueError, match=r"no curvature.*closed form"):
        self_influence(
            trained.tapped, trained.params, dataclasses.replace(index, fisher={}), trained.train
        )
    with pytest.raises(ValueError, match=r"examples of|are not among them"):
        self_influence(trained.tapped, trained.params, index, trained.train.take(slice(0, 50)))
    other = jax.tree.map(lambda v: v + 1, trained.params)
    with pytest.raises(ValueError, match="fingerprint"):
        self_influence(trained.tapped, other, index, trained.train)
    ours = self_influence(trained.tapped, trained.params, index, trained.train)
    for bad in (0, 2.5, True):
        with pytest.raises(ValueError, match="positive number of suspects"):
            ours.suspects(bad)
