"""Operators in closed form: one factorisation instead of training.

To first order around `a_k = 0` the objective of joint training is quadratic, with a Hessian that
all subsets share (docs/method.md §5.1):

    a_k = (F + gamma I)^{-1} Σ_{i in A_k} g_i / Σ omega

with the curvature F of the mean token. `Σ omega F` is that of the whole training loss, so leaving
the subset out moves the optimum by `−a_k`, and a query's measurement `<g_x, a_k>` estimates, in
nats, by how much its loss would rise: a sum over the subset's members. (Their mean, as the
published objective has it, divides by sizes that differ between subsets, which the linear model
`M w` can't follow: .518 where the sum had .530 at K = 1000 on MNIST-5k.)
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from stride_jax.observed import Context, Observed, Source
from stride_jax.operators.basis import Basis, example_features
from stride_jax.operators.fisher import DECAY, Fisher, fisher_of, inverse_factors, precondition
from stride_jax.operators.gradients import outer
from stride_jax.operators.inner_sites import LayerSite
from stride_jax.operators.moments import FORMS, PAIRS, ROWS, Curvature, Moments, shardings, zeros
from stride_jax.operators.sites import Site
from stride_jax.operators.steering import Operators
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.precision import precise
from stride_jax.runtime.programs import Program, shape, shapes_like
from stride_jax.runtime.settings import check_types
from stride_jax.taps import Params

DOUBT = 0.005
"""Doubt where no held-out examples say what it should be."""


@dataclasses.dataclass(frozen=True)
class ClosedFormSettings:
    """Curvature and damping.

    Attributes:
      damping: gamma relative to the mean eigenvalue of the Fisher. None: with the exact or coupled
        Fisher of a loss of classes a weight decay, `gamma = decay E||b||² / N`, which neither N
        nor confident predictions change; else 2 (docs/method.md §5.4).
      decay: that weight decay. None: .2; and where an index is made of a classifier whose training
        was stopped early, more, up to 25.6, with a doubt of up to .5 in place of the default
        (`settled.unsettled`, docs/method.md §5.7).
      doubt: share of the uniform distribution that is mixed into predictions on training examples
        (`observed.as_training`). None: a run takes it from its calibration split
        (`models.fit_doubt`); without one it is .005.
      output_damping: damping of the output side of plain Kronecker factors; `damping` is then that
        of the feature side.
      fisher: `exact`, `coupled` (`eigen`, with a whole block for the strongest pairs of
        eigenvectors), `eigen` (Kronecker factors with corrected eigenvalues), `kronecker`, or
        `auto`: coupled at layer sites, exact at the logit site while R·O is at most `exact_limit`,
        else eigen.
      exact_limit: largest side of an exact Fisher.
      pairs: side of the block of `coupled`.
      rows: rows of each token's curvature that count in that block, of one for every class; what
        the others would add counts on its diagonal alone.
    """

    damping: float | None = None
    decay: float | None = None
    doubt: float | None = DOUBT
    output_damping: float = 1.0
    fisher: str = "auto"
    exact_limit: int = 4096
    pairs: int = PAIRS
    rows: int = ROWS

    def __post_init__(self) -> None:
        check_types(self)
        if self.fisher not in ("auto", *FORMS):
            raise ValueError(f"fisher={self.fisher!r}: use 'auto' or one of {FORMS}")
        if (self.damping is not None and self.damping <= 0) or self.output_damping <= 0:
            raise ValueError(
                f"damping={self.damping}, output_damping={self.output_damping}: both must be "
                "positive, since the Fisher is singular (logits have a free constant)"
            )
        if self.decay is not None and self.decay <= 0:
            raise ValueError(f"decay={self.decay}: it must be positive; None decides by the model")
        if self.pairs < 1 or self.rows < 1:
            raise ValueError(
                f"pairs={self.pairs}, rows={self.rows}: the coupled Fisher needs one of each at "
                "least"
            )
        if self.doubt is not None and not 0 <= self.doubt < 1:
            raise ValueError(f"doubt={self.doubt} is a share: it must lie in [0, 1)")

    @property
    def dampings(self) -> tuple[float | None, float, float]:
        """Damping of the Fisher, or of its feature side; of its output side; the weight decay."""
        return self.damping, self.output_damping, DECAY if self.decay is None else self.decay

    def form(self, rank: int, site: Site) -> str:
        """The form of curvature summed at a site, with R = `rank` features."""
        if self.fisher != "auto":
            return self.fisher
        if isinstance(site, LayerSite):
            return "coupled"
        small = rank * site.width <= self.exact_limit
        return "exact" if site.has_exact_fisher and small else "eigen"


@functools.partial(jax.jit, static_argnames=("settings", "mesh"))
@precise
def solve_steps(
    moments: Moments, settings: ClosedFormSettings, mesh: Mesh
) -> tuple[jax.Array, jax.Array]:
    """Steering matrices and their sizes; every device solves for its own subsets."""

    num_subsets = moments.gradients_KxRxO[0].shape[0]

    def local(moments: Moments) -> tuple[jax.Array, jax.Array]:
        # A K-th of the tokens first, so that matrices of huge corpora stay inside float32.
        right_KxRxO = moments.gradients_KxRxO[0] * (num_subsets / moments.tokens[0])
        a_KxRxO = precondition(fisher_of(moments), right_KxRxO, *settings.dampings, mesh=mesh)
        # Root mean square shift of the outputs over the training tokens, from E[b bᵀ].
        features_RxR = moments.features_RxR[0] / moments.tokens[0]
        power_K = jnp.einsum("kro,rs,kso->k", a_KxRxO, features_RxR, a_KxRxO)
        size_K = jnp.sqrt(jnp.maximum(power_K / a_KxRxO.shape[2], 1e-30))
        return a_KxRxO / size_K[:, None, None], size_K / num_subsets

    specs = jax.tree.map(lambda where: where.spec, shardings(moments, mesh))
    own = P(meshes.SUBSET)
    return jax.shard_map(
        local, mesh=mesh, in_specs=(specs,), out_specs=(own, own), check_vma=False
    )(moments)


def curvature_shapes(form: str, rank: int, width: int, settings: ClosedFormSettings) -> Curvature:
    """A form of curvature as shapes."""
    if form not in ("eigen", "coupled"):
        return Curvature(form)
    pairs = shape((min(settings.pairs, rank * width),), jnp.int32)
    rotation = shape((rank, rank)), shape((width, width))
    return Curvature(form, rotation, pairs if form == "coupled" else None, settings.rows)


def solve_program(
    num_subsets: int, rank: int, width: int, form: str, settings: ClosedFormSettings, mesh: Mesh
) -> Program:
    """The compiled solution for moments of these sizes."""

    curvature = curvature_shapes(form, rank, width, settings)
    moments = jax.eval_shape(
        lambda *fixed: zeros(num_subsets, rank, width, Curvature(form, *fixed)),
        curvature.rotation, curvature.strongest_M,
    )  # fmt: skip
    moments = shapes_like(moments, shardings(moments, mesh))
    return Program(solve_steps, (moments,), {"settings": settings, "mesh": mesh}, 1)


def closed_form(
    basis: Basis,
    moments: Moments,
    settings: ClosedFormSettings,
    signs_C: jax.Array | None = None,
) -> Operators:
    """All K operators at once from the moments of the training set.

    `a_k = (F + gamma I)^{-1} Σ_{i in A_k} g_i / Σ omega`, stored at unit size (a root mean square
    output shift of 1 over the training tokens) with its own size beside it, so that one measuring
    scale suits them all.

    Args:
      basis: basis under which the moments were summed.
      moments: moments from `passes.accumulate`, one set or several added up.
      settings: damping.
      signs_C: signs of the site's folding; None for a site without one.

    Raises:
      ValueError: a Fisher that is zero or not finite.
    """
    mesh = meshes.mesh_of(moments.sizes_K[0]) or meshes.single_mesh()
    a_KxRxO, size_K = solve_steps(moments, settings, mesh)
    if not np.isfinite(meshes.fetch(size_K)).all():
        raise ValueError(
            "the closed form has no finite solution: the Fisher of the model's predictions is zero "
            "or not finite, as saturated logits make it; calibrate the model with "
            f"taps.with_temperature, or mix in doubt (doubt={settings.doubt})"
        )
    return Operators(basis, a_KxRxO, size_K, signs_C)


@functools.partial(jax.jit, static_argnames=("settings", "group"))
@precise
def _directions(
    fisher: Fisher,
    basis: Basis,
    site: Site,
    source: tuple[Params, Observed, Context],
    settings: ClosedFormSettings,
    group: int,
) -> jax.Array:
    params, observed, context = source
    b_BxTxR = example_features(basis, observed.activations)
    e_BxTxO = site.errors(params, observed, context)
    if fisher.factors is not None:
        # `A⁻¹ (b eᵀ) B⁻¹ = (A⁻¹ b) (B⁻¹ e)ᵀ`: tokens are cheaper to solve for than matrices.
        left, right = inverse_factors(fisher, settings.damping, settings.output_damping)
        g_BxRxO = outer(b_BxTxR @ left, e_BxTxO @ right, group)
    else:
        g_BxRxO = precondition(fisher, outer(b_BxTxR, e_BxTxO, group), *settings.dampings)
    return g_BxRxO / fisher.tokens


def directions(
    fisher: Fisher,
    basis: Basis,
    site: Site,
    source: Source,
    settings: ClosedFormSettings,
    group: int = 0,
) -> jax.Array:
    """`V_x = (F + gamma I)^{-1} g_x / Σ omega` of queries, `[Q, R, O]`, or of groups of tokens.

    Its inner product with an example's gradient is the example's exact score.

    Args:
      fisher, basis, site: parts of the index.
      source: the observed queries (`observed_source`).
      settings: damping.
      group: tokens of a group; 0 for whole queries.
    """
    return _directions(fisher, basis, site, (source.params, *source.data), settings, group)
