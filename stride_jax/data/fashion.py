"""FashionMNIST from Debian's package `dataset-fashion-mnist` as a TFDS builder."""

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from stride_jax.data.builders import Packaged, Row

PACKAGE = "dataset-fashion-mnist"
"""Name of the Debian package."""

PLACES = (
    Path("data/usr/share/datasets/fashion-mnist"),
    Path("/usr/share/datasets/fashion-mnist"),
)
"""Where `make data` unpacks the files, under the current folder; where Debian installs them."""

SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"
    ),
    "train-labels-idx1-ubyte.gz": (
        "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"
    ),
}
"""Hash of each file of version 0.0~git20200523; training files come first, then test files."""


def find_folder() -> Path:
    """The first of `PLACES` that is there.

    Raises:
      ValueError: none is there; the message names the package and `make data`.
    """
    for place in PLACES:
        if place.is_dir():
            return place
    raise ValueError(
        f"FashionMNIST is in neither {PLACES[0]} under the current folder nor {PLACES[1]}: run "
        f"`make data`, which unpacks Debian's package {PACKAGE}, or install that package"
    )


def read_idx(path: Path) -> np.ndarray:
    """One file of the package as an array.

    Args:
      path: a gzip-compressed idx file of bytes, named as in `SHA256`.

    Returns:
      Images `[N, 28, 28]` or labels `[N]`, uint8.

    Raises:
      ValueError: the file is missing, or is not the package's.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: run `make data`, or install {PACKAGE} again")
    packed = path.read_bytes()
    digest = hashlib.sha256(packed).hexdigest()
    if digest != SHA256[path.name]:
        raise ValueError(
            f"{path} is not the file of Debian's package {PACKAGE}: its sha256 is {digest}, not "
            f"{SHA256[path.name]}; run `make data`, or install the package again"
        )
    # The header is a magic number, whose last byte counts the axes, and the length of each axis.
    raw = gzip.decompress(packed)
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


class FashionMnist50k(Packaged):
    """70,000 FashionMNIST images: 50,000 + 10,000 of the training set, and the test set."""

    SIZES = {"train": 50_000, "calibration": 10_000, "query": 10_000}  # noqa: RUF012
    TEXT = (
        "FashionMNIST (Debian's dataset-fashion-mnist): the first 50,000 training images are "
        "train, the last 10,000 calibration; the 10,000 test images are query."
    )
    FEATURE = tfds.features.Image(shape=(28, 28, 1))

    @staticmethod
    def arrays() -> tuple[np.ndarray, np.ndarray]:
        """Images `[70000, 28, 28]` uint8, those of the test set last."""
        folder = find_folder()
        files = [read_idx(folder / name) for name in SHA256]
        return np.concatenate(files[::2]), np.concatenate(files[1::2])

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Row]]:
        # Consecutive rows, not a draw: the published test set stays apart, as others report on it.
        images, labels = self.arrays()
        ends = np.cumsum([*self.SIZES.values()])
        return {
            name: self._rows(images, labels, np.arange(end - size, end))
            for (name, size), end in zip(self.SIZES.items(), ends, strict=True)
        }
