"""Synthetic gradients for `growth`: a mixture of directions, sizes with a heavy tail.

Letters of its own: Z numbers of a gradient, C centres of the mixture.
"""

import pathlib
from collections.abc import Iterator

import numpy as np

SEED = 0
WIDTH = 32
SPREAD = 1.5
"""Standard deviation of the sizes' logarithms, where none is asked for."""

_CHUNK = 100_000


class Mixture:
    """Directions around 2,000 centres in 100 families, of very different frequency."""

    def __init__(self) -> None:
        rng = np.random.default_rng(SEED)
        families = _unit(rng.normal(size=(100, WIDTH)))
        around = rng.normal(size=(2000, WIDTH)) * 0.8 / WIDTH**0.5
        self.centre_CxZ = _unit(families[rng.integers(0, 100, 2000)] + around)
        self.share_C = 1 / (10 + rng.permutation(2000))
        self.share_C /= self.share_C.sum()

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Unit vectors, `[count, Z]` float32."""
        centre = self.centre_CxZ[rng.choice(len(self.share_C), count, p=self.share_C)]
        noise = rng.normal(size=(count, WIDTH)) * 0.6 / WIDTH**0.5
        return _unit(centre + noise).astype(np.float32)


def _unit(z_BxZ: np.ndarray) -> np.ndarray:
    return z_BxZ / np.linalg.norm(z_BxZ, axis=1, keepdims=True)


def gradients(path: pathlib.Path, count: int, spread: float) -> np.memmap:
    """Gradients in a file, written once, chunk by chunk: a shorter file is the start of a longer.

    Sizes are log-normal, whatever the direction; `spread` is the σ of their logarithm.
    """
    shape = (count, WIDTH)
    if not path.exists() or path.stat().st_size < 4 * count * WIDTH:
        mixture, part = Mixture(), path.with_suffix(".part")
        with part.open("wb") as file:
            for chunk, first in enumerate(range(0, count, _CHUNK)):
                rng = np.random.default_rng((SEED, chunk))
                g_BxZ = mixture.draw(_CHUNK, rng) * rng.lognormal(0, spread, (_CHUNK, 1))
                g_BxZ[: count - first].astype(np.float32).tofile(file)
        part.rename(path)
    return np.memmap(path, np.float32, "r", shape=shape)


def chunks(g_NxZ: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """First row and rows of each chunk."""
    for first in range(0, len(g_NxZ), _CHUNK):
        yield first, np.asarray(g_NxZ[first : first + _CHUNK])
