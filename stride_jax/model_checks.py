"""Is this model safe to attribute? A few forward passes that tell, before the expensive work."""

import dataclasses
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.examples import Examples
from stride_jax.inputs import Inputs, read_rows
from stride_jax.objectives import OBJECTIVES, SIGMOID, Objective
from stride_jax.observed import refuse_not_finite
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.taps import Params, TappedModel

LEVELS = ("ok", "note", "warning", "error")
"""Of a finding, from good to bad."""

_ROWS = 8
# Of the largest logit: bfloat16 rounds by .4 %, a batch norm in training mode moves by far more.
_TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
      name: what.
      level: `ok`, `note`, `warning` or `error`; with an error every score would be meaningless.
      measured: what was measured, with its numbers.
      remedy: what to do about it; empty where all is well.
    """

    name: str
    level: str
    measured: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level={self.level!r}: use one of {LEVELS}")


def check_model(
    tapped: TappedModel, params: Params, examples: Examples, execution: Execution = Execution()
) -> None:
    """Refuse a model whose logits would make every score meaningless.

    Args:
      tapped, params: the model.
      examples: some that it reads.
      execution: devices.

    Raises:
      ValueError: logits that are not finite; that depend on an example's place or on the rest of
        the batch (dropout, batch norm in training mode, a hidden random state); that are
        probabilities; or in which the objective is not convex.

    Warns:
      UserWarning: logits that are the same for examples that differ.
    """
    for one in forward_findings(tapped, params, examples, execution):
        if one.level == "error":
            raise ValueError(f"{one.measured}; {one.remedy}")
        if one.level == "warning":
            warnings.warn(f"{one.measured}; {one.remedy}", stacklevel=3)


def forward_findings(
    tapped: TappedModel, params: Params, examples: Examples, execution: Execution = Execution()
) -> Iterator[Finding]:
    """What a few forward passes tell: of eight evenly spaced examples, run four times.

    As they are, twice; each at another place of the batch; and half of them beside other examples.

    Args:
      tapped, params, examples, execution: as in `check_model`.

    Yields:
      Findings `finite`, `deterministic`, `place in the batch`, `rest of the batch`, `logits` (not
      probabilities), `objective` (of one's own: finite and convex) and `tells apart`; none after
      logits that are not finite.
    """
    mesh = meshes.local_mesh() if execution.mesh is None else execution.mesh
    params = meshes.everywhere(params, mesh)
    size = -(-_ROWS // mesh.size) * mesh.size
    rows_B = np.linspace(0, len(examples) - 1, size).astype(int)
    inputs_B = read_rows(examples.inputs, rows_B)

    def logits(order_B: np.ndarray) -> np.ndarray:
        batch = meshes.place(inputs_B, meshes.over_examples(mesh), order_B)
        with jax.set_mesh(mesh):  # as `meshes.traced_over`, outside of a program
            logits = tapped(params, batch)[0]
        return meshes.fetch(logits).astype(np.float32)

    order = np.arange(size)
    first = logits(order)
    yield (finite := _finite(first))
    if finite.level == "error":
        return
    largest = max(float(np.abs(first).max()), 1e-6)
    others = np.where(order < size // 2, order, 0)
    for name, places, compared, what in (
        ("deterministic", order, size, "something other than its inputs"),
        ("place in the batch", np.roll(order, 1), size, "an example's place in the batch"),
        ("rest of the batch", others, size // 2, "the rest of the batch"),
    ):
        difference = np.abs(logits(places) - first[places])[:compared].max(initial=0.0)
        yield _independent(name, what, float(difference), largest)
    yield _no_probabilities(first, tapped.objective)
    if tapped.objective not in OBJECTIVES.values():
        yield _convex(tapped.objective, first, np.asarray(examples.labels[rows_B]))
    yield _tells_apart(first, inputs_B, largest)


def _finite(logits: np.ndarray) -> Finding:
    try:
        refuse_not_finite(logits)
    except ValueError as error:
        measured, _, remedy = str(error).rpartition("; ")
        return Finding("finite", "error", measured, remedy)
    return Finding("finite", "ok", f"the logits of {len(logits)} examples are finite")


def _independent(name: str, what: str, difference: float, largest: float) -> Finding:
    if difference > _TOLERANCE * largest:
        return Finding(
            name,
            "error",
            f"the model's logits depend on {what}: they change by {difference:.3g} (largest "
            f"logit {largest:.3g})",
            "switch dropout and batch norm to inference (train=False, model.eval()) and give it "
            "no random state of its own",
        )
    return Finding(
        name, "ok", f"logits change by {difference:.2g} at most (largest logit {largest:.3g})"
    )


def _no_probabilities(logits: np.ndarray, objective: Objective) -> Finding:
    sums, shares = logits.sum(axis=-1), logits.min() >= 0 and logits.max() <= 1
    if shares and objective == SIGMOID:
        return Finding(
            "logits",
            "warning",
            f"all outputs lie between 0 and 1 ({logits.min():.3g} to {logits.max():.3g})",
            "give logits, such as log p / (1 − p), not the sigmoid's own output",
        )
    if shares and objective.invariant and np.abs(sums - 1).max() < 1e-3:
        return Finding(
            "logits",
            "error",
            "the model's outputs are probabilities (between 0 and 1, adding up to 1)",
            "give logits, such as log p, whose softmax they are",
        )
    return Finding("logits", "ok", f"outputs from {logits.min():.3g} to {logits.max():.3g}")


def _convex(objective: Objective, outputs: np.ndarray, targets: np.ndarray) -> Finding:
    """Whether a loss of one's own is finite and convex where it is read."""
    if not objective.classes:
        targets = targets.reshape(*outputs.shape[:-1], -1).astype(np.float32)
    o, y = jnp.asarray(outputs), jnp.asarray(targets)
    loss, hessian = objective.loss(o, y), objective.hessian(o, y).flat()
    one = jnp.ones(len(outputs[..., 0].reshape(-1)))
    blocks = jax.vmap(lambda w: hessian.total(w))(jnp.diag(one))
    values = np.linalg.eigvalsh(np.asarray(blocks))
    if not (np.isfinite(np.asarray(loss)).all() and np.isfinite(values).all()):
        return Finding(
            "objective", "error", f"the loss {objective.name!r} or its Hessian is not finite on "
            f"{len(outputs)} examples", "write it so that JAX can differentiate it twice there",
        )  # fmt: skip
    if values.min() < -1e-4 * max(float(np.abs(values).max()), 1e-30):
        return Finding(
            "objective", "error", f"the loss {objective.name!r} is not convex in the outputs: its "
            f"Hessian has the eigenvalue {values.min():.3g} (largest {values.max():.3g})",
            "use a convex one: operators are its minimum, which it has not",
        )  # fmt: skip
    return Finding("objective", "ok", f"{objective.name}: finite and convex")


def _tells_apart(logits: np.ndarray, inputs_B: Inputs, largest: float) -> Finding:
    spread = float(np.ptp(logits, axis=0).max())
    differ = any(bool((v != v[:1]).any()) for v in jax.tree.leaves(inputs_B))
    if spread <= 1e-7 * largest and differ:
        return Finding(
            "tells apart",
            "warning",
            f"the model's logits are the same for {len(logits)} examples that differ: it tells "
            "nothing apart, and neither will its attributions",
            "check the checkpoint",
        )
    return Finding(
        "tells apart", "ok", f"a logit differs by up to {spread:.3g} between {len(logits)} examples"
    )
