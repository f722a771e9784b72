"""Self-influence: by how much each training example's own loss would rise without it.

    w_ii = Σ_sites <g_i, (F + gamma I)^{-1} g_i> / Σ omega

All N from one pass over the training examples, with one factorisation of the curvature: no query,
no sketch, no recovery (docs/method.md §8.8). An example that the model could predict only because
it was trained on it has a large one; wrong labels come first.

Letters of its own: n = O R, sides of an exact Fisher.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax import operators as ops
from stride_jax.exact import Step, batch_size, positions
from stride_jax.examples import Examples
from stride_jax.frozen import FrozenModel
from stride_jax.index import Index
from stride_jax.observed import Forward, as_training, refuse_not_finite
from stride_jax.operators.basis import example_features
from stride_jax.operators.fisher import coupled_root, damped, exact_factor, inverse_factors
from stride_jax.operators.gradients import outer
from stride_jax.resident import resident
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.precision import precise
from stride_jax.stride import frozen_for
from stride_jax.taps import Params, TappedModel

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SelfInfluence:
    """Self-influence of N training examples, with what the model says about each.

    Attributes:
      ids: `[N]` strings, in the index' order.
      scores_N: float32 `w_ii >= 0`: nats, up to the factor by which damping shrinks them. The
        index' unit is left out, as in `direct`: it was measured on what examples do to queries.
      loss_N: float32 nats of the model itself, summed over an example's tokens.
      labels_N: a classifier's labels, int32; None for sequences.
      predicted_N: the classes that it gives the largest logit, int32; None for sequences.
    """

    ids: np.ndarray
    scores_N: np.ndarray
    loss_N: np.ndarray
    labels_N: np.ndarray | None = None
    predicted_N: np.ndarray | None = None

    def __repr__(self) -> str:
        low, middle, high = np.percentile(self.scores_N, [0, 50, 100])
        return (
            f"SelfInfluence({len(self.ids)} training examples, median {middle:.3g}, "
            f"from {low:.3g} to {high:.3g})"
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.scores_N, dtype, copy=copy)

    def suspects(self, k: int = 20) -> "pd.DataFrame":
        """The k examples of largest self-influence, whose labels are the likeliest to be wrong.

        Returns:
          Columns `id`, `row` (in the index), `rank` from 1, `self_influence`, `loss`, and for a
          classifier `label` and `predicted`.

        Raises:
          ValueError: a k that is no positive integer.
        """
        import pandas as pd

        if isinstance(k, bool) or int(k) != k or k < 1:
            raise ValueError(f"k={k!r}: ask for a positive number of suspects")
        rows = np.argsort(-self.scores_N, kind="stable")[: int(k)]
        columns = {
            "id": self.ids[rows],
            "row": rows,
            "rank": np.arange(1, len(rows) + 1),
            "self_influence": self.scores_N[rows],
            "loss": self.loss_N[rows],
        }
        for name, own in (("label", self.labels_N), ("predicted", self.predicted_N)):
            if own is not None:
                columns[name] = own[rows]
        return pd.DataFrame(columns)

    def by_class(self) -> "pd.DataFrame":
        """One row per label, from the largest mean self-influence to the smallest.

        Returns:
          Columns `label`, `examples`, `self_influence` and `loss` (means over the label's
          examples), `share` (of the sum of all self-influence) and `disagrees` (share of them that
          the model predicts another class for).

        Raises:
          ValueError: sequences, which have no class.
        """
        import pandas as pd

        if self.labels_N is None or self.predicted_N is None:
            raise ValueError("sequences have a label per token: rank them with suspects()")
        labels, place_N = np.unique(self.labels_N, return_inverse=True)
        count = np.bincount(place_N)
        mean = lambda v: np.bincount(place_N, np.asarray(v, np.float64)) / count  # noqa: E731
        own = mean(self.scores_N)
        columns = {
            "label": labels,
            "examples": count,
            "self_influence": own,
            "share": own * count / max((own * count).sum(), 1e-300),
            "loss": mean(self.loss_N),
            "disagrees": mean(self.labels_N != self.predicted_N),
        }
        return pd.DataFrame(columns).sort_values(
            "self_influence", ascending=False, ignore_index=True
        )


def self_influence(
    tapped: TappedModel,
    params: Params,
    index: Index,
    train: Examples,
    *,
    execution: Execution = Execution(),
) -> SelfInfluence:
    """Self-influence of every training example of an index, in one pass over them.

    Both sides are doubted, as the closed form reads training examples: without doubt the result is
    the diagonal of `direct` of the training set on itself.

    Args:
      tapped, params: the model the index was fitted on.
      index: from `fit` in closed form.
      train: the examples it was fitted on, others beside them or not, in any order.
      execution: devices, bars, memory.

    Returns:
      `N` of them, in the index' order.

    Raises:
      ValueError: the index has no curvature or is of another model, or examples of it are missing.

    >>> import stride_jax
    >>> model = stride_jax.from_function(lambda w, x: (x @ w, {"input": x}))
    >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    >>> y, w = x.argmax(axis=1), 4 * np.eye(3, dtype=np.float32)
    >>> y[7] = (y[7] + 1) % 3  # a wrong label
    >>> train = Examples(x, y)
    >>> settings = stride_jax.IndexSettings(design=stride_jax.Design(num_subsets=20, degree=4))
    >>> index = stride_jax.fit(model, w, x, y, settings, ids=train.ids)
    >>> found = self_influence(model, w, index, train)
    >>> found.suspects(1)[["row", "label", "predicted"]].to_numpy().tolist()[0][0]
    7
    """
    if not index.fisher:
        raise ValueError(
            "this index has trained operators and no curvature, so there is no self-influence: fit "
            "it in closed form"
        )
    rows = positions(index, train)
    frozen = frozen_for(index, tapped, params, train, execution)
    sites = [_pass(frozen, index, name, train, rows, execution) for name in frozen.sites]
    total = np.zeros(len(rows), np.float32)
    for own in sites:
        total += own.self_B
    refuse_not_finite(total)
    labels = predicted = None
    if frozen.tapped.objective.classes and train.labels.ndim == 1:
        labels, predicted = np.asarray(train.labels[rows], np.int32), sites[0].predicted_B
    return SelfInfluence(index.train_ids, total, sites[0].loss_B, labels, predicted)


class Root(NamedTuple):
    """What makes `g^T (F + gamma I)^{-1} g` of a gradient, made once for all batches.

    Attributes:
      exact_nxn: `L^{-1}`, of `F + gamma I = L Lᵀ`, or of `coupled`'s block; None for other forms.
      left_RxR, right_OxO: what features and errors are multiplied by; None for `exact`.
      inverse_RxO: `1 / (Λ + gamma)` of the forms `eigen` and `coupled`, 0 at pairs of the block;
        None for others.
      tokens: `Σ omega` over the training set.
      strongest_M: places of the block's pairs; None for forms without.
    """

    exact_nxn: jax.Array | None
    left_RxR: jax.Array | None
    right_OxO: jax.Array | None
    inverse_RxO: jax.Array | None
    tokens: jax.Array
    strongest_M: jax.Array | None = None


@functools.partial(jax.jit, static_argnames=("rank", "width", "dampings"))
@precise
def root_of(
    fisher: ops.Fisher, rank: int, width: int, dampings: tuple[float | None, float, float]
) -> Root:
    """The root of a curvature.

    Args:
      fisher: of an index.
      rank, width: R and O.
      dampings: of the settings (`ClosedFormSettings.dampings`).
    """
    tokens, (damping, output_damping, decay) = fisher.tokens.astype(jnp.float32), dampings
    if fisher.exact_LxS is not None:
        inverse = _inverse(exact_factor(fisher, rank, width, damping, decay))
        return Root(inverse, None, None, None, tokens)
    if fisher.eigenvalues_RxO is not None and fisher.rotation is not None:
        left, right = (v.astype(jnp.float32) for v in fisher.rotation)
        if fisher.coupled_MxM is not None:
            factor, rest_RxO = coupled_root(fisher, damping, decay)
            return Root(_inverse(factor), left, right, rest_RxO, tokens, fisher.strongest_M)
        values = fisher.eigenvalues_RxO.astype(jnp.float32)
        return Root(None, left, right, 1 / damped(values, damping), tokens)
    # `bᵀ A⁻¹ b = ||Cᵀ b||²` with A⁻¹ = C Cᵀ.
    left, right = map(jnp.linalg.cholesky, inverse_factors(fisher, damping, output_damping))
    return Root(None, left, right, None, tokens)


def _inverse(factor: jax.Array) -> jax.Array:
    """The inverse of a lower triangle."""
    identity = jnp.eye(len(factor), dtype=factor.dtype)
    return jax.scipy.linalg.solve_triangular(factor, identity, lower=True)


def squared(root: Root, b_BxTxR: jax.Array, e_BxTxO: jax.Array) -> jax.Array:
    """`g^T (F + gamma I)^{-1} g / Σ omega` of `g = Σ_t b_t e_tᵀ`, `[B]`, without forming g if it
    can be helped."""
    (count, tokens, rank), width = b_BxTxR.shape, e_BxTxO.shape[2]
    if root.exact_nxn is not None and root.left_RxR is None:
        g_Bxn = jnp.einsum("btr,bto->bor", b_BxTxR, e_BxTxO).reshape(count, -1)
        return ((g_Bxn @ root.exact_nxn.T) ** 2).sum(axis=1) / root.tokens
    assert root.left_RxR is not None, "a curvature has one of three forms"
    assert root.right_OxO is not None, "a curvature has one of three forms"
    b_BxTxR, e_BxTxO = b_BxTxR @ root.left_RxR, e_BxTxO @ root.right_OxO
    if root.exact_nxn is not None:
        g_BxG = outer(b_BxTxR, e_BxTxO).reshape(count, -1)
        block_BxM = g_BxG[:, root.strongest_M] @ root.exact_nxn.T
        rest_B = g_BxG**2 @ root.inverse_RxO.ravel()  # pyright: ignore[reportOptionalMemberAccess]
        return ((block_BxM**2).sum(axis=1) + rest_B) / root.tokens
    if root.inverse_RxO is not None:
        if tokens == 1:
            each_BxO = b_BxTxR[:, 0] ** 2 @ root.inverse_RxO * e_BxTxO[:, 0] ** 2
            return each_BxO.sum(axis=1) / root.tokens
        g_BxRxO = outer(b_BxTxR, e_BxTxO)
        return (g_BxRxO**2 * root.inverse_RxO[None]).sum(axis=(1, 2)) / root.tokens
    if by_pairs(tokens, rank, width):
        of_pairs = [jnp.einsum("btr,bur->btu", v, v) for v in (b_BxTxR, e_BxTxO)]
        return (of_pairs[0] * of_pairs[1]).sum(axis=(1, 2)) / root.tokens
    return (outer(b_BxTxR, e_BxTxO) ** 2).sum(axis=(1, 2)) / root.tokens


def by_pairs(tokens: int, rank: int, width: int) -> bool:
    """Whether products of all pairs of tokens cost less than the gradient itself."""
    return tokens * (rank + width) <= rank * width


class Said(NamedTuple):
    """What a batch says.

    Attributes:
      self_B: self-influence at one site.
      loss_B: nats.
      predicted_B: int32 class of the largest logit, of the first token.
    """

    self_B: Any
    loss_B: Any
    predicted_B: Any


@functools.partial(jax.jit, static_argnames=("step", "plain", "doubt"))
@precise
def self_batch(
    params: Params,
    site: ops.Site,
    basis: ops.Basis,
    root: Root,
    batch: Any,
    step: Step,
    plain: Forward,
    doubt: float,
) -> Said:
    """One batch: the model runs once, for self-influence, loss and prediction.

    Args:
      params, site, basis: of the index.
      root: from `root_of`.
      batch: of a source.
      step: the doubted forward pass, parts and devices.
      plain: the forward pass without doubt.
      doubt: share of it.
    """

    def part(batch: Any) -> Said:
        with meshes.traced_over(step.mesh):
            said, context = plain(params, site, batch)
            # A residual site pulls doubted errors back; the compiler merges what both share.
            read, context = (
                step.forward(params, site, batch)
                if site.reads_params
                else (as_training(said, doubt), context)
            )
        b_nxTxR = example_features(basis, read.activations)
        e_nxTxO = site.errors(params, read, context)
        own = said.objective.loss(said.logits_NxTxC, said.labels_NxT)
        loss_n = (said.weights_NxT * own).sum(axis=1)
        predicted_n = said.logits_NxTxC[:, 0].argmax(axis=1).astype(jnp.int32)
        return Said(squared(root, b_nxTxR, e_nxTxO), loss_n, predicted_n)

    devices = step.mesh.size
    pieces = jax.tree.map(lambda x: meshes.cut(x, devices, step.parts), batch)
    return jax.tree.map(lambda v: meshes.joined(v, devices), jax.lax.map(part, pieces))


def _pass(
    frozen: FrozenModel,
    index: Index,
    name: str,
    train: Examples,
    rows: np.ndarray,
    execution: Execution,
) -> Said:
    """All examples at one site, batch by batch, each batch divided among the devices."""
    site, basis, settings = frozen.sites[name], index.operators[name].basis, frozen.settings
    mesh = meshes.local_mesh() if execution.mesh is None else execution.mesh
    source, whole = frozen.source(train, training=True), meshes.replicated(mesh)
    root = root_of(index.fisher[name], basis.rank, site.width, settings.closed_form.dampings)
    extent = source.extent(site)
    size, parts = batch_size(
        extent, _held(root, extent[0], basis.rank, site.width), len(rows), execution, mesh
    )
    params = resident(source, mesh, execution.memory).params
    site, basis, root = meshes.place((site, basis, root), whole)
    step = Step(source.forward, parts, mesh)
    made: list[Said] = []
    for first in execution.progress(range(0, len(rows), size), desc="self-influence"):
        some = np.resize(rows[first : first + size], size)
        batch = meshes.place(source.data, meshes.over_examples(mesh), some)
        made.append(
            self_batch(params, site, basis, root, batch, step=step, plain=frozen.forward(),
                       doubt=settings.closed_form.doubt)
        )  # fmt: skip
    fetched = [jax.tree.map(meshes.fetch, one) for one in made]
    return jax.tree.map(lambda *v: np.concatenate(v)[: len(rows)], *fetched)


def _held(root: Root, tokens: int, rank: int, width: int) -> int:
    """Numbers that the quadratic form of one example holds."""
    if root.exact_nxn is not None:
        return 2 * rank * width
    if root.inverse_RxO is None and by_pairs(tokens, rank, width):
        return 2 * tokens * (tokens + rank + width)
    return 2 * (rank + width) if tokens == 1 else 2 * rank * width
