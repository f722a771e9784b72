"""Data sets of leaderboards, as `make boards-data` leaves them, as TFDS builders."""

import hashlib
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from stride_jax.data.builders import Packaged
from stride_jax.runtime.files import read_arrays

FOLDER = Path("data/boards")
"""Where `make boards-data` writes them, under the current folder."""

SHA256 = {
    "parkinsons": "f3afde019acf852417ad3f6ece074daf93707751d89dc4ef0e1a9211267cb8aa",
    "spam": "6a68b6255c944a31f7b8142ea539a3141a85f49d5cd7cc160d558b1b4f8df26b",
    "letters": "2cb171821ebb07967c0a1f94225cfc1f35dcdcd73e9fd94d3a744cb9d716dc39",
    "cifar10_test": "c562aadc832e5fa964125cd271a2d4147420a8ec1db3086bc3230f61120c00be",
}
"""Hash of each one's inputs and labels."""


def digest(inputs: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of the arrays' bytes, labels as int64.

    >>> digest(np.zeros((1, 2), np.float32), np.array([1]))[:8]
    '9d34149f'
    """
    together = hashlib.sha256(np.ascontiguousarray(inputs).tobytes())
    together.update(np.ascontiguousarray(labels, np.int64).tobytes())
    return together.hexdigest()


def _read(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels of a file.

    Raises:
      ValueError: it is missing, or another one; the message names `make boards-data`.
    """
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        raise ValueError(f"{path} is not under the current folder: run `make boards-data`")
    stored = read_arrays(path)
    if (found := digest(stored["inputs"], stored["labels"])) != SHA256[name]:
        raise ValueError(
            f"{path} has sha256 {found}, not {SHA256[name]}: remove it, and run `make boards-data`"
        )
    return stored["inputs"], stored["labels"]


class Parkinsons(Packaged):
    """252 speakers, 751 measurements of each one's voice, ill or not (modeldata's `pd_speech`)."""

    SIZES = {"train": 176, "calibration": 26, "query": 50}  # noqa: RUF012
    TEXT = "Parkinson's speech (Debian's r-cran-modeldata): 176 train, 26 calibration, 50 query."
    CLASSES = 2
    COLUMN = "features"
    FEATURE = tfds.features.Tensor(shape=(751,), dtype=np.float32)

    @staticmethod
    def arrays() -> tuple[np.ndarray, np.ndarray]:
        """Rows `[252, 751]` float32."""
        return _read("parkinsons")


class Spam(Packaged):
    """4,601 mails, frequencies of 57 words and signs, spam or not (kernlab's `spam`)."""

    SIZES = {"train": 3_800, "calibration": 400, "query": 400}  # noqa: RUF012
    TEXT = "Spam (Debian's r-cran-kernlab): 3,800 train, 400 calibration, 400 query, stratified."
    CLASSES = 2
    COLUMN = "features"
    FEATURE = tfds.features.Tensor(shape=(57,), dtype=np.float32)

    @staticmethod
    def arrays() -> tuple[np.ndarray, np.ndarray]:
        """Rows `[4601, 57]` float32."""
        return _read("spam")


class Letters(Packaged):
    """20,000 capital letters by 16 moments of their pixels (mlbench's `LetterRecognition`)."""

    SIZES = {"train": 5_000, "calibration": 500, "query": 400}  # noqa: RUF012
    TEXT = "Letters (Debian's r-cran-mlbench): 5,000 train, 500 calibration, 400 query of 20,000."
    CLASSES = 26
    COLUMN = "features"
    FEATURE = tfds.features.Tensor(shape=(16,), dtype=np.float32)

    @staticmethod
    def arrays() -> tuple[np.ndarray, np.ndarray]:
        """Rows `[20000, 16]` float32."""
        return _read("letters")


class Cifar10Test(Packaged):
    """CIFAR-10's 10,000 test images, which bigbench carries as text, split anew."""

    SIZES = {"train": 9_000, "calibration": 500, "query": 500}  # noqa: RUF012
    TEXT = "CIFAR-10's test set (bigbench): 9,000 train, 500 calibration, 500 query, stratified."
    FEATURE = tfds.features.Image(shape=(32, 32, 3))

    @staticmethod
    def arrays() -> tuple[np.ndarray, np.ndarray]:
        """Images `[10000, 32, 32, 3]` uint8."""
        return _read("cifar10_test")
