"""The index: what is stored of a training set, its settings, and its file.

K small matrices over a shared basis per site; with them, the example ids, whose hashes give the
membership. The matrices do not grow with the training set.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax import operators as ops
from stride_jax.runtime.files import UnreadableFileError, plain, read_arrays, write_arrays
from stride_jax.runtime.settings import build
from stride_jax.settings import IndexSettings
from stride_jax.version import __version__

FORMAT = 2
"""Version of the file. 1, before versions were written, held other settings and no moments."""

_META = ("format", "train_ids", "residual_N", "settings", "model", "version")


@dataclasses.dataclass(frozen=True, repr=False)
class Index:
    """What is stored of a training set: operators, ids and settings.

    Attributes:
      operators: `{site: basis and K steering matrices}`.
      train_ids: `[N]` strings; with the design's seed they give the membership.
      residual_N: float32 `||e_i||` of the training examples (`operators.accumulate`).
      settings: what made it, the chosen taps named.
      moments: `{site: sums over the training set}`, which `append` and `direct` need; None where
        they were not asked for.
      model: fingerprint of the parameters it was made with; empty where nobody knows.
    """

    operators: dict[str, ops.Operators]
    train_ids: np.ndarray
    residual_N: np.ndarray
    settings: IndexSettings
    moments: dict[str, ops.Moments] | None = None
    model: str = ""

    def __repr__(self) -> str:
        design, taps = self.settings.design, ", ".join(self.settings.taps)
        return (
            f"Index({len(self.train_ids)} training examples, K={design.num_subsets}, "
            f"d={design.degree}, taps: {taps}, sites: {', '.join(self.operators)}, "
            f"{self.nbytes / 2**20:.1f} MiB{', moments' if self.moments else ''})"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of what a query is measured with; does not depend on N, as ids do."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.operators))

    @property
    def signs_C(self) -> jax.Array | None:
        """The signs of the logit site's folding, if it has one."""
        return self.operators["logit"].signs_C if "logit" in self.operators else None

    def save(self, path: str | os.PathLike[str], *, moments: bool = True) -> None:
        """Write the index as one `.npz`, atomically.

        Args:
          path: the file.
          moments: whether the sums that `append` and `direct` need are written, if there are any.
        """
        arrays = to_arrays(self.operators)
        for site, sums in (self.moments or {}).items() if moments else ():
            arrays |= {f"{site}:moments:{name}": v for name, v in _moment_arrays(sums).items()}
        write_arrays(
            path,
            **arrays,
            format=FORMAT,
            version=__version__,
            model=self.model,
            train_ids=self.train_ids,
            residual_N=self.residual_N,
            settings=json.dumps(plain(self.settings)),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Index":
        """Read an index back.

        Raises:
          UnreadableFileError: torn, not written by `save`, or of another version of the format.
        """
        arrays = read_arrays(path)
        if "settings" in arrays and "train_ids" in arrays and "format" not in arrays:
            arrays["format"] = np.array(1)
        if missing := set(_META) - set(arrays) - {"version", "model"}:
            raise UnreadableFileError(
                f"{path} lacks {sorted(missing)}: it was not written by Index.save"
            )
        meta = {name: arrays.pop(name) for name in _META if name in arrays}
        if (version := str(meta["format"])) != str(FORMAT):
            writer = meta.get("version", "an earlier version")
            raise UnreadableFileError(
                f"{path} has format {version}, and this version of stride_jax ({__version__}) "
                f"reads {FORMAT}: fit the index again, or read it with stride_jax {writer}"
            )
        try:
            settings = build(IndexSettings, json.loads(str(meta["settings"])), "index")
            operators, moments = from_arrays(arrays), _moments_from(arrays)
        except (KeyError, ValueError) as error:
            raise UnreadableFileError(f"{path} is no whole index ({error})") from error
        return cls(
            operators, meta["train_ids"], meta["residual_N"], settings, moments,
            str(meta.get("model", "")),
        )  # fmt: skip


def by_subset(name: str) -> bool:
    """Whether an array of `to_arrays` has a row for each subset."""
    return name.partition(":")[2] in ("a", "size")


def to_arrays(operators: dict[str, ops.Operators]) -> dict[str, Any]:
    """Operators as named arrays: `site:a`, `site:size`, `site:mean:tap`, …"""
    arrays: dict[str, Any] = {}
    for site, own in operators.items():
        arrays |= {f"{site}:a": own.a_KxRxO, f"{site}:size": own.size_K}
        if own.signs_C is not None:
            arrays[f"{site}:signs"] = own.signs_C
        for part in ("mean", "scale", "weights"):
            for name, value in getattr(own.basis, part).items():
                arrays[f"{site}:{part}:{name}"] = value
    return arrays


def from_arrays(arrays: Mapping[str, Any]) -> dict[str, ops.Operators]:
    """The inverse of `to_arrays`; other arrays are ignored."""
    split = {tuple(name.split(":", 2)): value for name, value in arrays.items()}

    def part(site: str, kind: str) -> dict[str, jax.Array]:
        return {k[2]: jnp.asarray(v) for k, v in split.items() if k[:2] == (site, kind)}

    return {
        site: ops.Operators(
            ops.Basis(part(site, "mean"), part(site, "scale"), part(site, "weights")),
            jnp.asarray(split[site, "a"]),
            jnp.asarray(split[site, "size"]),
            None if (site, "signs") not in split else jnp.asarray(split[site, "signs"]),
        )
        for site in dict.fromkeys(key[0] for key in split)
    }


def _moment_arrays(moments: ops.Moments) -> dict[str, Any]:
    """Sums as named arrays: `gradients_KxRxO:0`, and `:1` its compensation."""
    return {
        f"{field.name}:{i}": v
        for field in dataclasses.fields(moments)
        for i, v in enumerate(getattr(moments, field.name) or ())
    }


def _moments_from(arrays: Mapping[str, Any]) -> dict[str, ops.Moments] | None:
    """The inverse of `_moment_arrays`, by site."""
    sites: dict[str, dict[str, Any]] = {}
    for name, value in arrays.items():
        site, kind, rest = (*name.split(":", 2), "", "")[:3]
        if kind == "moments":
            sites.setdefault(site, {})[rest] = jnp.asarray(value)
    fields = [field.name for field in dataclasses.fields(ops.Moments)]

    def pair(own: dict[str, Any], name: str) -> Any:
        return (own[f"{name}:0"], own[f"{name}:1"]) if f"{name}:0" in own else None

    return {
        site: ops.Moments(**{name: pair(own, name) for name in fields})
        for site, own in sites.items()
    } or None
