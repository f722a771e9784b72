"""The curvature as an index keeps it: what `(F + gamma I)^{-1} v` needs, and no sum by subset.

An exact Fisher is kept without what repeats: blocks `F_{cc'}` of pairs `c <= c'` are symmetric,
and where a constant added to all outputs changes nothing, as with probabilities that add up to one,
`Σ_{c'} F_{cc'} = 0`, so that the last class follows from the others.

Letters of its own: P pairs of outputs, L those kept: all, or without the last output's;
S = R (R + 1) / 2; M pairs of eigenvectors.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stride_jax.operators.factor import cholesky
from stride_jax.operators.moments import Moments, pairs
from stride_jax.runtime.precision import precise

RELATIVE = 2.0
"""Damping in units of the mean eigenvalue where none is given."""
DECAY = 0.2
"""`N gamma / E||b||²` of an exact or coupled Fisher where no damping is given: of the values .1, .2
and .3 it is the best over six boards, within .01 of each board's own best value (docs/lab.md)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fisher:
    """The mean curvature of a site's outputs over the training tokens.

    Arrays are of the precision they are kept in; they are read in float32.

    Attributes:
      exact_LxS: halves of the blocks of the whole Fisher; None for other forms.
      eigenvalues_RxO: its diagonal in the basis `rotation`; None for other forms.
      rotation: eigenvectors of the two factors, `([R, R], [O, O])`; None for other forms.
      factors: `(E[b bᵀ], E[H])`, `H = diag p − p pᵀ` of cross-entropy; None for other forms.
      tokens: `Σ omega` over the training set.
      power: `E||b||²` of the features of an exact or coupled Fisher; None for other forms.
      coupled_MxM: its block of the strongest pairs of eigenvectors, float32 in every precision,
        since rounding would make it indefinite; None for other forms.
      strongest_M: int32 places `r O + o` of these pairs.
    """

    exact_LxS: jax.Array | None
    eigenvalues_RxO: jax.Array | None
    rotation: tuple[jax.Array, jax.Array] | None
    factors: tuple[jax.Array, jax.Array] | None
    tokens: jax.Array
    power: jax.Array | None = None
    coupled_MxM: jax.Array | None = None
    strongest_M: jax.Array | None = None


@functools.partial(jax.jit, static_argnames=("precision", "invariant"))
def fisher_of(moments: Moments, precision: str = "float32", *, invariant: bool = False) -> Fisher:
    """The curvature of moments, in the precision it is kept in.

    Args:
      moments: sums of a pass.
      precision: of its arrays.
      invariant: whether blocks of the last output follow from the others (`Objective.invariant`).
    """
    tokens = moments.tokens[0]
    exact = eigenvalues = rotation = factors = power = None
    if moments.fisher_PxRxR is not None:
        blocks_PxRxR = moments.fisher_PxRxR[0] / tokens
        width = moments.outputs_OxO[0].shape[0]
        kept = np.flatnonzero(pairs(width)[1] < width - invariant)
        exact = blocks_PxRxR[kept][:, *np.triu_indices(blocks_PxRxR.shape[1])]
    elif moments.eigenvalues_RxO is not None:
        eigenvalues, rotation = moments.eigenvalues_RxO[0] / tokens, moments.rotation
    else:
        factors = moments.features_RxR[0] / tokens, moments.outputs_OxO[0] / tokens
    parts = (exact, eigenvalues, rotation, factors)
    exact, eigenvalues, rotation, factors = jax.tree.map(lambda v: v.astype(precision), parts)
    coupled = None if moments.coupled_MxM is None else moments.coupled_MxM[0] / tokens
    if exact is not None or coupled is not None:
        power = jnp.trace(moments.features_RxR[0]) / tokens
    return Fisher(
        exact, eigenvalues, rotation, factors, tokens, power, coupled, moments.strongest_M
    )


def blocks(exact_LxS: jax.Array, rank: int, width: int) -> jax.Array:
    """Blocks of all pairs of outputs, `[P, R, R]`, from the halves of those that are kept."""
    upper = np.triu_indices(rank)
    place_RxR = np.zeros((rank, rank), np.int32)
    place_RxR[upper] = place_RxR.T[upper] = np.arange(len(upper[0]))
    own_LxRxR = exact_LxS.astype(jnp.float32)[:, place_RxR]
    first, second = pairs(width)
    if len(own_LxRxR) == len(first):
        return own_LxRxR
    kept = {pair: i for i, pair in enumerate(zip(*pairs(width - 1), strict=True))}
    row = {c: [kept[min(c, o), max(c, o)] for o in range(width - 1)] for c in range(width - 1)}
    last = {c: -own_LxRxR[np.array(row[c])].sum(axis=0) for c in row}
    whole = -sum(last.values(), start=jnp.zeros((rank, rank), jnp.float32))

    def block(c: int, other: int) -> jax.Array:
        if other < width - 1:
            return own_LxRxR[kept[c, other]]
        return last[c] if c < width - 1 else whole

    return jnp.stack([block(c, o) for c, o in zip(first.tolist(), second.tolist(), strict=True)])


@functools.partial(jax.jit, static_argnames=("damping", "output_damping", "decay", "mesh"))
@precise
def precondition(
    fisher: Fisher,
    v_BxRxO: jax.Array,
    damping: float | None,
    output_damping: float = 1.0,
    decay: float = DECAY,
    mesh: Mesh | None = None,
) -> jax.Array:
    """`(F + gamma I)^{-1} v` for each of B matrices.

    Exact: the whole Fisher. Eigen: `Q (Λ + gamma)^{-1} Qᵀ`, `Q = Q_b ⊗ Q_o`. Coupled: the same,
    with a whole block in the place of Λ for the strongest pairs. Kronecker: `F ≈ E[b bᵀ] ⊗ E[H]`,
    each factor damped relative to its own mean eigenvalue.

    Args:
      fisher: the curvature.
      v_BxRxO: right-hand sides.
      damping: gamma relative to the mean eigenvalue; that of the feature side of factors. None
        for `decay` with the exact and the coupled Fisher, and for `RELATIVE` with the others.
      output_damping: damping of the output side of factors.
      decay: `N gamma / E||b||²` where no damping is given.
      mesh: mesh of the surrounding `jax.shard_map`; None outside of one.

    Returns:
      `[B, R, O]`.
    """
    n, r, o = v_BxRxO.shape
    if fisher.exact_LxS is not None:
        factor = exact_factor(fisher, r, o, damping, decay, mesh)
        v_nxB = v_BxRxO.transpose(2, 1, 0).reshape(o * r, n)
        solved = jax.scipy.linalg.cho_solve((factor, True), v_nxB)
        return solved.reshape(o, r, n).transpose(2, 1, 0)
    if fisher.eigenvalues_RxO is not None and fisher.rotation is not None:
        left, right = (v.astype(jnp.float32) for v in fisher.rotation)
        rotated = jnp.einsum("pr,bpq,qo->bro", left, v_BxRxO, right)
        if fisher.coupled_MxM is None:
            values = fisher.eigenvalues_RxO.astype(jnp.float32)
            solved = rotated / damped(values, damping)[None]
        else:
            factor, inverse_RxO = coupled_root(fisher, damping, decay)
            chosen_BxM = rotated.reshape(n, -1)[:, fisher.strongest_M]
            own_MxB = jax.scipy.linalg.cho_solve((factor, True), chosen_BxM.T)
            rest = (rotated * inverse_RxO[None]).reshape(n, -1)
            solved = rest.at[:, fisher.strongest_M].set(own_MxB.T).reshape(n, r, o)
        return jnp.einsum("pr,bro,qo->bpq", left, solved, right)

    left, right = inverse_factors(fisher, damping, output_damping)
    return jnp.einsum("pr,bro->bpo", left, (v_BxRxO.reshape(n * r, o) @ right).reshape(n, r, o))


def exact_factor(
    fisher: Fisher,
    rank: int,
    width: int,
    damping: float | None,
    decay: float = DECAY,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Lower Cholesky factor of the damped exact Fisher, `[O R, O R]`, ordered (output, feature).

    Args:
      fisher: of the form `exact`.
      rank, width: R and O.
      damping, decay, mesh: as in `precondition`.
    """
    assert fisher.exact_LxS is not None, "a Fisher of the form exact"
    fisher_PxRxR = blocks(fisher.exact_LxS, rank, width)
    own = np.flatnonzero(np.equal(*pairs(width)))
    trace = jnp.trace(fisher_PxRxR[own], axis1=1, axis2=2).sum()
    return cholesky(fisher_PxRxR, _ridge(fisher, trace, rank * width, damping, decay), width, mesh)


def coupled_root(
    fisher: Fisher, damping: float | None, decay: float = DECAY
) -> tuple[jax.Array, jax.Array]:
    """What a damped Fisher of the form `coupled` is solved with.

    Args:
      fisher: of that form.
      damping, decay: as in `precondition`.

    Returns:
      The lower Cholesky factor of the block of the strongest pairs, `[M, M]`; and the inverse
      diagonal, `[R, O]`, 0 at these pairs.
    """
    assert fisher.eigenvalues_RxO is not None, "a Fisher of the form coupled"
    assert fisher.coupled_MxM is not None, "a Fisher of the form coupled"
    values_RxO = fisher.eigenvalues_RxO.astype(jnp.float32)
    gamma = _ridge(fisher, values_RxO.sum(), values_RxO.size, damping, decay)
    block = fisher.coupled_MxM.astype(jnp.float32)
    factor = jnp.linalg.cholesky(block + gamma * jnp.eye(len(block)), symmetrize_input=False)
    inverse = (1 / (values_RxO + gamma)).ravel().at[fisher.strongest_M].set(0.0)
    return factor, inverse.reshape(values_RxO.shape)


def _ridge(
    fisher: Fisher, trace: jax.Array, size: int, damping: float | None, decay: float
) -> jax.Array:
    """gamma of an exact or coupled Fisher of this trace and side."""
    if damping is not None:
        return damping * trace / size
    assert fisher.power is not None, "kept with every Fisher of these forms"
    # A curvature of nothing has no solution, and is refused; the decay alone would hide it.
    return jnp.where(trace > 0, decay * fisher.power / fisher.tokens, 0.0)


def damped(values: jax.Array, damping: float | None) -> jax.Array:
    """Eigenvalues and gamma, which is relative to their mean."""
    return values + (RELATIVE if damping is None else damping) * values.mean()


def inverse_factors(
    fisher: Fisher, damping: float | None, output_damping: float
) -> tuple[jax.Array, jax.Array]:
    """The damped inverses of the two Kronecker factors, `[R, R]` and `[O, O]`.

    Args:
      fisher: of the form `kronecker`.
      damping, output_damping: of either side, as in `precondition`.
    """

    def inverse(factor: jax.Array, damping: float | None) -> jax.Array:
        # One small factorisation, then plain products: faster than B triangular solves.
        values, vectors = jnp.linalg.eigh(factor.astype(jnp.float32))
        return (vectors / damped(values, damping)[None]) @ vectors.T

    assert fisher.factors is not None, "a Fisher of the form kronecker"
    return inverse(fisher.factors[0], damping), inverse(fisher.factors[1], output_damping)
