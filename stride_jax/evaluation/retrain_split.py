"""A bank's models that are too large for one device: one after the other, each over all of them.

The same steps as the base model's own training: a batch, the parameters and the moments are split
over the mesh, and examples are read by row.

Letters of its own: W devices, S members.
"""

import functools
from typing import Any

import jax
import numpy as np

from stride_jax.evaluation.retrain import Outputs, Retraining, answers
from stride_jax.models.order import Order
from stride_jax.models.pretrain import Recipe, train_in_order
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution


def train_and_score_split(setup: Retraining, subsets_BxS: np.ndarray, keys_B: jax.Array) -> Outputs:
    """Train a model on each row of `subsets_BxS` and evaluate it on every query.

    All processes of the mesh call it together.

    Args:
      setup: model, data and recipe, with a mesh.
      subsets_BxS: training rows of each model.
      keys_B: keys of each model's initial parameters and order.

    Returns:
      Losses and margins, `[B, Q]` numpy.
    """
    models = [_one(setup, rows, key) for rows, key in zip(subsets_BxS, keys_B, strict=True)]
    return Outputs(*(np.stack(v) for v in zip(*models, strict=True)))


def _one(setup: Retraining, members_S: np.ndarray, key: jax.Array) -> Outputs:
    """One model's losses and margins, `[Q]` numpy."""
    module, train, training, mesh = setup.module, setup.train, setup.training, setup.mesh
    assert mesh is not None, "models are split over a mesh"
    init_key, order_key = jax.random.split(key)
    order = Order(members_S, order_key, training)
    recipe = Recipe(module, training, order.num_steps, mesh, "sharded")
    (params,) = train_in_order(
        recipe, (train.inputs, train.labels), order, [order.num_steps], Execution(mesh),
        setup.start.load() if setup.start else recipe.fresh(init_key, train.inputs),
    )  # fmt: skip
    scored, query = [], (setup.query.inputs, setup.query.labels)
    for first in range(0, len(setup.query), mesh.size):
        rows = np.arange(first, min(first + mesh.size, len(setup.query)))
        batch = meshes.place(query, meshes.over_examples(mesh), meshes.pad_rows(rows, mesh.size))
        out = _scored(params, batch, module=module, objective=training.objective)
        scored.append([meshes.fetch(v)[: len(rows)] for v in out])
    return Outputs(*(np.concatenate(v) for v in zip(*scored, strict=True)))


@functools.partial(jax.jit, static_argnames=("module", "objective"))
def _scored(params: Any, batch: Any, *, module: Any, objective: str) -> Outputs:
    return answers(module, objective, params, *batch)
