"""TFDS builders of data whose labels are numbers, or several at once."""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from stride_jax.data.builders import Digits8x8, Packaged


def _by_rank(labels: np.ndarray) -> np.ndarray:
    """Tenths of the order, so that every split has small, middling and large numbers."""
    return np.argsort(np.argsort(labels, kind="stable")) * 10 // len(labels)


class Diabetes(Packaged):
    """442 patients: ten measurements, and how far the disease went in a year (scikit-learn)."""

    SIZES = {"train": 300, "calibration": 42, "query": 100}  # noqa: RUF012 (TFDS reads it)
    TEXT = "Diabetes (scikit-learn): 300 train, 42 calibration, 100 query."
    LABEL = tfds.features.Tensor(shape=(), dtype=np.float32)
    COLUMN = "features"
    FEATURE = tfds.features.Tensor(shape=(10,), dtype=np.float32)

    strata = staticmethod(_by_rank)

    @staticmethod
    def arrays() -> tuple[np.ndarray, np.ndarray]:
        """Rows `[442, 10]` and progressions `[442]`, float32."""
        from sklearn.datasets import load_diabetes

        rows, labels = load_diabetes(return_X_y=True, scaled=False)
        return np.asarray(rows, np.float32), np.asarray(labels, np.float32)

    @staticmethod
    def names() -> list[str]:
        """Such as `bmi`."""
        from sklearn.datasets import load_diabetes

        own: Any = load_diabetes()
        return [str(name) for name in own.feature_names]


class LinearNumbers(Packaged):
    """`y = <x, w> + noise`: normal x and w of 10 numbers, noise of a half; drawn from seed 0."""

    SIZES = {"train": 4000, "calibration": 200, "query": 200}  # noqa: RUF012
    TEXT = "A linear model with normal inputs and noise: 4,000 train, 200 calibration, 200 query."
    LABEL = tfds.features.Tensor(shape=(), dtype=np.float32)
    COLUMN = "features"
    FEATURE = tfds.features.Tensor(shape=(10,), dtype=np.float32)

    strata = staticmethod(_by_rank)

    @staticmethod
    def arrays() -> tuple[np.ndarray, np.ndarray]:
        """Rows `[4400, 10]` and numbers `[4400]`, float32."""
        rng = np.random.default_rng(0)
        rows, weights = rng.normal(size=(4400, 10)), rng.normal(size=10) / np.sqrt(10)
        labels = rows @ weights + 0.5 * rng.normal(size=4400)
        return rows.astype(np.float32), labels.astype(np.float32)


# Top, upper left, upper right, middle, lower left, lower right, bottom.
_SEGMENTS = ("1110111", "0010010", "1011101", "1011011", "0111010", "1101011", "1101111",
             "1010010", "1111111", "1111011")  # fmt: skip


class DigitSegments(Digits8x8):
    """The 8x8 digits, each with the seven segments that a display lights for it: seven labels."""

    TEXT = "1,797 8x8 digits (scikit-learn) with seven labels each, split alike."
    LABEL = tfds.features.Tensor(shape=(7,), dtype=np.bool_)

    @staticmethod
    def strata(labels: np.ndarray) -> np.ndarray:
        """The digit, as the number that its segments spell: no two are the same."""
        return np.unique(labels @ (1 << np.arange(7)), return_inverse=True)[1]

    @staticmethod
    def arrays() -> tuple[np.ndarray, np.ndarray]:
        """Images `[1797, 8, 8]` uint8 and segments `[1797, 7]` bool."""
        images, digits = Digits8x8.arrays()
        table = np.array([[mark == "1" for mark in marks] for marks in _SEGMENTS])
        return images, table[digits]
