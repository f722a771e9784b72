"""The index: what is stored of a training set, its settings, and its file.

K small matrices over a shared basis per site, the curvature that solves for a query, and a store of
fixed size of the heaviest examples; with them a few numbers an example: its id, the sizes of its
error and gradient, its cluster. The rest does not grow with the training set.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax import design as designs
from stride_jax import operators as ops
from stride_jax.groups import Groups
from stride_jax.objectives import CROSS_ENTROPY
from stride_jax.operators.fisher import DECAY
from stride_jax.runtime.files import (
    UnreadableFileError,
    first_line,
    plain,
    read_arrays,
    write_arrays,
)
from stride_jax.runtime.settings import build
from stride_jax.settings import IndexSettings
from stride_jax.unit import Unit
from stride_jax.version import __version__

FORMAT = 3
"""Version of the file. 1, before versions were written, held other settings and no moments; 2 no
curvature, and nothing kept."""

_META = ("format", "train_ids", "settings", "model", "version", "unit", "objective")
_LATER = {"version", "model", "unit", "objective"}  # that files may lack
_ROWS = ("residual_N", "norm_N", "cluster_N")


@dataclasses.dataclass(frozen=True, repr=False)
class Index:
    """What is stored of a training set: operators, ids and settings.

    Attributes:
      operators: `{site: basis and K steering matrices}`.
      train_ids: `[N]` strings; with the design's seed they give the membership by hash.
      residual_N: float32 `||e_i||` of the training examples (`operators.Pass`).
      settings: what made it, the chosen taps named.
      norm_N: float32 `||g_i||` of their gradients at the first site.
      cluster_N: int32 subset of each, where content chose it; None where a hash does.
      fisher: `{site: curvature}`; empty where operators were trained.
      kept: `{site: the heaviest tokens}`.
      keys: `[N]` strings, equal for examples that act as one; None where each stands alone.
      content: what `append` assigns new examples with; None where a hash does.
      moments: `{site: sums over the training set}`, which `append` needs; None where they were not
        asked for.
      unit: how scores compare with real effects (`evaluation.measure_unit`); None where nobody
        measured it.
      model: fingerprint of the parameters it was made with; empty where nobody knows.
      groups: operators of the sources that the user named; None where none are. Recovery does not
        read them.
      objective: name of the loss that the model was trained with.
    """

    operators: dict[str, ops.Operators]
    train_ids: np.ndarray
    residual_N: np.ndarray
    settings: IndexSettings
    norm_N: np.ndarray
    cluster_N: np.ndarray | None = None
    fisher: dict[str, ops.Fisher] = dataclasses.field(default_factory=dict)
    kept: dict[str, ops.Kept] = dataclasses.field(default_factory=dict)
    keys: np.ndarray | None = None
    content: ops.Content | None = None
    moments: dict[str, ops.Moments] | None = None
    model: str = ""
    unit: Unit | None = None
    groups: Groups | None = None
    objective: str = CROSS_ENTROPY.name

    def __repr__(self) -> str:
        design, taps = self.settings.design, ", ".join(self.settings.taps)
        joins = f"d={design.degree}" if self.cluster_N is None else "clusters"
        kept = max((len(own) for own in self.kept.values()), default=0)
        named = "" if self.groups is None else f", {len(self.groups)} groups"
        return (
            f"Index({len(self.train_ids)} training examples, K={design.num_subsets}, "
            f"{joins}, taps: {taps}, sites: {', '.join(self.operators)}, {kept} kept{named}, "
            f"{self.nbytes / 2**20:.1f} MiB{', moments' if self.moments else ''})"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of what answers a query: operators, curvature, kept examples and, of those that
        grow with N, the clusters and sizes; ids and what `append` needs aside."""
        groups = {} if self.groups is None else self.groups.operators
        named = [(own.a_KxRxO, own.size_K) for own in groups.values()]  # the basis is the sites'
        parts = (self.operators, named, self.fisher, self.kept, self.norm_N, self.cluster_N)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(parts))

    @property
    def signs_C(self) -> jax.Array | None:
        """The signs of the logit site's folding, if it has one."""
        return self.operators["logit"].signs_C if "logit" in self.operators else None

    @property
    def factor(self) -> float:
        """What scores are multiplied by: the unit where it is known, else 1."""
        return 1.0 if self.unit is None else self.unit.factor

    @functools.cached_property
    def subsets_Nxd(self) -> np.ndarray | designs.Membership:
        """The membership, `[N, d]`; one subset each where content decides.

        Of ids that are read as they are asked for it is drawn as it is asked for.
        """
        if self.cluster_N is not None:
            return self.cluster_N[:, None]
        known = designs.known_membership(self.settings.design, self.train_ids, self.keys)
        return known if isinstance(known, designs.Membership) else np.asarray(known)

    def save(self, path: str | os.PathLike[str], *, moments: bool = True) -> None:
        """Write the index as one `.npz`, atomically.

        Args:
          path: the file.
          moments: whether the sums that `append` needs are written, if there are any.
        """
        arrays = to_arrays(self)
        if self.groups is not None:
            arrays |= self.groups.named()
        if self.keys is not None:
            arrays["keys"] = self.keys
        if self.unit is not None:
            arrays["unit"] = np.array([self.unit.slope, *self.unit.ci95])
        for site, sums in (self.moments or {}).items() if moments else ():
            arrays |= {f"{site}:moments:{name}": v for name, v in _moment_arrays(sums).items()}
        write_arrays(
            path,
            **arrays,
            format=FORMAT,
            version=__version__,
            model=self.model,
            objective=self.objective,
            train_ids=self.train_ids,
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
        if missing := set(_META) - set(arrays) - _LATER:
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
            stored = json.loads(str(meta["settings"]))
            # What an index of before the setting was made with.
            stored.setdefault("closed_form", {}).setdefault("decay", DECAY)
            settings = build(IndexSettings, stored, "index")
            keys = arrays.pop("keys", None)
            names = meta["train_ids"], keys
            index = from_arrays(arrays, names, settings, str(meta.get("model", "")))
            _check_rows(index)
            return dataclasses.replace(
                index,
                moments=_moments_from(arrays),
                unit=_unit_from(meta.get("unit")),
                objective=str(meta.get("objective", CROSS_ENTROPY.name)),
            )
        except Exception as error:  # whole files of others may hold anything under these names
            raise UnreadableFileError(
                f"{path} is no whole index ({first_line(error)}): fit the index again, or copy the "
                "file anew"
            ) from error


def _check_rows(index: Index) -> None:
    """Refuse an index whose examples are not as many everywhere."""
    rows = ("train_ids", "residual_N", "norm_N", "cluster_N", "keys")
    stored = {name: getattr(index, name) for name in rows}
    sizes = {name: np.shape(value) for name, value in stored.items() if value is not None}
    if len(set(sizes.values())) > 1 or len(sizes["train_ids"]) != 1:
        raise ValueError(f"its examples are not as many everywhere: {sizes}")


def _unit_from(stored: np.ndarray | None) -> Unit | None:
    """The unit of a file: slope and interval; a 1 alone was written where nobody measured it."""
    if stored is None or (stored.ndim == 0 and stored == 1):
        return None
    if stored.shape != (3,):
        raise ValueError(
            f"its unit {stored} has no interval: measure it again, with evaluation.measure_unit"
        )
    slope, low, high = stored.tolist()
    return Unit(slope, (low, high))


def _groups_from(arrays: Mapping[str, Any], sites: Mapping[str, ops.Operators]) -> Groups | None:
    """The named groups among arrays, if there are any."""
    if "groups" not in arrays:
        return None
    operators = {
        site: dataclasses.replace(
            own,
            a_KxRxO=jnp.asarray(arrays[f"{site}:groups:a"]),
            size_K=jnp.asarray(arrays[f"{site}:groups:size"]),
        )
        for site, own in sites.items()
    }
    return Groups(arrays["groups"], arrays["group_sizes"], operators)


def by_subset(name: str) -> bool:
    """Whether an array of `to_arrays` has a row for each subset."""
    return name.partition(":")[2] in ("a", "size")


def to_arrays(index: Index) -> dict[str, Any]:
    """An index without moments and names as named arrays: `site:a`, `site:mean:tap`, …"""
    arrays: dict[str, Any] = {name: getattr(index, name) for name in _ROWS}
    for site, own in index.operators.items():
        arrays |= {
            f"{site}:a": own.a_KxRxO,
            f"{site}:size": own.size_K,
            f"{site}:signs": own.signs_C,
        }
        for part in ("mean", "scale", "weights"):
            for name, value in getattr(own.basis, part).items():
                arrays[f"{site}:{part}:{name}"] = value
    stored = {"fisher": index.fisher, "kept": index.kept}
    for kind, by_site in stored.items():
        for site, value in by_site.items():
            arrays |= {f"{site}:{kind}:{name}": v for name, v in _leaves(value).items()}
    for site, own in ({} if index.groups is None else index.groups.operators).items():
        arrays |= {f"{site}:groups:a": own.a_KxRxO, f"{site}:groups:size": own.size_K}
    if index.content is not None:
        arrays |= {f":content:{name}": v for name, v in _leaves(index.content).items()}
    return {name: v for name, v in arrays.items() if v is not None}


def _leaves(value: Any) -> dict[str, Any]:
    """Fields of a dataclass by name, those of a pair as `name:0` and `name:1`."""
    leaves: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        pair = isinstance(own, tuple)
        leaves |= {f"{field.name}:{i}": v for i, v in enumerate(own)} if pair else {field.name: own}
    return leaves


def _from_leaves(kind: type, leaves: Mapping[str, Any]) -> Any:
    """The inverse of `_leaves`."""

    def one(name: str) -> Any:
        if f"{name}:0" in leaves:
            return (jnp.asarray(leaves[f"{name}:0"]), jnp.asarray(leaves[f"{name}:1"]))
        return jnp.asarray(leaves[name]) if name in leaves else None

    return kind(**{field.name: one(field.name) for field in dataclasses.fields(kind)})


def from_arrays(
    arrays: Mapping[str, Any],
    names: tuple[np.ndarray, np.ndarray | None],
    settings: IndexSettings,
    model: str,
) -> Index:
    """The inverse of `to_arrays`; other arrays are ignored.

    Args:
      arrays: by name; with those of `Groups.named`, where the index has groups.
      names: ids and keys of the training examples.
      settings, model: of the index.
    """
    tree: dict[str, dict[str, dict[str, Any]]] = {}
    for name, value in arrays.items():
        site, kind, rest = (*name.split(":", 2), "", "")[:3]
        tree.setdefault(site, {}).setdefault(kind, {})[rest] = value
    content = tree.pop("", {}).get("content")
    rows = {name: tree.pop(name)[""][""] for name in _ROWS if name in tree}
    sites = {name: tree[name] for name in settings.sites}

    def every(kind: str, built: type) -> dict[str, Any]:
        return {s: _from_leaves(built, own[kind]) for s, own in sites.items() if kind in own}

    operators = {site: _operators(own) for site, own in sites.items()}
    return Index(
        operators,
        names[0], np.asarray(rows["residual_N"]), settings, np.asarray(rows["norm_N"]),
        np.asarray(rows["cluster_N"]) if settings.design.kind == "clusters" else None,
        every("fisher", ops.Fisher), every("kept", ops.Kept), names[1],
        None if content is None else _from_leaves(ops.Content, content), None, model,
        groups=_groups_from(arrays, operators),
    )  # fmt: skip


def _operators(kinds: Mapping[str, Mapping[str, Any]]) -> ops.Operators:
    """The operators of one site."""
    mean, scale, weights = (
        {name: jnp.asarray(v) for name, v in kinds[part].items()}
        for part in ("mean", "scale", "weights")
    )
    signs = kinds.get("signs", {}).get("")
    a, size = (jnp.asarray(kinds[name][""]) for name in ("a", "size"))
    basis = ops.Basis(mean, scale, weights)
    return ops.Operators(basis, a, size, None if signs is None else jnp.asarray(signs))


def _moment_arrays(moments: ops.Moments) -> dict[str, Any]:
    """Moments as named arrays: `gradients_KxRxO:0`, and `:1` its compensation."""
    return {name: v for name, v in _leaves(moments).items() if v is not None}


def _moments_from(arrays: Mapping[str, Any]) -> dict[str, ops.Moments] | None:
    """The inverse of `_moment_arrays`, by site."""
    sites: dict[str, dict[str, Any]] = {}
    for name, value in arrays.items():
        site, kind, rest = (*name.split(":", 2), "", "")[:3]
        if kind == "moments":
            sites.setdefault(site, {})[rest] = value
    return {site: _from_leaves(ops.Moments, own) for site, own in sites.items()} or None
