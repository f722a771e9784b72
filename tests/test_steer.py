"""Steering against dense algebra and real optima; named groups; operators as plain arrays."""

import dataclasses
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import stride_jax
from stride_jax import Design, IndexSettings, ReadSettings, Unit
from stride_jax import operators as ops
from stride_jax.frozen import freeze
from stride_jax.runtime.files import UnreadableFileError
from stride_jax.steer import load_operators, operators_pytree, save_operators, steer

SETTINGS = IndexSettings(
    design=Design(num_subsets=16, degree=3, kind="hash"),
    taps=("input", "hidden0"),
    basis=ops.BasisSettings(rank=6),
)
FIRST = stride_jax.MeasureSettings("first_order")


def changed(**changes):
    return dataclasses.replace(SETTINGS, **changes)


def names_of(train, count=5):
    """Names of groups; every seventh example is of none."""
    names = [f"book {(i + i // 3) % count}" for i in range(len(train))]
    return [None if i % 7 == 0 else name for i, name in enumerate(names)]


def fitted(trained, settings=SETTINGS, rows=slice(None), **others):
    train = trained.train
    return stride_jax.fit(
        trained.tapped, trained.params, train.inputs[rows], train.labels[rows], settings,
        ids=train.ids[rows], **others,
    )  # fmt: skip


@pytest.fixture(scope="module")
def index(trained):
    return fitted(trained, groups=names_of(trained.train))


def shift(trained, index, inputs, **asked):
    plain = trained.tapped(trained.params, inputs)[0]
    return np.asarray(steer(trained.tapped, trained.params, index, inputs, **asked) - plain)


def close(ours, theirs, rtol=2e-4):
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())


# ── what strength means ──────────────────────────────────────────────────────────────────────────

PLAIN = stride_jax.from_function(lambda p, x: (x @ p["w"] + p["b"][None], {"input": x}))


def optimum(x, y, weight_N, classes=3):
    """Parameters of a logistic regression under weights, by L-BFGS in float64."""
    one_hot = np.eye(classes)[y]

    def loss(flat):
        w = flat.reshape(x.shape[1] + 1, classes)
        o = x @ w[:-1] + w[-1]
        log_p = o - np.log(np.exp(o).sum(axis=1, keepdims=True))
        slope = weight_N[:, None] * (np.exp(log_p) - one_hot)
        gradient = np.vstack([x.T @ slope, slope.sum(axis=0)])
        return -(weight_N[:, None] * one_hot * log_p).sum(), gradient.ravel()

    found = scipy.optimize.minimize(
        loss, np.zeros((x.shape[1] + 1) * classes), jac=True, method="L-BFGS-B",
        options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-8},
    )  # fmt: skip
    w = found.x.reshape(x.shape[1] + 1, classes)
    return {"w": w[:-1].astype(np.float32), "b": w[-1].astype(np.float32)}


@pytest.fixture(scope="module")
def regression():
    """`(inputs, labels, parameters, index)` of a logistic regression at its optimum, undamped."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4)).astype(np.float32)
    y = (x @ rng.normal(size=(4, 3)) + rng.gumbel(size=(600, 3))).argmax(axis=1)
    params = optimum(x.astype(np.float64), y, np.ones(600))
    settings = IndexSettings(
        design=Design(num_subsets=24, degree=1, kind="hash"),
        closed_form=ops.ClosedFormSettings(damping=1e-4, doubt=0.0),
    )
    groups = [f"source {i % 20}" for i in range(600)]
    return x, y, params, stride_jax.fit(PLAIN, params, x, y, settings, groups=groups)


@pytest.mark.parametrize(
    ("strength", "least", "tolerance"),
    [(0.05, 0.9995, 0.01), (1.0, 0.995, 0.12), (-1.0, 0.99, 0.15)],
)
def test_strength_is_the_weight_of_the_subset_in_the_loss(regression, strength, least, tolerance):
    x, y, params, index = regression
    new = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    base = np.asarray(PLAIN(params, new)[0])
    real, ours = [], []
    for k in range(6):
        weight_N = np.where((index.subsets_Nxd == k).any(axis=1), 1 + strength, 1.0)
        moved = np.asarray(PLAIN(optimum(x.astype(np.float64), y, weight_N), new)[0]) - base
        real.append(moved - moved.mean(axis=1, keepdims=True))
        ours.append(
            np.asarray(steer(PLAIN, params, index, new, subset=k, strength=strength)) - base
        )
    real, ours = np.stack(real), np.stack(ours)
    assert np.corrcoef(real.ravel(), ours.ravel())[0, 1] > least
    assert (real * ours).sum() / (ours**2).sum() == pytest.approx(1, abs=tolerance)


def test_without_a_group_is_the_optimum_without_it(regression):
    x, y, params, index = regression
    base = np.asarray(PLAIN(params, x)[0])
    left_out = np.where(np.arange(600) % 20 == 3, 0.0, 1.0)
    moved = np.asarray(PLAIN(optimum(x.astype(np.float64), y, left_out), x)[0]) - base
    real = moved - moved.mean(axis=1, keepdims=True)
    ours = np.asarray(steer(PLAIN, params, index, x, without="source 3")) - base
    assert np.corrcoef(real.ravel(), ours.ravel())[0, 1] > 0.99
    assert (real * ours).sum() / (ours**2).sum() == pytest.approx(1, abs=0.12)


def test_the_shift_is_the_dense_solution(regression):
    x, y, params, index = regression
    own = index.operators["logit"].basis
    standard = (x - np.asarray(own.mean["input"])) / np.asarray(own.scale["input"])
    b = np.hstack([standard @ np.asarray(own.weights["projection"]), np.ones((600, 1))])
    b = b.astype(np.float64)
    p = np.asarray(jax.nn.softmax(PLAIN(params, x)[0]), np.float64)
    g = np.einsum("nr,no->nro", b, np.eye(3)[y] - p).reshape(600, -1)
    covariance = p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None]
    fisher = np.einsum("nr,ns,nop->rosp", b, b, covariance).reshape(15, 15) / 600
    fisher += 1e-4 * np.trace(fisher) / len(fisher) * np.eye(len(fisher))
    weights = np.random.default_rng(2).normal(size=24)
    total_N = weights[index.subsets_Nxd].sum(axis=1)
    expected = b @ np.linalg.solve(fisher, g.T @ total_N / 600).reshape(-1, 3)
    found = steer(PLAIN, params, index, x, weights=weights, strength=0.5) - PLAIN(params, x)[0]
    close(found, 0.5 * expected, 2e-3)


# ── pure, at every site ──────────────────────────────────────────────────────────────────────────

SITES = {
    "logit": SETTINGS,
    "folded": changed(output_rank=4),
    "residual": changed(sites=("hidden1",)),
    "half": changed(precision="float16", design=Design(16, kind="clusters")),
}


@pytest.mark.parametrize("where", SITES)
def test_vmap_is_a_loop_and_plain_arrays_do_the_same(trained, where):
    index = fitted(trained, SITES[where], groups=names_of(trained.train))
    x = jnp.asarray(trained.query.inputs[:9])
    one = lambda k, s: steer(trained.tapped, trained.params, index, x, subset=k, strength=s)  # noqa: E731
    many = jax.jit(jax.vmap(one))(jnp.arange(3), jnp.array([1.0, -2.0, 0.01]))
    close(many, np.stack([one(0, 1.0), one(1, -2.0), one(2, 0.01)]))
    together = np.zeros(16)
    together[[3, 5]] = 1.0, -0.25
    logits = trained.tapped(trained.params, x)[0]
    alone = [shift(trained, index, x, subset=k, strength=0.01) for k in (3, 5)]
    both = shift(trained, index, x, weights=together, strength=0.01)
    close(both, alone[0] - 0.25 * alone[1], 0.02 if where == "residual" else 5e-3)
    # The docstring's own lines, in NumPy.
    (site, own), *_ = jax.tree.map(np.asarray, operators_pytree(index)).items()
    h = {tap: np.asarray(v) for tap, v in trained.tapped(trained.params, x)[1].items()}
    h = {tap: v.reshape(len(v), -1) for tap, v in h.items()}
    found = lines(own, h, k=3, strength=2.0)
    if where == "residual":
        moved = {site: jnp.asarray(h[site] + found)}
        found = trained.tapped.suffix(trained.params, x, moved) - logits
    close(found, shift(trained, index, x, subset=3, strength=2.0), 1e-3)
    row = index.groups.row("book 4")
    group = own | {"a": own["groups"]["book 4"][None], "size": np.ones(1)}
    assert np.abs(group["a"]).max() > 0, row
    found = lines(group, h, k=0, strength=-1.0)
    if where != "residual":
        close(found, shift(trained, index, x, without="book 4"), 1e-3)


def lines(own, h, k, strength):
    """What the module's docstring says to write, executed as it stands there."""
    said = stride_jax.steer.__globals__["__doc__"]
    code = textwrap.dedent(said[said.index("    taps = sorted") : said.index("and `logits + s`")])
    if "signs" not in own:
        code = code[: code.index("C, O")]
    scope = {**vars(np), "own": own, "h": h, "k": k, "strength": strength}
    exec(code, scope)
    return scope["s"]


def test_tokens_are_steered_and_a_known_unit_is_multiplied_in(trained):
    rng = np.random.default_rng(0)
    table = {"e": rng.normal(size=(7, 5)).astype(np.float32)}
    model = stride_jax.from_function(lambda p, x: (p["e"][x] @ p["e"].T, {"e": p["e"][x]}))
    tokens = rng.integers(0, 7, (60, 5))
    index = stride_jax.fit(
        model, table, tokens[:, :-1], tokens[:, 1:], IndexSettings(design=Design(16, 3))
    )
    logits = model(table, tokens[:4, :-1])[0]
    moved = steer(model, table, index, tokens[:4, :-1], subset=2) - logits
    assert moved.shape == (4, 4, 7)
    for unit, factor in ((Unit(2.0, (1.5, 2.5)), 2.0), (Unit(2.0, (0.1, 3.9)), 1.0)):
        own = dataclasses.replace(index, unit=unit)
        close(steer(model, table, own, tokens[:4, :-1], subset=2) - logits, factor * moved, 1e-3)
        sizes = operators_pytree(own)["logit"]["size"]
        close(sizes, factor * index.operators["logit"].size_K)


# ── named groups ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [pytest.param("hash", marks=pytest.mark.slow), "clusters"])
def test_a_groups_operator_is_that_of_the_same_subset(trained, kind):
    settings = changed(design=Design(16, 3, kind=kind), sites=("logit", "hidden1"))
    names = names_of(trained.train)
    index, plain = (fitted(trained, settings, groups=g) for g in (names, None))
    order = [str(name) for name in index.groups.names] + ["None"]
    subset_N = np.array([order.index(str(name)) for name in names])
    assert index.groups.sizes_G.tolist() == np.bincount(subset_N)[:-1].tolist()
    frozen = freeze(trained.tapped, trained.params, trained.train, index.settings)
    source = frozen.source(trained.train, training=True)
    for name, site in frozen.sites.items():
        own = index.operators[name]
        passed = ops.accumulate(
            Design(6, 1), subset_N[:, None], site, own.basis, source,
            ops.Curvature(frozen.forms[name]),
        )  # fmt: skip
        alone = ops.closed_form(own.basis, passed.moments, index.settings.closed_form)
        group = index.groups.operators[name]
        expected = (alone.a_KxRxO * alone.size_K[:, None, None])[:5]
        close(group.a_KxRxO * group.size_K[:, None, None], expected, 5e-3)
        # Recovery sees nothing of them.
        np.testing.assert_array_equal(own.a_KxRxO, plain.operators[name].a_KxRxO)
    assert plain.groups is None


def test_a_groups_score_is_the_sum_of_its_members_direct_scores(trained, index):
    query, train = trained.query.take(np.arange(12)), trained.train
    model = trained.tapped, trained.params, index
    found = stride_jax.attribute_groups(*model, query.inputs, query.labels, FIRST, ids=query.ids)
    direct = stride_jax.direct(*model, train, query).scores_QxN
    names = np.array([str(name) for name in names_of(train)])
    expected = np.stack([direct[:, names == name].sum(axis=1) for name in found.train_ids], axis=1)
    close(found.scores_QxN, expected, 2e-3)
    assert found.train_ids.tolist() == index.groups.names.tolist()
    known = dataclasses.replace(index, unit=Unit(3.0, (2.5, 3.5)))
    twice = stride_jax.attribute_groups(
        trained.tapped, trained.params, known, query.inputs, query.labels, FIRST
    )
    close(twice.scores_QxN, 3 * found.scores_QxN)
    assert "nats, unit 3" in repr(twice)
    # A small step against the measurement's own sign.
    row = index.groups.row("book 1")
    less = shift(trained, index, jnp.asarray(query.inputs), without="book 1", strength=1e-3)
    logits = np.asarray(trained.tapped(trained.params, query.inputs)[0], np.float64)
    at = np.arange(12), query.labels
    rise = [np.log(np.exp(o).sum(axis=1)) - o[at] for o in (logits, logits + less)]
    close((rise[1] - rise[0]) / 1e-3, found.scores_QxN[:, row], 0.03)


@pytest.mark.parametrize("kind", [pytest.param("hash", marks=pytest.mark.slow), "clusters"])
def test_groups_are_kept_in_the_file_and_grow(trained, tmp_path, kind):
    settings = changed(design=Design(16, 3, kind=kind))
    names = np.array(["a", "b"] * 100 + ["c", "a"] * 100)
    first = fitted(trained, settings, slice(0, 200), groups=names[:200], keep_moments=True)
    first.save(tmp_path / "index.npz")
    loaded = stride_jax.Index.load(tmp_path / "index.npz")
    assert loaded.groups.names.tolist() == ["a", "b"]
    assert loaded.groups.sizes_G.tolist() == [100, 100]
    bare = dataclasses.replace(first, groups=None)
    solved = first.groups.operators["logit"]
    assert first.nbytes - bare.nbytes == solved.a_KxRxO.nbytes + solved.size_K.nbytes
    x = jnp.asarray(trained.query.inputs[:5])
    for kept in (first, loaded):
        added = shift(trained, kept, x, group="b")
        close(added, shift(trained, first, x, without="b", strength=-1.0))
    train = trained.train
    new = train.inputs[200:], train.labels[200:]
    model = trained.tapped, trained.params
    for old in (first, loaded):
        both = stride_jax.append(*model, old, *new, ids=train.ids[200:], groups=names[200:])
        assert both.groups.names.tolist() == ["a", "b", "c"]
        assert both.groups.sizes_G.tolist() == [200, 100, 100]
        # All groups together are all examples, and so are all subsets, d times.
        groups = sum(shift(trained, both, x, group=name) for name in "abc")
        times = 3 if kind == "hash" else 1
        everyone = shift(trained, both, x, weights=np.full(16, 1 / times))
        close(groups, everyone, 5e-3)
    more = stride_jax.append(*model, first, *new, ids=train.ids[200:], groups=[None] * 200)
    assert more.groups.sizes_G.tolist() == [100, 100]
    with pytest.raises(ValueError, match=r"this index has 2 groups: give groups="):
        stride_jax.append(*model, first, *new, ids=train.ids[200:])


def test_scores_are_those_without_groups(trained, index):
    query = trained.query.take(np.arange(5))
    both = [
        stride_jax.attribute(
            trained.tapped, trained.params, own, query.inputs, query.labels, ReadSettings(),
            ids=query.ids,
        ).scores_QxN
        for own in (index, fitted(trained))
    ]  # fmt: skip
    np.testing.assert_array_equal(*both)


# ── files, and bad input ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_operators_come_back_from_a_file(trained, index, tmp_path, ending):
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    tree = operators_pytree(index)
    save_operators(tmp_path / f"operators.{ending}", tree)
    again = load_operators(tmp_path / f"operators.{ending}")
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, again, jax.tree.map(np.asarray, tree))
    (tmp_path / f"torn.{ending}").write_bytes(b"no operators")
    with pytest.raises(UnreadableFileError, match="torn"):
        load_operators(tmp_path / f"torn.{ending}")


def test_what_cannot_be_steered_is_refused(trained, index, tmp_path):
    x = trained.query.inputs[:2]
    model = trained.tapped, trained.params
    for asked, message in (
        ({}, "one of subset, weights, group, without; got none"),
        ({"subset": 1, "group": "book 1"}, "got subset and group"),
        ({"subset": 16}, r"subset=16: give one of the 16 subsets, 0 … 15"),
        ({"subset": -1}, "subset=-1"),
        ({"subset": 1.5}, "subset=1.5"),
        ({"weights": np.ones(3)}, r"weights of shape \(3,\) for 16 subsets"),
        ({"without": "book 9"}, r"no group 'book 9' among the 5 .* such as 'book"),
    ):
        with pytest.raises(ValueError, match=message):
            steer(*model, index, x, **asked)
    plain = dataclasses.replace(index, groups=None)
    with pytest.raises(ValueError, match=r"without='book 1', but this index has no groups"):
        steer(*model, plain, x, without="book 1")
    with pytest.raises(ValueError, match=r"no groups: fit it with groups="):
        stride_jax.attribute_groups(*model, plain, x, [0, 1])
    with pytest.raises(ValueError, match=r"are not those the index was fitted on"):
        steer(trained.tapped, jax.tree.map(lambda v: 2 * v, trained.params), index, x, subset=0)
    with pytest.raises(ValueError, match=r"operators.pt' ends in '.pt': use .npz or .safetensors"):
        save_operators(tmp_path / "operators.pt", operators_pytree(index))
    index.save(tmp_path / "index.npz")
    with pytest.raises(UnreadableFileError, match="holds no operators"):
        load_operators(tmp_path / "index.npz")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a", "b"], r"groups of shape \(2,\) for 400 examples: give one name for each"),
        ([None] * 400, "name no group for any of 400 examples"),
        (range(400), "each of the 400 groups has one example"),
    ],
)
def test_groups_that_are_none_are_refused(trained, groups, message):
    with pytest.raises(ValueError, match=message):
        fitted(trained, groups=groups)


def test_trained_operators_have_no_groups(trained):
    with pytest.raises(ValueError, match=r"groups: joint training has no moments"):
        fitted(trained, changed(fit="joint"), groups=names_of(trained.train))
