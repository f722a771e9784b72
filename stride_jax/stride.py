"""STRIDE from end to end, in memory: a model and arrays in, an attribution out.

`fit` makes the index (basis and operators) from the training set once; `attribute` reads queries
against it. The pipeline calls the same steps one by one, with files in between.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from stride_jax import design as designs
from stride_jax import operators as ops
from stride_jax import taps
from stride_jax.attribution import Attribution
from stride_jax.data.examples import content_ids
from stride_jax.measure import MeasureSettings, measure
from stride_jax.recovery.lasso import LassoSettings, init, solve
from stride_jax.runtime.files import plain
from stride_jax.runtime.progress import Progress, silent


@dataclasses.dataclass(frozen=True)
class StrideSettings:
    """Every choice of the method; the defaults suit a classifier of a few thousand examples.

    Attributes:
      design: K, d, seed.
      basis: features of the taps.
      site: `logit`, or the name of a tap for residual-site operators there.
      fit: `joint` trains the operators, `closed_form` solves for them.
      joint: settings of training.
      closed_form: settings of the closed form.
      measure: reading a query.
      lasso: recovery.
    """

    design: designs.Design = designs.Design()
    basis: ops.BasisSettings = ops.BasisSettings()
    site: str = "logit"
    fit: str = "joint"
    joint: ops.JointSettings = ops.JointSettings()
    closed_form: ops.ClosedFormSettings = ops.ClosedFormSettings()
    measure: MeasureSettings = MeasureSettings()
    lasso: LassoSettings = LassoSettings()

    def __post_init__(self) -> None:
        if self.fit not in ("joint", "closed_form"):
            raise ValueError(f"fit={self.fit!r}: use 'joint' or 'closed_form'")


@dataclasses.dataclass(frozen=True)
class Index:
    """What is kept of a training set: operators, ids and settings.

    Attributes:
      operators: basis and K steering matrices.
      train_ids: `[N]` strings; with the design's seed they give the membership.
      settings: what made it.
    """

    operators: ops.Operators
    train_ids: np.ndarray
    settings: StrideSettings


def make_site(
    tapped: taps.TappedModel, params: Any, observed: taps.Observed, inputs: Any, site: str
) -> ops.Site:
    """The site a setting names: `logit`, or a tap."""
    if site == "logit":
        return ops.logit_site(observed)
    return ops.residual_site(tapped, params, observed, np.asarray(inputs[:1]), site)


def fit(
    tapped: taps.TappedModel,
    params: Any,
    inputs: np.ndarray,
    labels: np.ndarray,
    settings: StrideSettings = StrideSettings(),
    *,
    ids: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> Index:
    """Learn K steering operators for a frozen model and its training set (method §2).

    Args:
      tapped: the model, from one of the constructors in `taps`.
      params: its parameters.
      inputs: `[N, ...]` training inputs.
      labels: `[N]` classes, or `[N, T]` next tokens.
      settings: the method's settings.
      ids: `[N]` example names; hashes of the content by default.
      weights: token weights omega like `labels`; ones by default.
      mesh: devices; all of this process by default.
      progress: wraps long loops.

    Returns:
      The index.
    """
    ids = content_ids(np.asarray(inputs), np.asarray(labels)) if ids is None else np.asarray(ids)
    subsets = designs.membership(settings.design, ids)
    seen = taps.observe(tapped, params, inputs, labels, weights, mesh=mesh, progress=progress)
    site = make_site(tapped, params, seen, inputs, settings.site)
    operators = make_operators(
        settings, subsets, site, seen, ops.context(site, seen, inputs), mesh=mesh, progress=progress
    )
    return Index(operators, ids, settings)


def make_operators(
    settings: StrideSettings,
    subsets_Nxd: jax.Array,
    site: ops.Site,
    seen: taps.Observed,
    context: ops.Context,
    *,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> ops.Operators:
    """Fit the basis, then all K operators, by training or in closed form as the settings say."""
    basis = ops.fit_basis(seen.activations, settings.basis)
    design = settings.design
    if settings.fit == "joint":
        operators, _ = ops.train_jointly(
            design, subsets_Nxd, site, basis, seen, context, settings.joint,
            mesh=mesh, progress=progress,
        )  # fmt: skip
        return operators
    moments = ops.accumulate(
        design.num_subsets, subsets_Nxd, site, basis, seen, context,
        exact=settings.closed_form.exact(basis.rank, site.width, site.tap is not None),
        batch_size=settings.closed_form.batch_size, mesh=mesh, progress=progress,
    )  # fmt: skip
    return ops.closed_form(basis, moments, settings.closed_form)


def attribute(
    tapped: taps.TappedModel,
    params: Any,
    index: Index,
    inputs: np.ndarray,
    labels: np.ndarray,
    *,
    ids: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> Attribution:
    """Which training examples made the model behave like this on these queries.

    Args:
      tapped, params: the model the index was fitted on.
      index: from `fit`.
      inputs, labels, weights, ids: the queries, as in `fit`.
      mesh, progress: as in `fit`.

    Returns:
      `[query, train]` scores in nats; positive = proponent.
    """
    ids = content_ids(np.asarray(inputs), np.asarray(labels)) if ids is None else np.asarray(ids)
    settings = index.settings
    seen = taps.observe(tapped, params, inputs, labels, weights, mesh=mesh, progress=progress)
    site = make_site(tapped, params, seen, inputs, settings.site)
    y_QxK = measure(
        site,
        index.operators,
        seen,
        ops.context(site, seen, inputs),
        settings.measure,
        mesh=mesh,
        progress=progress,
    )
    state = init(settings.design, designs.membership(settings.design, index.train_ids))
    found = solve(state, y_QxK, settings.lasso, progress=progress)
    return Attribution(ids, index.train_ids, found.sparse, plain(settings))
