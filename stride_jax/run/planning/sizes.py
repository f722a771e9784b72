"""Bytes of what the stages of a run hold, from shapes alone.

Letter of its own: G groups of tokens that a query is read in.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax

from stride_jax.models import devices_for, make_model
from stride_jax.models.train import optimizer
from stride_jax.run.planning.stages import Scene
from stride_jax.run.settings import RunSettings
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.flops import largest_product

FLOAT = 4
"""Bytes of a float32, and of an int32."""


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Memory that is held at once.

    Attributes:
      host: bytes of the host, those of its devices left out.
      device: bytes of the fullest device.
      devices: bytes of all devices of this process together.
    """

    host: float = 0
    device: float = 0
    devices: float = 0

    def __add__(self, other: "Bytes") -> "Bytes":
        return Bytes(
            self.host + other.host, self.device + other.device, self.devices + other.devices
        )


class Names(NamedTuple):
    """Names that the data have, besides their extent.

    Attributes:
      groups: number of named groups of training examples.
      id_bytes: bytes of a query's id and of a training example's.
    """

    groups: int = 0
    id_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Numbers that the stages share.

    Attributes:
      scene: shapes of the model and the bases.
      names: of the data.
    """

    scene: Scene
    names: Names

    @property
    def settings(self) -> RunSettings:
        return self.scene.settings

    @property
    def num_train(self) -> int:
        return self.scene.extent.num_train

    @property
    def num_queries(self) -> int:
        return self.scene.extent.num_queries

    @property
    def num_subsets(self) -> int:
        return self.settings.index.design.num_subsets

    @property
    def tokens(self) -> int:
        return math.prod(self.scene.one.token_shape[1:])

    @property
    def token_groups(self) -> int:
        """G."""
        group = self.settings.read.measure.group
        return -(-self.tokens // group) if group else 1

    @functools.cached_property
    def devices(self) -> int:
        """Devices of this process."""
        here = jax.process_index()
        return sum(one.process_index == here for one in self.scene.mesh.devices.flat)

    @functools.cached_property
    def params(self) -> int:
        """Bytes of the model's parameters."""
        return _size(self.scene.frozen.params)

    @functools.cached_property
    def state(self) -> int:
        """Bytes of the parameters and of the optimiser's moments."""
        init = optimizer(self.settings.train, 2).init
        return self.params + _size(jax.eval_shape(init, self.scene.frozen.params))

    @functools.cached_property
    def output(self) -> int:
        """Bytes of the largest matrix product of one example, such as its logits."""
        forward, params = self.scene.frozen.tapped.forward, self.scene.frozen.params
        return largest_product(lambda p, x: forward(p, x)[0], params, self.scene.one.inputs)

    def order(self, num_train: int) -> int:
        """Bytes of the orders of all epochs, which models that train together have on a device."""
        return FLOAT * self.settings.train.epochs * num_train

    def batch(self, num_train: int) -> int:
        """Bytes of a batch's inputs and largest product; of one part where it is in several."""
        train = self.settings.train
        batch = min(train.batch_size, num_train)
        part = batch // train.accumulation if batch % train.accumulation == 0 else batch
        return part * (self.scene.one.inputs.nbytes + self.output)

    @property
    def is_sharded(self) -> bool:
        """Whether parameters and moments are split over the mesh."""
        return self.settings.execution.mesh.parameters == "sharded"

    @functools.cached_property
    def training_devices(self) -> int:
        """Devices that a batch of the base model's training is split over."""
        s, scene = self.settings, self.scene
        module = make_model(s.model, scene.extent.num_classes)
        parameters = s.execution.mesh.parameters
        own = devices_for(module, scene.one.inputs, s.train, scene.execution, parameters).mesh
        return own.size if own is not None else 1

    def in_training(self, state: float, batch: float) -> Bytes:
        """A state and a batch over the devices of the base model's training."""
        split = self.training_devices
        if split == 1:
            return on_one(state + batch)
        return self.each((state / split if self.is_sharded else state) + batch / split)

    @functools.cached_property
    def data(self) -> int:
        """Bytes of the training set on each device, where models of a bank train together; on a CPU
        it is the host's, and there already.
        """
        if self.scene.mesh.devices.flat[0].platform == "cpu":
            return 0
        return self.num_train * (self.scene.one.inputs.nbytes + self.scene.one.labels.nbytes)

    @property
    def matrices(self) -> list[int]:
        """Bytes of K x R x O float32 numbers, by site."""
        bases, sites = self.scene.bases, self.scene.frozen.sites.items()
        return [FLOAT * self.num_subsets * bases[name].rank * s.width for name, s in sites]

    @property
    def scores(self) -> int:
        """Bytes of Q x N float32 numbers."""
        return FLOAT * self.num_queries * self.num_train

    @property
    def by_content(self) -> bool:
        """Whether subsets follow content."""
        return self.scene.frozen.settings.design.kind == "clusters"

    @functools.cached_property
    def is_listed(self) -> bool:
        """Whether answers may be lists of the strongest scores (`reading`)."""
        one_row_each = self.token_groups == 1 and not self.settings.read.exact.shrink
        return (
            self.by_content and one_row_each and self.scores > self.settings.execution.memory // 4
        )

    @functools.cached_property
    def is_dense(self) -> bool:
        """Whether scores are surely a whole array."""
        return self.by_content and not self.is_listed

    def each(self, count: float) -> Bytes:
        """The same on every device."""
        return Bytes(0, count, count * self.devices)

    def split(self, count: float) -> Bytes:
        """Divided over the mesh axis of subsets."""
        return self.each(count / self.scene.mesh.shape[meshes.SUBSET])

    # What a stage leaves behind, with all before it.

    @functools.cached_property
    def trained(self) -> Bytes:
        """The base model's checkpoints; one process keeps them split where they are."""
        whole = self.settings.num_checkpoints * self.params
        size = self.scene.mesh.size
        if self.is_sharded and self.devices == size:
            return self.each(whole / size)
        return on_one(whole)

    @functools.cached_property
    def indexed(self) -> Bytes:
        """The index' matrices, in the precision they are kept in."""
        half = 2 if self.settings.index.precision == "float16" else 1
        return self.trained + self.split(sum(self.matrices) / half)

    @functools.cached_property
    def measured(self) -> Bytes:
        """Measurements."""
        rows = self.num_queries * self.token_groups
        return self.indexed + Bytes(FLOAT * rows * self.num_subsets)

    @functools.cached_property
    def scored(self) -> Bytes:
        """Scores; those in compressed rows are left out."""
        return self.measured + Bytes(self.scores if self.is_dense else 0)


def _size(tree: Any) -> int:
    return sum(math.prod(v.shape) * v.dtype.itemsize for v in jax.tree.leaves(tree))


def on_one(count: float) -> Bytes:
    """On the first device."""
    return Bytes(0, count, count)
