"""The index: what is kept of a training set, its settings, and its file.

K small matrices over a shared basis a site; with them, the example ids, whose hashes give the
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
from stride_jax.design import Design
from stride_jax.measure import MeasureSettings
from stride_jax.recovery import LassoSettings
from stride_jax.runtime.files import UnreadableFileError, plain, read_arrays, write_arrays
from stride_jax.runtime.settings import build


@dataclasses.dataclass(frozen=True)
class StrideSettings:
    """Every choice of the method; the defaults suit a classifier of a few thousand examples.

    Attributes:
      design: K, d, seed.
      taps: activations the basis sees; none named: the one whose variation moves the logits most
        (`operators.tap_energies`), or all of them where the model has no suffix form.
      basis: features of the taps.
      output_rank: O, buckets that the logits are folded into where the model has more classes than
        that (`operators.outputs`); 0 steers every logit by itself.
      sites: where operators act, `logit` or names of taps (residual sites). Each is a block of
        its own; measurements add up.
      fit: `closed_form` solves for the operators, `joint` trains them with the published losses.
      joint: settings of training.
      closed_form: settings of the closed form.
      measure: reading a query.
      prior: p of the Lasso's penalty weights `||e_i||^-p`, `e_i = e_y − p` on the training example:
        one that the model has no doubt about can hardly matter, and is made to pay for it. 0 is
        the published Lasso.
      lasso: recovery.
      chunk_bytes: what the model says about examples that are looked at together, on all devices.
    """

    design: Design = Design()
    taps: tuple[str, ...] = ()
    basis: ops.BasisSettings = ops.BasisSettings()
    output_rank: int = 256
    sites: tuple[str, ...] = ("logit",)
    fit: str = "closed_form"
    joint: ops.JointSettings = ops.JointSettings()
    closed_form: ops.ClosedFormSettings = ops.ClosedFormSettings()
    measure: MeasureSettings = MeasureSettings()
    prior: float = 0.25
    lasso: LassoSettings = LassoSettings(lambda_fraction=0.02, relative_gap=1e-3)
    chunk_bytes: int = 2**29

    def __post_init__(self) -> None:
        if self.fit not in ("closed_form", "joint"):
            raise ValueError(f"fit={self.fit!r}: use 'closed_form' or 'joint'")
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise ValueError(f"sites={self.sites}: name at least one, each once")
        if self.output_rank < 0 or self.chunk_bytes < 1:
            raise ValueError(
                f"output_rank={self.output_rank} can't be negative, and chunk_bytes="
                f"{self.chunk_bytes} must be positive"
            )
        if not 0 <= self.prior <= 2:
            raise ValueError(f"prior={self.prior} must lie in [0, 2]")


@dataclasses.dataclass(frozen=True)
class Index:
    """What is kept of a training set: operators, ids and settings.

    Attributes:
      operators: `{site: basis and K steering matrices}`.
      train_ids: `[N]` strings; with the design's seed they give the membership.
      residual_N: float32 `||e_i||` of the training examples (`operators.accumulate`).
      settings: what made it, the taps that were chosen among them.
      moments: `{site: sums over the training set}`, if they were kept: with them the index can be
        appended to.
    """

    operators: dict[str, ops.Operators]
    train_ids: np.ndarray
    residual_N: np.ndarray
    settings: StrideSettings
    moments: dict[str, ops.Moments] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of what a query is measured with; does not depend on N, as ids do."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.operators))


def penalty_weights(residual_N: np.ndarray, settings: StrideSettings) -> np.ndarray | None:
    """Penalty weights of the Lasso, `||e_i||^-p` over their mean, `[N]`; None without a prior.

    >>> penalty_weights(np.array([1.0, 16.0]), StrideSettings(prior=0.25)).tolist()
    [1.3333333333333333, 0.6666666666666666]
    """
    if settings.prior == 0:
        return None
    weights_N = np.maximum(residual_N, 1e-6) ** -settings.prior
    return weights_N / weights_N.mean()


def by_subset(name: str) -> bool:
    """Whether an array of `to_arrays` has a row for each subset."""
    return name.partition(":")[2] in ("a", "size")


def to_arrays(operators: dict[str, ops.Operators]) -> dict[str, Any]:
    """Operators as named arrays: `site:a`, `site:size`, `site:mean:tap`, …"""
    arrays: dict[str, Any] = {}
    for site, found in operators.items():
        arrays |= {f"{site}:a": found.a_KxRxO, f"{site}:size": found.size_K}
        if found.signs_C is not None:
            arrays[f"{site}:signs"] = found.signs_C
        for part in ("mean", "scale", "weights"):
            for name, value in getattr(found.basis, part).items():
                arrays[f"{site}:{part}:{name}"] = value
    return arrays


def from_arrays(arrays: Mapping[str, Any]) -> dict[str, ops.Operators]:
    """The inverse of `to_arrays`."""
    split = {tuple(name.split(":", 2)): jnp.asarray(value) for name, value in arrays.items()}

    def part(site: str, kind: str) -> dict[str, jax.Array]:
        return {key[2]: value for key, value in split.items() if key[:2] == (site, kind)}

    return {
        site: ops.Operators(
            ops.Basis(part(site, "mean"), part(site, "scale"), part(site, "weights")),
            split[site, "a"],
            split[site, "size"],
            split.get((site, "signs")),
        )
        for site in dict.fromkeys(key[0] for key in split)
    }


def save(path: str | os.PathLike[str], index: Index) -> None:
    """Write operators, ids and settings as one `.npz`, atomically; moments are left out."""
    write_arrays(
        path,
        **to_arrays(index.operators),
        train_ids=index.train_ids,
        residual_N=index.residual_N,
        settings=json.dumps(plain(index.settings)),
    )


def load(path: str | os.PathLike[str]) -> Index:
    """Read an index back.

    Raises:
      UnreadableFileError: torn, or not written by `save`.
    """
    arrays = read_arrays(path)
    if missing := {"train_ids", "residual_N", "settings"} - set(arrays):
        raise UnreadableFileError(f"{path} lacks {sorted(missing)}: it is no index of ours")
    ids, residual_N, settings = (
        arrays.pop(name) for name in ("train_ids", "residual_N", "settings")
    )
    built = build(StrideSettings, json.loads(str(settings)))
    return Index(from_arrays(arrays), ids, residual_N, built)
