"""Which subsets an example belongs to, and products with M that never build M.

`hash`, as published: every example joins d of K subsets at random, so the membership matrix
`M in {0,1}^{K x N}` is the adjacency of a left-d-regular bipartite graph. Membership is a pure
function of (seed, example id): it survives reordering, and examples appended later move no others.

`clusters`: every example joins the one subset of the K whose members' gradients point its way
(`operators.content`); then no example needs recovering from sums.

Letters of its own: V rows that are gathered, x any further axes.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.runtime.rows import Rows
from stride_jax.runtime.settings import check_types

# Rows that one fused loop adds up.
_UNROLL = 32
_IN_BOUNDS = "promise_in_bounds"
# Rows of a membership that are drawn together; examples per subset of which none is ever empty.
_DRAWN, _CROWDED = 1024, 100


@dataclasses.dataclass(frozen=True)
class Design:
    """Who joins which subsets (docs/method.md §2).

    Attributes:
      num_subsets: K, subsets = operators = measurements per query.
      degree: d, subsets each example belongs to by `hash`; with `clusters` it is one.
      seed: random seed of the draw, or of the first centroids.
      kind: `hash`, a left-d-regular random design; `clusters`, subsets that follow content; `auto`,
        clusters for closed-form operators of examples of one token, where there are two examples or
        more for each, else hash: a sequence's gradient, a sum over its tokens, has no direction
        that others share (docs/lab.md).

    Raises:
      ValueError: an unknown kind, d > K, or either below 1.
    """

    num_subsets: int = 1000
    degree: int = 10
    seed: int = 0
    kind: str = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        if self.num_subsets < 1 or self.degree < 1:
            raise ValueError(
                f"num_subsets={self.num_subsets}, degree={self.degree}: both must be at least 1"
            )
        if self.degree > self.num_subsets:
            raise ValueError(
                f"degree={self.degree} exceeds num_subsets={self.num_subsets}: an example can't "
                "belong to more subsets than there are; lower the degree"
            )
        if self.kind not in ("auto", "hash", "clusters"):
            raise ValueError(f"kind={self.kind!r}: use 'auto', 'hash' or 'clusters'")

    def resolved(self, shape: tuple[int, ...], fit: str) -> "Design":
        """The same with its kind decided.

        Args:
          shape: of the labels, `(N,)` or `(N, T)`.
          fit: how operators are fitted, `closed_form` or `joint`.

        Raises:
          ValueError: trained operators of clusters.

        >>> Design(num_subsets=20).resolved((100,), "closed_form").kind
        'clusters'
        """
        if self.kind == "auto":
            one_token = math.prod(shape[1:]) == 1
            follows = fit == "closed_form" and one_token and shape[0] >= 2 * self.num_subsets
            return dataclasses.replace(self, kind="clusters" if follows else "hash")
        if self.kind == "clusters" and fit != "closed_form":
            raise ValueError(
                f"kind='clusters' with fit={fit!r}: clusters are those of the closed form's "
                "gradients; use kind='hash', or fit='closed_form'"
            )
        return self


def id_words(ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Hash example ids to two 32-bit words each, `[N, 2]` uint32.

    >>> id_words(["a", "b"]).shape
    (2, 2)
    """
    names = ids.tolist() if isinstance(ids, np.ndarray) else ids  # twice as fast to walk along
    digests = b"".join(hashlib.blake2b(str(i).encode(), digest_size=8).digest() for i in names)
    return np.frombuffer(digests, "<u4").reshape(-1, 2)


@functools.partial(jax.jit, static_argnames="design")
def _draw(words_Nx2: jax.Array, design: Design) -> jax.Array:
    key = jax.random.key(design.seed, impl="threefry2x32")

    def one(words_2: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, words_2[0]), words_2[1])
        bits = jax.random.bits(own, (design.degree,), jnp.uint32)
        chosen = jnp.full(design.degree, -1, jnp.int32)
        # Floyd's sampling: d distinct subsets, every d-set equally likely, in d steps.
        for i in range(design.degree):
            top = design.num_subsets - design.degree + i
            draw = (bits[i] % jnp.uint32(top + 1)).astype(jnp.int32)
            chosen = chosen.at[i].set(jnp.where(jnp.any(chosen == draw), top, draw))
        return jnp.sort(chosen)

    return jax.vmap(one)(words_Nx2)


def membership(design: Design, ids: Sequence[str] | np.ndarray) -> jax.Array:
    """The d subsets of every example by hash: M by its columns.

    Args:
      design: K, d and seed.
      ids: N example ids.

    Returns:
      `[N, d]` int32, each row d distinct subsets in ascending order. A row depends on the seed and
      its own id alone.

    Raises:
      ValueError: repeated ids, d = K, K > N d, or a subset that no example joined.

    >>> membership(Design(num_subsets=3, degree=2), ["a", "b", "c"]).shape
    (3, 2)
    """
    if len(set(map(str, ids))) < len(ids):
        raise ValueError(
            f"{len(ids) - len(set(map(str, ids)))} of {len(ids)} example ids are repeated; "
            "ids must be distinct (content_ids makes them so)"
        )
    _refuse_sizes(design, len(ids))
    subsets_Nxd = _draw(jnp.asarray(id_words(ids)), design)
    _refuse_empty(design, np.asarray(subsets_Nxd))
    return subsets_Nxd


def _refuse_sizes(design: Design, n: int) -> None:
    """Refuse designs that tell no examples apart, or have too many subsets."""
    k, d = design.num_subsets, design.degree
    if d == k:
        raise ValueError(
            f"degree={d} = num_subsets={k}: every example would be in every subset, so no "
            "measurement could tell them apart; lower the degree"
        )
    if k > n * d:
        raise ValueError(
            f"num_subsets={k} exceeds num_train * degree = {n} * {d} = {n * d}: some subsets would "
            "be empty; lower num_subsets or raise the degree"
        )


def _refuse_empty(design: Design, subsets_Nxd: np.ndarray) -> None:
    """Refuse a draw that leaves a subset without examples."""
    k, (n, d) = design.num_subsets, subsets_Nxd.shape
    sizes = np.bincount(subsets_Nxd.reshape(-1), minlength=k)
    if (empty := int((sizes == 0).sum())) > 0:
        raise ValueError(
            f"{empty} of {k} subsets are empty ({n} examples in {d} subsets each, {n * d / k:.1f} "
            f"per subset on average); use num_subsets <= {max(1, n * d // 10)}, or another seed"
        )


class Membership(Rows):
    """The membership of examples whose names are read as they are asked for, `[N, d]`.

    Args:
      design: K, d and seed.
      names: keys of the examples, or ids where each stands alone.

    Raises:
      ValueError: as `membership`, but for empty subsets, which are refused where they are likely.
    """

    def __init__(self, design: Design, names: Rows) -> None:
        _refuse_sizes(design, len(names))
        self._design, self._names = design, names
        self.shape, self.dtype = (len(names), design.degree), np.dtype(np.int32)
        if len(names) * design.degree < _CROWDED * design.num_subsets:
            _refuse_empty(design, self[:])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The subsets of some examples."""
        words = id_words(self._names[rows])
        # Few sizes, so that few programs are compiled.
        size = -(-len(words) // _DRAWN) * _DRAWN
        drawn = _draw(jnp.asarray(np.resize(words, (size, 2))), self._design)
        return np.asarray(drawn)[: len(words)]


def known_membership(
    design: Design, ids: Sequence[str] | np.ndarray | Rows, keys: np.ndarray | None = None
) -> jax.Array | Membership | None:
    """The membership where it is known before any example is read; None where content decides.

    Args:
      design: its kind decided.
      ids: N example ids.
      keys: of examples that join the same subsets; None where each stands alone.

    Raises:
      ValueError: as `membership`, or more clusters than examples.
    """
    if design.kind == "hash":
        if isinstance(ids, Rows):
            return Membership(design, keys if isinstance(keys, Rows) else ids)
        if keys is None:
            return membership(design, ids)
        names, group_N = np.unique(keys, return_inverse=True)
        return membership(design, names)[group_N]
    if design.num_subsets > len(ids):
        raise ValueError(
            f"num_subsets={design.num_subsets} clusters of {len(ids)} examples: some would be "
            "empty; lower num_subsets"
        )
    return None


def subset_sum(subsets_Nxd: jax.Array, values: jax.Array, num_subsets: int) -> jax.Array:
    """`M v`: sum of the members' values.

    Args:
      subsets_Nxd: membership.
      values: `[N, ...]`.
      num_subsets: K.

    Returns:
      `[K, ...]`, by d segment sums; no array larger than `values` or the result is allocated.
    """
    out = jnp.zeros((num_subsets, *values.shape[1:]), values.dtype)
    for column in range(subsets_Nxd.shape[1]):
        out += jax.ops.segment_sum(values, subsets_Nxd[:, column], num_subsets)
    return out


def gather_add(values: jax.Array, index_dx: jax.Array) -> jax.Array:
    """`Σ_j values[index[j]]`: sums of d rows each, for any shape of sums.

    With the memberships as the index it is `Mᵀ r`.

    Args:
      values: `[V, …]`; where sums are of unequal length, its last row is zero, for padding.
      index_dx: `[d, …]` integers in 0 … V − 1; they are not checked.
    """
    if index_dx.shape[0] > _UNROLL:
        parts = index_dx.shape[0] // _UNROLL
        head = index_dx[: parts * _UNROLL].reshape(parts, _UNROLL, *index_dx.shape[1:])

        def add(total: jax.Array, some: jax.Array) -> tuple[jax.Array, None]:
            return total + gather_add(values, some), None

        total, _ = jax.lax.scan(add, gather_add(values, head[0]), head[1:])
        rest = index_dx[parts * _UNROLL :]
        return total + gather_add(values, rest) if rest.shape[0] else total
    # Unrolled, XLA fuses the d gathers into one loop that runs along the queries; as one gather
    # and a sum it was a hundred times slower on CPU.
    total = values.at[index_dx[0]].get(mode=_IN_BOUNDS)
    for j in range(1, index_dx.shape[0]):
        total = total + values.at[index_dx[j]].get(mode=_IN_BOUNDS)
    return total


def members(subsets_Nxd: jax.Array | np.ndarray, num_subsets: int) -> tuple[np.ndarray, np.ndarray]:
    """M by its rows: the examples of every subset, padded to the largest.

    Returns:
      `(rows_KxS, mask_KxS)`: int32 rows of the training set, and float32 1 where real. Padding
      points at row 0.
    """
    flat = np.asarray(subsets_Nxd)
    order = np.argsort(flat.reshape(-1), kind="stable")
    owner = flat.reshape(-1)[order]
    sizes = np.bincount(owner, minlength=num_subsets)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = np.zeros((num_subsets, int(sizes.max())), np.int32)
    mask = np.zeros(rows.shape, np.float32)
    rows[owner, place] = order // flat.shape[1]
    mask[owner, place] = 1
    return rows, mask


def subsets_needed(num_train: int, sparsity: int, constant: float = 1.6) -> int:
    """Number of subsets that a planned sparsity needs: `K = c ν log(N / ν)` (docs/method.md §2).

    Args:
      num_train: N.
      sparsity: ν, influential examples per query.
      constant: c; the published K = 1000 at ν = 50, N = 11.4 M is 1.6 times ν log(N / ν) = 617.

    Raises:
      ValueError: sparsity outside 1 … N.

    >>> subsets_needed(11_400_000, 50)
    987
    """
    if not 1 <= sparsity <= num_train:
        raise ValueError(f"sparsity={sparsity} must lie between 1 and num_train={num_train}")
    return max(1, math.ceil(constant * sparsity * math.log(num_train / sparsity)))
