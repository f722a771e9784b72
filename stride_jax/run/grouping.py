"""Named groups of a run's training examples: what they are grouped by, measured and told.

Letter of its own: G groups.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from stride_jax import asking
from stride_jax import operators as ops
from stride_jax.data import TextExamples
from stride_jax.examples import Examples
from stride_jax.frozen import FrozenModel
from stride_jax.groups import Groups, labelled
from stride_jax.measure import MeasureSettings
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution

Named = tuple[np.ndarray, ops.Labels]
"""Names of groups, `[G]`, and the group of each example."""

# Groups that a summary lists; the file of the groups has all.
_LISTED = 100


def named(by: str, train: Examples, text: TextExamples | None) -> Named:
    """The groups of a training set.

    Args:
      by: `label` of a classifier; `document`, or a name in the metadata, of a text.
      train: the training set.
      text: its text, where it has one; a sequence is of the group that most of its tokens are of.

    Raises:
      ValueError: data that do not have it (lists what they have), or groups of one example each.
    """
    if text is not None:
        names = text.origins(by).tolist()
    elif train.labels.ndim == 1 and np.issubdtype(train.labels.dtype, np.integer):
        names = [None if label < 0 else str(label) for label in train.labels.tolist()]
    else:
        raise ValueError(
            f"groups={by!r}, but labels of shape {train.labels.shape} and type "
            f"{train.labels.dtype} are no classes: leave groups out"
        )
    return labelled(names, len(train))


def note(groups: Groups | None) -> Mapping[str, Any] | None:
    """Names and sizes as JSON values, to be stored beside the operators."""
    return None if groups is None else {n: v.tolist() for n, v in groups.named().items()}


def from_note(stored: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    """The inverse of `note`, as `index.from_arrays` takes it."""
    return {name: np.array(values) for name, values in (stored or {}).items()}


def measured(
    frozen: FrozenModel,
    groups: Groups,
    queries: Examples,
    settings: MeasureSettings,
    execution: Execution,
) -> np.ndarray:
    """By how much each query's loss would rise without each group, `[Q, G]` nats (§8.9).

    As `stride.attribute_groups` measures it, on the run's own devices: rows of zeros fill up the
    number of groups to one that they share evenly.
    """
    share = execution.mesh_for(len(groups)).shape[meshes.SUBSET]
    fill = -len(groups) % share
    operators = {
        site: dataclasses.replace(
            own,
            a_KxRxO=jnp.pad(own.a_KxRxO, ((0, fill), (0, 0), (0, 0))),
            size_K=jnp.pad(own.size_K, (0, fill)),
        )
        for site, own in groups.operators.items()
    }
    whole = dataclasses.replace(settings, group=0)
    y_QxG = asking.measure_all(frozen, operators, queries, whole, execution)
    return y_QxG[:, : len(groups)]


def table(groups: Groups, scores_QxG: np.ndarray) -> dict[str, Any]:
    """What each group does to the queries, in short.

    Returns:
      `count`, the number of groups, and `rows`, up to 100 of the largest magnitude, in descending
      order: `name`, `examples`, `mean` score of the queries, and `first`, the share of the queries
      that it helps most of all.
    """
    mean_G = scores_QxG.mean(axis=0)
    first_G = np.bincount(scores_QxG.argmax(axis=1), minlength=len(groups)) / len(scores_QxG)
    largest = np.argsort(-np.abs(mean_G), kind="stable")[:_LISTED]
    order = largest[np.argsort(-mean_G[largest], kind="stable")]
    rows = [
        {
            "name": str(groups.names[i]),
            "examples": int(groups.sizes_G[i]),
            "mean": float(mean_G[i]),
            "first": float(first_G[i]),
        }
        for i in order
    ]
    return {"count": len(groups), "rows": rows}
