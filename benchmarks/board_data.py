"""Data sets of boards that packages carry: speech, mail, letters and small photographs.

    python -m benchmarks.board_data --out=data/boards

| file | from | rows |
|---|---|---|
| `parkinsons.npz` | `pd_speech` of Debian's r-cran-modeldata | 252 of 751 numbers, 2 classes |
| `spam.npz` | `spam` of Debian's r-cran-kernlab | 4,601 of 57 numbers, 2 classes |
| `letters.npz` | `LetterRecognition` of Debian's r-cran-mlbench | 20,000 of 16, 26 classes |
| `cifar10_test.npz` | source package of `bigbench` 1.0.0 (358 MB), as text | 10,000 images |

Packages are unpacked, not installed, and R's files are read by `rdata` (`make boards-data` installs
it). CIFAR-10's are the 10,000 images of its test set; its package asks not to be trained on by
chance: nothing of it belongs into the repository.
"""

import argparse
import lzma
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.packages import bigbench, debian
from stride_jax.data.boards import SHA256, digest
from stride_jax.runtime.files import write_arrays

_CIFAR = "/cifar10_classification/hex/task.json"


def _unpacked(package: str, home: pathlib.Path) -> pathlib.Path:
    """The folder of an R package, fetched if it is not there."""
    return debian(package, home) / "usr/lib/R/site-library" / package.removeprefix("r-cran-")


def _quietly(read: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about encodings of names, which are ASCII
        return read()


def _table(home: pathlib.Path, package: str, name: str) -> Any:
    """A data frame of an R package's `data/<name>.rda`."""
    import rdata  # pyright: ignore[reportMissingImports]

    path = _unpacked(package, home) / "data" / f"{name}.rda"
    return _quietly(lambda: rdata.read_rda(path))[name]


def parkinsons(home: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Speakers `[252, 751]` float32, and whether each is ill. R's lazy-load format: an index, and
    one file of compressed pieces, each after its size (4 bytes) and kind (`Z`: raw LZMA2)."""
    import rdata  # pyright: ignore[reportMissingImports]

    folder = _unpacked("r-cran-modeldata", home) / "data"
    index = _quietly(lambda: rdata.read_rds(folder / "Rdata.rdx"))
    start, size = (int(v) for v in index["variables"]["pd_speech"])
    piece = (folder / "Rdata.rdb").read_bytes()[start : start + size]
    if piece[4:5] != b"Z":
        raise ValueError(f"{folder}/Rdata.rdb holds kind {piece[4:5]!r}, not b'Z': another version")
    unpacked = lzma.decompress(
        piece[5:], format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}]
    )
    frame = _quietly(lambda: rdata.conversion.convert(rdata.parser.parse_data(unpacked)))
    labels = frame.pop("class").astype(str).to_numpy()
    return frame.to_numpy(np.float32), np.unique(labels, return_inverse=True)[1]


def spam(home: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies of words `[4601, 57]` float32, and whether a mail is spam."""
    frame = _table(home, "r-cran-kernlab", "spam")
    labels = frame.pop("type").astype(str).to_numpy()
    return frame.to_numpy(np.float32), (labels == "spam").astype(np.int64)


def letters(home: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Moments of drawn letters `[20000, 16]` float32, and which letter each is."""
    frame = _table(home, "r-cran-mlbench", "LetterRecognition")
    labels = frame.pop("lettr").astype(str).to_numpy()
    return frame.to_numpy(np.float32), np.unique(labels, return_inverse=True)[1]


def cifar10_test(home: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Images `[10000, 32, 32, 3]` uint8, and their classes in alphabetical order."""
    [(_, task)] = bigbench(home, lambda name: name.endswith(_CIFAR))
    examples = task["examples"]
    pixels = [bytes.fromhex(one["input"].replace("#", "").replace("\n", "")) for one in examples]
    images = np.stack([np.frombuffer(p, np.uint8).reshape(32, 32, 3) for p in pixels])
    labels = [max(one["target_scores"], key=one["target_scores"].get) for one in examples]
    return images, np.unique(labels, return_inverse=True)[1]


def main() -> None:
    """Fetch what is missing, and write a file of each."""
    parser = argparse.ArgumentParser(description="Write the data sets of boards.")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    out = parser.parse_args().out
    for make in (parkinsons, spam, letters, cifar10_test):
        path = out / f"{make.__name__}.npz"
        if path.exists():
            continue
        inputs, labels = make(out / "packages")
        found = digest(inputs, labels)
        if found != SHA256[make.__name__]:
            raise ValueError(f"{make.__name__} has sha256 {found}, not {SHA256[make.__name__]}")
        write_arrays(path, inputs=inputs, labels=labels)
        print(f"written: {path}, {len(labels)} rows")


if __name__ == "__main__":
    main()
