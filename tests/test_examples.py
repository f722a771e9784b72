"""Examples are checked at the door; ids name contents, whatever holds them."""

import collections
import hashlib
import tracemalloc
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stride_jax import ids as module
from stride_jax.examples import Examples, as_examples
from stride_jax.ids import content_ids


def of(inputs=((0.5, 1.0), (2.0, 3.0), (4.0, 5.0)), labels=(0, 1, 2), **others):
    return Examples(inputs, labels, **others)


X, Y = np.arange(6, dtype=np.float32).reshape(3, 2), np.array([0, 1, 2])
TOKENS = np.array([[1, -1], [2, 3], [-1, -1]])


@pytest.mark.parametrize(
    ("inputs", "labels", "others", "words"),
    [
        (X, Y[:2], {}, "3 inputs, 2 labels: lengths differ"),
        (X, Y, {"ids": ["a"]}, "3 labels, 1 ids: lengths differ"),
        (X, Y, {"weights": np.ones(2)}, "2 weights: lengths differ"),
        (X[:0], Y[:0], {}, "empty; give at least one"),
        (X, Y, {"ids": list("aba")}, "1 of 3 ids repeat another, first 'a': give each"),
        (X, Y, {"ids": np.array([["a"]] * 3)}, r"ids of shape \(3, 1\)"),
        ([[1.0], [1.0, 2.0], [3.0]], Y, {}, "inputs are ragged .*: pad every row"),
        (X, [[1], [1, 2], [3]], {}, "labels are ragged"),
        (["a", "b", "c"], Y, {}, "inputs are strings, .* the ids of its tokens"),
        (np.array([None] * 3), Y, {}, "inputs of ndarray with dtype object are no array"),
        ({}, Y, {}, "inputs of dict hold no array: give at least one"),
        ({"x": X, "of": None}, Y[:2], {}, r"3 inputs\['x'\], 2 labels: lengths differ"),
        ({"x": X, "mask": X[:2]}, Y, {}, r"2 inputs\['mask'\], 3 inputs\['x'\], 3 labels: lengths"),
        ((X[0], X[1]), Y, {}, r"2 inputs\[0\], .*\(a list of rows is one array, a tuple several"),
        ({"x": X, "name": list("abc")}, Y, {}, r"inputs\['name'\] are strings"),
        ({"x": X, "of": ({"y": [[1], [1, 2], [3]]},)}, Y, {}, r"\['of'\]\[0\]\['y'\] are ragged"),
        ({"x": X, "rate": 0.5}, Y, {}, r"inputs\['rate'\] are a single float64"),
        ({"x": X, "call": max}, Y, {}, r"inputs\['call'\] of builtin_function.* are no array"),
        ({"x": X, 1: X}, Y, {}, "inputs can't be read as a tree"),
        ({"x": X[:0], "y": X[:0]}, Y[:0], {}, r"inputs\['x'\] of shape \(0, 2\) .*empty"),
        ({"x": X, "y": np.where(X == 4, np.nan, X)}, Y, {}, r"\['y'\] are not finite in row 2"),
        (X + 1j, Y, {}, "dtype complex64"),
        (X[0, 0], Y[0], {}, "inputs are a single float32: the first axis counts"),
        (X, 1, {}, "labels are a single int64"),
        (X, np.array([0, np.nan, 1]), {}, "labels are not finite in row 1"),
        (X, np.array([0, 1, -2]), {}, "labels hold -2 in row 2: .* −1 marks"),
        (X, np.array([0, 2**31, 1]), {}, "labels hold 2147483648 in row 1"),
        (X, np.zeros((3, 1, 1), int), {}, r"labels of shape \(3, 1, 1\)"),
        (X, -np.ones(3, int), {}, "no label counts: .* nothing to learn"),
        (X, Y, {"weights": np.zeros(3)}, "no label counts"),
        (X, TOKENS, {"weights": [[0, 1], [0, 0], [1, 1]]}, "no label counts"),
        (X, Y, {"weights": np.ones((3, 1))}, r"weights of shape \(3, 1\) do not fit .* \(3,\)"),
        (X, Y, {"weights": [0, -0.5, 1]}, "row 1 holds -0.5"),
        (X, Y, {"weights": [0, 1, np.nan]}, "row 2 holds nan"),
        (X, Y, {"weights": [np.inf, 1, 1]}, "row 0 holds inf"),
        (X, Y, {"weights": [1, 1, 1.5]}, "row 2 holds 1.5: divide them by the largest"),
        (np.where(X == 4, np.nan, X), Y, {}, "inputs are not finite in row 2, which holds nan"),
        (np.where(X == 3, -np.inf, X), Y, {}, "inputs are not finite in row 1, .* -inf"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(inputs, labels, others, words):
    with pytest.raises(ValueError, match=words):
        Examples(inputs, labels, **others)
    with pytest.raises(ValueError, match=f"^queries: .*{words}"):
        as_examples(inputs, labels, what="queries", **others)


def test_what_is_given_in_other_forms_comes_out_as_arrays():
    plain = of(ids=[7, 8, 9])
    assert plain.ids.tolist() == ["7", "8", "9"]
    assert isinstance(plain.inputs, np.ndarray)
    assert repr(plain) == "Examples(inputs float64[3, 2], labels int64[3])"
    on_device = of(jnp.asarray(X), jnp.asarray(Y))
    assert type(on_device.inputs) is type(on_device.labels) is np.ndarray
    assert of(labels=[True, False, True]).labels.dtype == np.int32
    assert of(labels=[[0], [1], [2]]).labels.shape == (3, 1)
    assert of(jnp.asarray(X, jnp.bfloat16)).inputs.dtype == jnp.bfloat16
    weighted = of(TOKENS, TOKENS, weights=TOKENS >= 0)
    assert weighted.weights.dtype == np.float32
    np.testing.assert_array_equal(weighted.ids, content_ids(TOKENS, TOKENS))


def test_rows_are_taken_with_all_that_belongs_to_them():
    whole = of(TOKENS, TOKENS, ids=list("abc"), weights=np.array([[1, 0], [0.5, 0.25], [1, 1]]))
    for rows in (slice(2, 0, -1), [2, 1], np.array([2, 1])):
        part = whole.take(rows)
        assert part.ids.tolist() == ["c", "b"]
        for name in ("inputs", "labels", "weights"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[[2, 1]])
    assert whole.take(np.array([False, False, True])).ids.tolist() == ["c"]
    assert len(whole.take([2])) == 1, "though its labels do not count"
    for rows in ([], slice(0, 0), np.zeros(3, bool)):
        with pytest.raises(ValueError, match="no row is taken of 3"):
            whole.take(rows)
    with pytest.raises(ValueError, match="of 2 rows taken some repeat"):
        whole.take([1, 1])


def test_mapped_files_stay_on_disk_and_are_read_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 2**18)
    shape = (100, 2**16)  # 25 MiB each
    columns = {}
    for name, dtype in (("x", np.float32), ("y", np.int32), ("w", np.float32)):
        columns[name] = np.memmap(tmp_path / name, dtype, "w+", shape=shape)
    columns["x"][:, 0] = np.arange(100)
    columns["w"][7] = 1
    tracemalloc.start()
    examples = Examples(columns["x"], columns["y"], weights=columns["w"])
    assert tracemalloc.get_traced_memory()[1] < 2**23, "less than a third of one array"
    tracemalloc.stop()
    assert {type(v) for v in (examples.inputs, examples.labels, examples.weights)} == {np.memmap}
    assert type(examples.take(slice(3, 9)).inputs) is np.memmap
    np.testing.assert_array_equal(
        examples.ids, content_ids(np.array(columns["x"]), np.array(columns["y"]))
    )
    columns["x"][41, 5] = np.nan
    with pytest.raises(ValueError, match="not finite in row 41"):
        Examples(columns["x"], columns["y"])


TREE = {"tokens": [[5, 2], [7, 0], [5, 2]], "mask": np.array([[1, 1], [1, 0], [1, 1]], bool)}


def test_several_inputs_stay_a_tree_and_every_leaf_is_cut():
    both = Examples({**TREE, "of": (jnp.asarray(X), None)}, Y)
    assert repr(both) == (
        "Examples(inputs {'mask': bool[3, 2], 'of': (float32[3, 2], None), 'tokens': int64[3, 2]}, "
        "labels int64[3])"
    )
    assert {type(leaf) for leaf in jax.tree.leaves(both.inputs)} == {np.ndarray}
    for rows in (slice(2, 0, -1), [2, 1]):
        part = both.take(rows).inputs
        assert jax.tree.structure(part) == jax.tree.structure(both.inputs)
        jax.tree.map(
            lambda leaf, whole: np.testing.assert_array_equal(leaf, whole[[2, 1]]),
            part,
            both.inputs,
        )
    assert type(Examples((X, TOKENS), Y).inputs) is tuple
    np.testing.assert_array_equal(of(((0, 1), (2, 3), (4, 5))).inputs, X)  # numbers alone: rows


def test_the_ids_of_a_tree_name_every_leaf_and_its_path():
    x = [[1.0, -2.5]]
    row = b"s()11:inputs['a']n()" + np.array([3.0]).tobytes()
    row += b"s()11:inputs['x']n(2,)" + np.array(x).tobytes() + b"n()" + np.array(4.0).tobytes()
    digest = hashlib.blake2b(row, digest_size=8).hexdigest()
    assert of({"x": x, "a": [3]}, [4]).ids.tolist() == [digest]
    others = [
        of({"x": x, "a": [3]}, [5]), of({"x": x, "b": [3]}, [4]), of({"x": x, "a": [2]}, [4]),
        of((np.array(x), np.array([3])), [4]), of(x, [4]), of({"x": x}, [4]),
    ]  # fmt: skip
    assert len({digest, *(one.ids[0] for one in others)}) == 7
    ordered = collections.OrderedDict(x=x, a=[3])
    assert of(ordered, [4]).ids.tolist() == [digest], "the order of a dict is no content"
    with pytest.warns(UserWarning, match="1 of 3 examples repeat"):
        same = Examples(TREE, [0, 1, 0])
    assert same.keys.tolist() == [same.ids[0], same.ids[1], same.ids[0]]


def test_leaves_of_a_tree_stay_mapped(tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(3, 2))
    examples = Examples({"x": mapped, "mask": TREE["mask"]}, Y)
    assert type(examples.inputs["x"]) is np.memmap
    assert type(examples.take(slice(1, 3)).inputs["x"]) is np.memmap


def named(*columns):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return content_ids(*columns).tolist()


def test_ids_hash_values_not_what_holds_them(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 200, (20, 3, 4))
    x[0, 0] = 0
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    wide = np.zeros((40, 3, 8), np.int16)
    wide[::2, :, ::2] = x
    expected = named(x)
    forms = [
        x.astype(np.int32), x.astype(np.uint8), x.astype(float), x.astype(np.float32), x.tolist(),
        x.astype(">i8"), x.astype(">f4"), np.asfortranarray(x), wide[::2, :, ::2], jnp.asarray(x),
        jnp.asarray(x, jnp.bfloat16), np.load(tmp_path / "x.npy", mmap_mode="r"),
        x.astype(object), [row.astype(float) for row in x], np.where(x == 0, -0.0, x),
    ]  # fmt: skip
    for form in forms:
        assert named(form) == expected
    assert not set(named(x.reshape(20, 12))) & set(expected), "shapes count"
    assert not set(named(x, x[:, 0, 0])) & set(expected)
    tenth = np.full(1, 0.1, np.float32)
    assert named(tenth) == named(tenth.astype(float)) != named(np.array([0.1]))
    assert named(np.array([True, False])) == named([1, 0]) == named([1.0, -0.0])
    words = ["", "été", "a" * 300, "b\n"]
    assert named(np.array(words)) == named(words) == named(np.array(words, object))
    assert named(words) == named([w.encode() for w in words])
    assert len({*named(["1", "2"]), *named([1, 2]), *named([["1"], ["2"]])}) == 6
    assert named([["ab", "c"]]) != named([["a", "bc"]])
    assert named([[1], [1, 2]])[1] == named([[1, 2]])[0], "ragged rows stand for themselves"
    for bad in (np.array([1j]), [None], np.array(["2020-01-01"], "M8[D]")):
        with pytest.raises(ValueError, match="can't be hashed"):
            content_ids(bad)


def test_an_id_is_what_its_docstring_says():
    """The encoding written out by hand: ids in users' files must not change by accident."""
    row = b"n(2,)" + np.array([1.0, -2.5]).tobytes() + b"n()" + np.array([3.0]).tobytes()
    digest = hashlib.blake2b(row, digest_size=8)
    with pytest.warns(UserWarning, match="1 of 2 examples repeat"):
        ids = content_ids([[1, -2.5]] * 2, [3, 3])
    assert ids[0] == digest.hexdigest()
    digest.update(b"copy 1")
    assert ids[1] == digest.hexdigest()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=30, unique=True))
def test_large_integers_stay_distinct_and_equal_their_floats(values):
    values += [v + 1 for v in values if v + 1 not in values and v + 1 < 2**64]
    ids = {}
    for v in values:
        for dtype in (np.int64, np.uint64):
            if np.iinfo(dtype).min <= v <= np.iinfo(dtype).max:
                ids.setdefault(v, set()).update(named(np.array([v], dtype)))
        if float(v) == v:
            ids[v].update(named([float(v)]))
    assert all(len(names) == 1 for names in ids.values())
    assert len(set.union(*ids.values())) == len(values)


def test_ids_follow_content_not_place():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 3, (200, 6)), rng.integers(0, 2, 200)
    x[:50] += 10  # the other rows may repeat one another
    with pytest.warns(UserWarning, match="of 200 examples repeat"):
        ids = content_ids(x, y)
    assert len(set(ids)) == 200
    order = rng.permutation(200)
    with pytest.warns(UserWarning, match="of 200"):
        shuffled = content_ids(x[order], y[order])
    assert set(shuffled) == set(ids)
    unique = [i for i in range(50) if sum((x == x[i]).all(axis=1)) == 1]
    back = {name: x[order][i].tolist() for i, name in enumerate(shuffled)}
    assert all(back[ids[i]] == x[i].tolist() for i in unique)
    assert content_ids(x[:1], y[:1]) != content_ids(x[:1], 1 - y[:1]), "labels are content"
    with pytest.raises(ValueError, match="differ in length"):
        content_ids(x, y[:5])
