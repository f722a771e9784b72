"""What every stage of a run is planned from: the amount of data, shapes of model, sites and bases.

Estimated is the tap that would be chosen, where none is named.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stride_jax import models, taps
from stride_jax import operators as ops
from stride_jax.adapters import from_model
from stride_jax.data import ShardSettings, TuningSettings, load_shards, load_tokenizer
from stride_jax.data.dialogues import read_dialogues
from stride_jax.examples import Examples, token_shape
from stride_jax.frozen import FrozenModel, resolve
from stride_jax.objectives import named_objective
from stride_jax.run.settings import RunSettings
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.programs import shape
from stride_jax.runtime.settings import build


@dataclasses.dataclass(frozen=True)
class Extent:
    """The amount of data; the section `plan` of a config.

    Attributes:
      num_train: N.
      num_queries: Q.
      input_shape: shape of an example's inputs; `(T,)` for a language model.
      num_classes: C, classes, size of the vocabulary, or numbers of a label.
    """

    num_train: int
    num_queries: int
    input_shape: tuple[int, ...]
    num_classes: int

    def __post_init__(self) -> None:
        if min(self.num_train, self.num_queries, self.num_classes, *self.input_shape) < 1:
            raise ValueError(f"{self}: every number must be at least 1")


def extent_of(values: Mapping[str, Any]) -> Extent:
    """The section `plan` of a config, completed by the section `text`, `tuning` or `shards`.

    Raises:
      ValueError: numbers that neither of them gives, or shards that are not there; names them.
    """
    given, text = dict(values.get("plan") or {}), values.get("text")
    if text:
        given.setdefault("num_train", text.get("max_train"))
        given.setdefault("num_queries", text.get("num_query", 200))
        given.setdefault("input_shape", (text.get("length", 64),))
        given.setdefault("num_classes", text.get("vocab_size", 1024))
    if tuning := values.get("tuning"):
        given = _tuning_numbers(tuning) | given
    names = ("num_train", "num_queries", "input_shape", "num_classes")
    if (shards := values.get("shards")) and not all(given.get(name) for name in names):
        given = _shard_numbers(shards) | given
    if missing := [name for name in names if not given.get(name)]:
        raise ValueError(
            f"config.plan lacks {', '.join(missing)}: a plan reads no data, so give these numbers "
            "in the config"
        )
    return build(Extent, given, "config.plan")


def _tuning_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is fine-tuned on, as far as settings and the number of rows say."""
    own = build(TuningSettings, values, "config.tuning", from_text=True)
    rows = len(read_dialogues(own.path, own.columns))
    queries = len(read_dialogues(own.query_path, own.columns)) if own.query_path else own.num_query
    left = rows - own.num_calibration - (0 if own.query_path else own.num_query)
    vocab = load_tokenizer(own.tokenizer).vocab_size if own.tokenizer else own.vocab_size
    return {
        "num_train": min(left, own.max_train or left),
        "num_queries": min(queries, own.num_query or queries),
        "input_shape": (own.length,),
        "num_classes": vocab,
    }


def _shard_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a prepared corpus says of itself: of its tokens, none are read."""
    splits = load_shards(build(ShardSettings, values, "config.shards", from_text=True))
    return {
        "num_train": len(splits.train.rows),
        "num_queries": len(splits.query.rows),
        "input_shape": (splits.train.stream.length,),
        "num_classes": splits.tokenizer.vocab_size,
    }


@dataclasses.dataclass(frozen=True)
class Scene:
    """Inputs of every stage's compilation: shapes of the parameters and of one example."""

    settings: RunSettings
    extent: Extent
    execution: Execution
    frozen: FrozenModel
    one: Examples
    bases: dict[str, ops.Basis]

    @property
    def mesh(self) -> Mesh:
        assert self.execution.mesh is not None
        return self.execution.mesh

    @property
    def token_groups(self) -> int:
        """Groups of tokens that a query is read in."""
        group = self.settings.read.measure.group
        return -(-math.prod(self.one.token_shape[1:]) // group) if group else 1


def index_bytes(settings: RunSettings, extent: Extent, mesh: Mesh) -> int:
    """Bytes of the K steering matrices of all sites, on all devices together."""
    scene = scene_of(settings, extent, mesh)
    k = settings.index.design.num_subsets
    sites = scene.frozen.sites.items()
    return sum(4 * k * (scene.bases[name].rank * site.width + 1) for name, site in sites)


def scene_of(
    settings: RunSettings,
    extent: Extent,
    mesh: Mesh,
    unnamed: Callable[..., str] = max,
) -> Scene:
    """Shapes of a run's model, sites and bases.

    Args:
      settings: of the run; of their `mesh` only `parameters` is read.
      extent: amount of data.
      mesh: devices, of the CPU in place of the real ones or of a topology.
      unnamed: what chooses a tap where none is named: `max` the widest, `min` the narrowest.
    """
    module = models.make_model(settings.model, extent.num_classes)
    tokens = settings.model.kind in ("gpt", "llama")
    inputs = np.zeros((1, *extent.input_shape), np.int32 if tokens else np.float32)
    objective = named_objective(settings.train.objective)
    labels = np.zeros((1, *extent.input_shape) if tokens else (1,), np.int32)
    if not objective.classes:
        labels = np.zeros((*labels.shape, extent.num_classes), np.float32)
    token_rows = token_shape(labels)
    fresh = functools.partial(models.initial_params, module, inputs=jnp.asarray(inputs))
    params = jax.eval_shape(fresh, jax.eval_shape(lambda: jax.random.key(0)))
    rule = meshes.parameters_layout(params, settings.execution.mesh.parameters, mesh)
    params = jax.tree.map(lambda v, where: shape(v.shape, v.dtype, where), params, rule)
    tapped = taps.with_objective(taps.with_temperature(from_model(module), 1.0), objective)
    shapes = jax.eval_shape(tapped.forward, params, inputs)[1]
    own = settings.index
    if not own.taps:  # the choice depends on the weights
        chosen = unnamed(shapes, key=lambda name: math.prod(shapes[name].shape[1:]))
        own = dataclasses.replace(own, taps=(chosen,))
    own = dataclasses.replace(
        own, design=own.design.resolved((extent.num_train, *token_rows[1:]), own.fit)
    )
    frozen = resolve(tapped, params, inputs, own)
    widths = {n: math.prod(v.shape) // math.prod(token_rows) for n, v in shapes.items()}
    bases = frozen.settings.by_site(
        lambda named: ops.basis_shapes(own.basis, {n: widths[n] for n in named})
    )
    execution = Execution(
        mesh, memory=settings.execution.memory, batch_size=settings.execution.batch_size
    )
    one = Examples.trusted(inputs, labels, np.array(["one"]), None)
    return Scene(settings, extent, execution, frozen, one, bases)
