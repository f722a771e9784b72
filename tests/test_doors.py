"""Doors that can't be misused: bad input is refused in a clear word, or read right."""

import dataclasses
import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stride_jax
from stride_jax import Design, Examples, IndexSettings, ReadSettings
from stride_jax.recovery import LassoSettings

SETTINGS = IndexSettings(
    design=Design(40, 4), taps=("input",), basis=stride_jax.BasisSettings(rank=8)
)


BY_HASH = dataclasses.replace(SETTINGS, design=Design(40, 4, kind="hash"), kept=2000)


@pytest.fixture(scope="module")
def linear(digits):
    """A linear classifier of 200 digits, as a plain function: `(tapped, params, train, query)`."""
    train, query = digits["train"].take(slice(200)), digits["query"].take(slice(12))
    x, y = train.inputs.reshape(200, -1), np.eye(10)[train.labels]
    w = np.linalg.solve(x.T @ x + 5 * np.eye(64), x.T @ (y - 0.1)).astype(np.float32)

    def forward(params, inputs):
        flat = inputs.reshape(len(inputs), -1)
        return 8 * flat @ params, {"input": flat}

    return stride_jax.from_function(forward), jnp.asarray(w), train, query


@pytest.fixture(scope="module")
def index(linear):
    tapped, params, train, _ = linear
    return stride_jax.fit(
        tapped, params, train.inputs, train.labels, SETTINGS, ids=train.ids, keep_moments=True
    )


def with_outputs(linear, change):
    """The classifier with its logits changed."""
    tapped = linear[0]

    def forward(params, inputs):
        logits, activations = tapped.forward(params, inputs)
        return change(logits, inputs), activations

    return stride_jax.from_function(forward)


BAD_EXAMPLES = {
    "ids of another length": ({"ids": ["a", "b"]}, "200 inputs, 200 labels, 2 ids"),
    "repeated ids": ({"ids": ["a"] * 200}, "199 of 200 ids repeat another, first 'a'"),
    "float labels": ({"labels": np.zeros(200)}, r"labels.astype\(int\)"),
    "ragged inputs": ({"inputs": [[1.0]] * 199 + [[1.0, 2.0]]}, "ragged.*pad every row"),
    "strings": ({"inputs": ["a"] * 200}, "inputs are strings"),
    "empty sets": ({"inputs": np.zeros((0, 64)), "labels": np.zeros(0, int)}, "give at least one"),
    "negative weights": ({"weights": -np.ones(200)}, r"weights must lie in \[0, 1\].*row 0"),
    "NaN weights": ({"weights": np.full(200, np.nan)}, r"weights must lie in \[0, 1\]"),
    "weights of another shape": ({"weights": np.ones((200, 2))}, r"shape \(200, 2\)"),
    "NaN inputs": ({"inputs": np.full((200, 64), np.nan, np.float32)}, "not finite in row 0"),
    "labels beyond the classes": ({"labels": np.full(200, 10)}, "run up to 10.*10 classes"),
    "no label that counts": ({"labels": np.full(200, -1)}, "no label counts"),
    "inputs of another width": (
        {"inputs": np.arange(1000.0).reshape(200, 5)}, r"fails on inputs float64\[200, 5\]"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_EXAMPLES)
def test_bad_examples_are_refused_as_training_examples_and_as_queries(linear, index, kind):
    tapped, params, train, _ = linear
    changed, message = BAD_EXAMPLES[kind]
    given = {"inputs": train.inputs, "labels": train.labels} | changed
    with pytest.raises(ValueError, match=message):
        stride_jax.fit(tapped, params, settings=SETTINGS, **given)
    with pytest.raises(ValueError, match=message):
        stride_jax.attribute(tapped, params, index, **given)


def test_one_unbatched_query_is_refused_and_lists_are_read(linear, index):
    tapped, params, _, query = linear
    with pytest.raises(ValueError, match=r"first axis counts examples|lengths differ"):
        stride_jax.attribute(tapped, params, index, query.inputs[0], query.labels[0])
    arrays = stride_jax.attribute(tapped, params, index, query.inputs, query.labels)
    lists = stride_jax.attribute(
        tapped, params, index, query.inputs.tolist(), [int(v) for v in query.labels]
    )
    np.testing.assert_allclose(lists.scores_QxN, arrays.scores_QxN, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(lists.query_ids, arrays.query_ids)


BAD_MODELS = {
    "one class": (lambda o, x: o[:, :1], "1 class: a cross-entropy needs 2"),
    "transposed logits": (lambda o, x: o.T, "do not fit labels"),
    "probabilities": (lambda o, x: jax.nn.softmax(o), "are probabilities.*give logits"),
    "NaN": (lambda o, x: o + jnp.nan, "not finite for 8 of 8"),
    "the rest of the batch": (lambda o, x: o - 5 * o.mean(axis=0)[None], "the rest of the batch"),
    "a hidden random state": (
        lambda o, x: o + 9 * jax.random.normal(jax.random.key(0), o.shape), "place in the batch"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_models_that_can_not_be_attributed_are_refused(linear, kind):
    change, message = BAD_MODELS[kind]
    _, params, train, _ = linear
    with pytest.raises(ValueError, match=message):
        stride_jax.fit(with_outputs(linear, change), params, train.inputs, train.labels, SETTINGS)


def test_logits_without_anything_to_say_are_said(linear, index):
    _, params, train, query = linear
    constant = with_outputs(linear, lambda o, x: 0 * o)
    with pytest.warns(UserWarning, match="the same for 8 examples that differ"):
        stride_jax.fit(constant, params, train.inputs, train.labels, SETTINGS)
    # Logits 0 and ±100 on the right class: nothing is left to learn, and nothing to measure.
    right = jnp.asarray(np.concatenate([train.labels, query.labels]))
    known = jnp.asarray(np.concatenate([train.inputs, query.inputs]).reshape(212, -1))

    def saturated(logits, x):
        nearest = ((x.reshape(len(x), 1, -1) - known[None]) ** 2).sum(axis=-1).argmin(axis=1)
        return 200 * jax.nn.one_hot(right[nearest], 10) - 100

    model = with_outputs(linear, saturated)
    own = dataclasses.replace(index, model="")
    with pytest.warns(UserWarning, match=r"12 of 12 queries have no measurable signal.*calibrate"):
        attribution = stride_jax.attribute(model, params, own, query.inputs, query.labels)
    assert not attribution.scores_QxN.any()
    assert not attribution.diagnostics["explained"].any()
    assert (attribution.diagnostics["verdict"] == 2).all(), "nothing was found"
    # Six of them with a wrong label, read one by one: the silent ones have nothing to compare.
    wrong = np.where(np.arange(12) < 6, (query.labels + 1) % 10, query.labels)[::-1]
    for memory in (2**30, 4_000):
        with pytest.warns(UserWarning, match="6 of 12 queries have no measurable signal"):
            mixed = stride_jax.attribute(
                model, params, dataclasses.replace(own, kept={}), query.inputs[::-1], wrong,
                stride_jax.ReadSettings(exact=stride_jax.ExactSettings(budget=100)),
                train=train, execution=stride_jax.Execution(memory=memory),
            )  # fmt: skip
        silent = np.isnan(mixed.diagnostics["agreement"])
        assert silent.tolist() == [True] * 6 + [False] * 6
        assert (mixed.diagnostics["verdict"][silent] == 2).all()
        assert mixed.scores_QxN.any(axis=1).tolist() == (~silent).tolist()
    certain = dataclasses.replace(SETTINGS, closed_form=stride_jax.ClosedFormSettings(doubt=0.0))
    with pytest.raises(ValueError, match=r"Fisher .* is zero.*calibrate"):
        stride_jax.fit(model, params, train.inputs, train.labels, certain)
    huge = with_outputs(linear, lambda o, x: 1e30 * o)
    with pytest.raises(ValueError, match=r"Fisher .* is zero|logits are not finite"):
        stride_jax.fit(huge, params, train.inputs, train.labels, certain)


def test_settings_of_the_wrong_class_or_type_are_refused(linear, index):
    tapped, params, train, query = linear
    for make, message in (
        (lambda: Design(40, 2.5), "Design.degree=2.5 must be of type int"),
        (lambda: Design(40, True), "degree"),
        (lambda: Design(4, 5), "degree=5 exceeds num_subsets=4"),
        (lambda: Design(4, 2, kind="random"), "kind='random': use 'auto', 'hash' or 'clusters'"),
        (lambda: IndexSettings(taps="input"), r"taps='input': give a tuple such as \('input',\)"),
        (lambda: IndexSettings(design=ReadSettings()), "design"),
        (lambda: ReadSettings(lasso=Design()), "lasso"),
        (lambda: LassoSettings(lambda_fraction=float("nan")), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ValueError, match=r"settings=ReadSettings.*IndexSettings"):
        stride_jax.fit(tapped, params, train.inputs, train.labels, ReadSettings())
    with pytest.raises(ValueError, match=r"settings=IndexSettings.*ReadSettings"):
        stride_jax.attribute(tapped, params, index, query.inputs, query.labels, SETTINGS)
    joint = dataclasses.replace(SETTINGS, fit="joint")
    with pytest.raises(ValueError, match="joint training has no moments"):
        stride_jax.fit(tapped, params, train.inputs, train.labels, joint, keep_moments=True)
    clusters = dataclasses.replace(joint, design=Design(40, 4, kind="clusters"))
    with pytest.raises(ValueError, match=r"kind='clusters' with fit='joint'.*kind='hash'"):
        stride_jax.fit(tapped, params, train.inputs, train.labels, clusters)
    many = dataclasses.replace(SETTINGS, design=Design(201, 4, kind="clusters"))
    with pytest.raises(ValueError, match=r"num_subsets=201 clusters of 200 examples"):
        stride_jax.fit(tapped, params, train.inputs, train.labels, many)
    other = dataclasses.replace(SETTINGS, taps=("inputs",))
    with pytest.raises(ValueError, match="unknown tap 'inputs'"):
        stride_jax.fit(tapped, params, train.inputs, train.labels, other)


def test_a_design_of_all_subsets_says_that_nothing_can_be_recovered(linear):
    tapped, params, train, _ = linear
    everyone = dataclasses.replace(SETTINGS, design=Design(5, 5, kind="hash"))
    with pytest.raises(ValueError, match=r"degree=5 = num_subsets=5.*lower the degree"):
        stride_jax.fit(tapped, params, train.inputs, train.labels, everyone)


def test_parameters_other_than_the_index_own_are_refused(linear, index):
    tapped, params, train, query = linear
    other = params.at[3, 3].add(1e-3)
    queries = query.inputs, query.labels
    for call in (
        lambda: stride_jax.attribute(tapped, other, index, *queries),
        lambda: stride_jax.append(tapped, other, index, *queries),
        lambda: stride_jax.direct(tapped, other, index, train, queries),
    ):
        with pytest.raises(ValueError, match="not those the index was fitted on"):
            call()


def test_ids_are_checked_where_examples_come_back(linear, index):
    tapped, params, train, query = linear
    queries = query.inputs, query.labels
    with pytest.raises(ValueError, match="200 of the new examples are in the index already"):
        stride_jax.append(tapped, params, index, train.inputs, train.labels, ids=train.ids)
    with pytest.raises(ValueError, match="12 inputs, 12 labels, 3 ids"):
        stride_jax.append(tapped, params, index, *queries, ids=["a", "b", "c"])
    turned = train.take(np.arange(200)[::-1])
    with pytest.raises(ValueError, match=r"example 0 of train is .* in their order"):
        stride_jax.direct(tapped, params, index, turned, queries)
    by_content = stride_jax.fit(
        tapped, params, train.inputs, train.labels, SETTINGS, keep_moments=True
    )
    with pytest.raises(ValueError, match=r"example 0 of train is .* in their order"):
        stride_jax.direct(tapped, params, by_content, (turned.inputs, turned.labels), queries)
    right = stride_jax.direct(tapped, params, index, train, queries)
    np.testing.assert_array_equal(right.train_ids, index.train_ids)


@pytest.mark.parametrize("kind", ["hash", "clusters"])
def test_lambda_can_be_chosen_and_its_diagnostics_travel(linear, index, tmp_path, kind):
    tapped, params, train, query = linear
    queries = query.inputs, query.labels
    if kind == "hash":
        index = stride_jax.fit(tapped, params, train.inputs, train.labels, BY_HASH, ids=train.ids)
    chosen = stride_jax.attribute(tapped, params, index, *queries, choose_lambda=True)
    certified = {"explained", "exact", "verdict"}
    of_lasso = {"fraction", "held_out_r2", "signal", "relative_gap"}
    assert certified <= set(chosen.diagnostics)
    assert (of_lasso <= set(chosen.diagnostics)) == (kind == "hash")
    assert all(len(v) == 12 for v in chosen.diagnostics.values())
    assert chosen.settings["read"]["selection"]["rule"] == "best"
    chosen.save(tmp_path / "a.parquet")
    back = stride_jax.Attribution.load(tmp_path / "a.parquet")
    assert set(back.diagnostics) == set(chosen.diagnostics)
    for name, value in chosen.diagnostics.items():
        np.testing.assert_array_equal(back.diagnostics[name], value)
    np.testing.assert_array_equal(back.exact.toarray(), chosen.exact.toarray())
    table = chosen.top(3)
    assert set(table.query_label) <= set(range(10))
    assert len(table) <= 12 * 6
    assert set(table.found_by) <= {"kept", "estimate"}


_ANOTHER_PROCESS = """
import sys
import numpy as np
sys.path.insert(0, {root!r})
import stride_jax
with np.load({arrays!r}) as a:
    def forward(params, inputs):
        flat = inputs.reshape(len(inputs), -1)
        return 8 * flat @ params, {{"input": flat}}
    index = stride_jax.Index.load({index!r})
    grown = stride_jax.append(
        stride_jax.from_function(forward), a["params"], index, a["inputs"], a["labels"],
        ids=a["ids"],
    )
grown.save({out!r})
"""


@pytest.mark.parametrize("kind", [pytest.param("hash", marks=pytest.mark.slow), "clusters"])
def test_an_index_grows_in_another_process_to_the_one_fitted_at_once(
    linear, tmp_path, pytestconfig, kind
):
    tapped, params, train, query = linear
    settings = dataclasses.replace(SETTINGS, design=Design(40, 4, kind=kind), kept=6000)
    first, rest = train.take(slice(150)), train.take(slice(150, None))
    start = stride_jax.fit(
        tapped, params, first.inputs, first.labels, settings, ids=first.ids, keep_moments=True
    )
    start.save(tmp_path / "start.npz")
    np.savez(tmp_path / "rest.npz", params=params, inputs=rest.inputs, labels=rest.labels,
             ids=rest.ids)  # fmt: skip
    names = {"arrays": "rest.npz", "index": "start.npz", "out": "grown.npz"}
    paths = {name: str(tmp_path / file) for name, file in names.items()}
    code = _ANOTHER_PROCESS.format(root=str(pytestconfig.rootpath), **paths)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown = stride_jax.Index.load(tmp_path / "grown.npz")
    # At once, on the basis and the centroids that the first part fixed.
    nothing = dataclasses.replace(
        start, train_ids=start.train_ids[:0], residual_N=start.residual_N[:0],
        norm_N=start.norm_N[:0], kept={}, moments=jax.tree.map(jnp.zeros_like, start.moments),
        cluster_N=None if start.cluster_N is None else start.cluster_N[:0],
    )  # fmt: skip
    whole = stride_jax.append(tapped, params, nothing, train.inputs, train.labels, ids=train.ids)
    queries = query.inputs, query.labels
    for index in (grown, whole):
        assert index.train_ids.tolist() == train.ids.tolist()
    assert 50 < len(whole.kept["logit"]) < 100
    np.testing.assert_array_equal(grown.subsets_Nxd, whole.subsets_Nxd)
    np.testing.assert_array_equal(grown.kept["logit"].row_H, whole.kept["logit"].row_H)
    for ask in (
        lambda index: index.operators["logit"].a_KxRxO,
        lambda index: stride_jax.direct(tapped, params, index, train, queries).scores_QxN,
    ):
        a, b = (np.asarray(ask(index)) for index in (grown, whole))
        assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)
    grown.save(tmp_path / "small.npz", moments=False)
    small = stride_jax.Index.load(tmp_path / "small.npz")
    again = stride_jax.direct(tapped, params, small, train, queries).scores_QxN
    assert np.linalg.norm(again - b) < 1e-5 * np.linalg.norm(b), "direct scores need no moments"
    with pytest.raises(ValueError, match="has no moments, so nothing can be added"):
        stride_jax.append(tapped, params, small, *queries)
    with pytest.raises(ValueError, match="trained operators and no curvature"):
        stride_jax.direct(tapped, params, dataclasses.replace(small, fisher={}), train, queries)


def test_files_of_others_are_named_and_never_called_deletable(index, tmp_path):
    index.save(tmp_path / "index.npz")
    whole = (tmp_path / "index.npz").read_bytes()
    cases = {"torn.npz": whole[: len(whole) // 2], "text.npz": b"my notes"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    with np.load(tmp_path / "index.npz") as arrays:
        kept = dict(arrays)
    np.savez(tmp_path / "newer.npz", **(kept | {"format": 99}))
    np.savez(tmp_path / "older.npz", **{n: v for n, v in kept.items() if n != "format"})
    for name, lacks in (("half", "logit:a"), ("norms", "norm_N"), ("members", "cluster_N")):
        assert lacks in kept
        np.savez(tmp_path / f"{name}.npz", **{n: v for n, v in kept.items() if n != lacks})
    np.savez(tmp_path / "odd.npz", **(kept | {"format": "mine"}))
    np.savez(tmp_path / "foreign.npz", weights=np.zeros(3))
    names = ("torn", "text", "newer", "older", "half", "norms", "members", "odd", "foreign")
    for name in names:
        with pytest.raises(stride_jax.UnreadableFileError, match=f"{name}.npz") as refused:
            stride_jax.Index.load(tmp_path / f"{name}.npz")
        assert "delete" not in str(refused.value)
        assert "remove" not in str(refused.value)
    with pytest.raises(stride_jax.UnreadableFileError, match=r"has format 99.*reads 3.*fit"):
        stride_jax.Index.load(tmp_path / "newer.npz")
    with pytest.raises(FileNotFoundError):
        stride_jax.Index.load(tmp_path / "nowhere.npz")


@pytest.mark.slow
def test_everything_works_with_x64(linear, tmp_path, pytestconfig):
    """Operators, measurements and scores of a process with 64-bit JAX are those of this one."""
    tapped, params, train, query = linear
    queries = query.inputs, query.labels
    here = []
    for kind in ("hash", "clusters"):
        own = dataclasses.replace(SETTINGS, design=Design(40, 4, kind=kind), kept=2000)
        fitted = stride_jax.fit(tapped, params, train.inputs, train.labels, own, ids=train.ids)
        att = stride_jax.attribute(tapped, params, fitted, *queries, choose_lambda=True)
        here.append(att.scores_QxN)
    np.savez(tmp_path / "in.npz", params=params, x=train.inputs, y=train.labels, ids=train.ids,
             qx=query.inputs, qy=query.labels)  # fmt: skip
    code = f"""
import sys
import numpy as np
sys.path.insert(0, {str(pytestconfig.rootpath)!r})
import stride_jax
a = np.load({str(tmp_path / "in.npz")!r})
def forward(params, inputs):
    flat = inputs.reshape(len(inputs), -1)
    return 8 * flat @ params, {{"input": flat}}
tapped = stride_jax.from_function(forward)
scores = []
for fit, kind in (("closed_form", "hash"), ("closed_form", "clusters"), ("joint", "hash")):
    own = stride_jax.IndexSettings(
        design=stride_jax.Design(40, 4, kind=kind), taps=("input",), fit=fit, kept=2000,
        basis=stride_jax.BasisSettings(rank=8))
    x = a["x"].astype(np.float64)
    index = stride_jax.fit(tapped, a["params"], x, a["y"], own, ids=a["ids"])
    att = stride_jax.attribute(tapped, a["params"], index, a["qx"], a["qy"], choose_lambda=True)
    scores.append(att.scores_QxN)
np.savez({str(tmp_path / "out.npz")!r}, scores=scores)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:stride_jax", "-c", code],
        capture_output=True, text=True, check=False, env={**os.environ, "JAX_ENABLE_X64": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    there = np.load(tmp_path / "out.npz")["scores"]
    assert np.isfinite(there).all()
    for found, wanted in zip(there, here, strict=False):
        difference = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert difference < 1e-3, "as close as recovery is solved"


def test_the_public_surface_is_whole():
    assert set(stride_jax.__all__) <= set(dir(stride_jax))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        examples = Examples(np.ones((2, 3)), [0, 1])
    assert len(examples) == 2
    documented = [n for n in stride_jax.__all__ if not n.startswith("__") and n != "bars"]
    assert all(getattr(stride_jax, name).__doc__ for name in documented)
