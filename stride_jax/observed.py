"""What the frozen model says about examples: taps, logits and labels, of a batch or of them all."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.draws import signs_of
from stride_jax.examples import Examples
from stride_jax.inputs import described, read_rows
from stride_jax.objectives import CROSS_ENTROPY, Hessian, Objective
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.programs import Program, shape, shapes_everywhere
from stride_jax.runtime.rows import Rows
from stride_jax.taps import Activations, Params, TappedModel

PullBack = Callable[[jax.Array], jax.Array]

Context = dict[str, jax.Array]
"""What a site needs of each example besides its features, `{name: [N, ...]}`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observed:
    """The frozen model's output on a set of examples; cached once, since it never changes.

    Attributes:
      activations: `{tap: [N, T, D_tap]}`; a classifier has T = 1.
      logits_NxTxC: logits, or outputs of whatever kind the objective reads.
      labels_NxT: int32 true class or next token; float32 `[N, T, M]` where targets are numbers.
      weights_NxT: token weights omega in [0, 1]; a loss is their weighted sum.
      objective: the loss that the model was trained with.
    """

    activations: Activations
    logits_NxTxC: jax.Array
    labels_NxT: jax.Array
    weights_NxT: jax.Array
    objective: Objective = dataclasses.field(default=CROSS_ENTROPY, metadata={"static": True})

    def __len__(self) -> int:
        return self.labels_NxT.shape[0]

    def errors(self) -> jax.Array:
        """e, minus the gradient of each token's loss in its outputs, `[N, T, C]`."""
        return self.objective.errors(self.logits_NxTxC, self.labels_NxT)

    def weighted_errors(self) -> jax.Array:
        """`omega e`, minus the gradient of an example's loss in its outputs, `[N, T, C]`."""
        return self.weighted(self.errors())

    def drawn_errors(self, inputs: Any) -> jax.Array:
        """Errors of random signs, `sqrt(omega) Σ_c s_c r_c` with `H = Σ_c r_c r_cᵀ`, `[N, T, C]`.

        Their expected product `E[e eᵀ]` is `omega H`: what labels drawn from the model's own
        predictions would have, without a sum over classes.

        Args:
          inputs: of these examples, which the signs depend on.
        """
        signs = signs_of(inputs, self.labels_NxT, self.logits_NxTxC.shape[-1])
        hessian = self.objective.hessian(self.logits_NxTxC, self.labels_NxT)
        return jnp.sqrt(self.weights_NxT)[..., None] * hessian.mixed(signs)

    def weighted(self, v_NxTxC: jax.Array) -> jax.Array:
        """Each token's row times its omega."""
        return self.weights_NxT[..., None] * v_NxTxC

    def hessian(self) -> Hessian:
        """Second derivative of each token's loss in its outputs, N T of them."""
        return self.objective.hessian(self.logits_NxTxC, self.labels_NxT).flat()

    def residuals(self) -> jax.Array:
        """`||e_i|| = sqrt(Σ_t omega_t ||e_{i,t}||²)`, `[N]`."""
        squares_NxT = (self.errors() ** 2).sum(axis=-1)
        return jnp.sqrt((self.weights_NxT * squares_NxT).sum(axis=1))

    def rows(self, rows: jax.Array) -> "Observed":
        """Some of the examples."""
        return jax.tree.map(lambda v: v[rows], self)

    def without_taps(self) -> "Observed":
        """The same without activations, once features are made of them."""
        return dataclasses.replace(self, activations={})


Forward = Callable[[Params, Any, Any], tuple[Observed, Context]]
"""`(params, site, batch) -> (Observed, Context)`, traced inside the programs that read examples."""


class Source(NamedTuple):
    """Examples as a compiled program reads them.

    Attributes:
      forward: traced; runs the frozen model on a batch.
      params: its first argument.
      data: arrays with one row per example, what `forward` takes as a batch.
      dtype: as in `TappedModel`.
    """

    forward: Forward
    params: Params
    data: Any
    dtype: str | None = None

    @property
    def num_rows(self) -> int:
        """N, rows of the data."""
        return jax.tree.leaves(self.data)[0].shape[0]

    def extent(self, site: Any) -> tuple[int, int]:
        """T tokens and C classes of one example."""
        one = jax.tree.map(lambda v: jax.ShapeDtypeStruct((1, *v.shape[1:]), _dtype(v)), self.data)
        return jax.eval_shape(self.forward, self.params, site, one)[0].logits_NxTxC.shape[1:]  # pyright: ignore[reportReturnType]


def _dtype(v: Any) -> Any:
    return jax.dtypes.canonicalize_dtype(v.dtype)


def _as_given(params: Params, site: Any, batch: Any) -> tuple[Observed, Context]:
    del params, site
    return batch


def observed_source(observed: Observed, context: Context, params: Params = None) -> Source:
    """A source of examples that were observed before; `params` serve a residual site."""
    return Source(_as_given, params, (observed, context))


def forward_batch(
    tapped: TappedModel, params: Params, inputs: Any, labels: jax.Array, weights: jax.Array
) -> Observed:
    """The frozen model on a batch: the pure form of `forward_all`, for use within `jit`.

    Args:
      tapped, params: the model.
      inputs, labels, weights: as in `Examples`; labels are not checked.
    """
    return _as_tokens(tapped.objective, *tapped.forward(params, inputs), labels, weights)


def forward_and_pull(
    tapped: TappedModel, params: Params, batch: dict[str, jax.Array], tap: str
) -> tuple[Observed, PullBack]:
    """`forward_batch`, and what takes gradients of the logits back to a tap.

    Args:
      tapped, params: the model; it has a `suffix` or `shifted`.
      batch: `inputs`, `labels`, `weights`.
      tap: its name.

    Returns:
      The output, and `[N, T, C] -> [N, T, D]`: `Jᵀ v` of the layers after the tap, in the model's
      own dtype. With `shifted` its layers run once for both, else those after it run twice.
    """
    inputs = batch["inputs"]
    if tapped.shifted is not None:
        shift = jax.eval_shape(tapped.forward, params, inputs)[1][tap]
        run = lambda z: tapped.shifted(params, inputs, {tap: z})  # noqa: E731  # pyright: ignore[reportOptionalCall]
        logits, pull_back, activations = jax.vjp(
            run, jnp.zeros(shift.shape, shift.dtype), has_aux=True
        )
    else:
        logits, activations = tapped.forward(params, inputs)
        assert tapped.suffix is not None, "a residual site has a suffix"
        rest = functools.partial(tapped.suffix, params, inputs)
        _, pull_back = jax.vjp(lambda z: rest({tap: z}), activations[tap])
    labels, weights = batch["labels"], batch["weights"]
    observed = _as_tokens(tapped.objective, logits, activations, labels, weights)

    def pulled(errors_NxTxC: jax.Array) -> jax.Array:
        z = pull_back(errors_NxTxC.reshape(logits.shape).astype(logits.dtype))[0]
        return z.reshape(observed.activations[tap].shape).astype(jnp.float32)

    return observed, pulled


def forward_all(
    tapped: TappedModel,
    params: Params,
    examples: Examples,
    execution: Execution = Execution(),
    *,
    batch_size: int = 512,
) -> Observed:
    """Run the frozen model once over all examples and hold its activations and logits.

    Args:
      tapped, params: the model.
      examples: N of them.
      execution: examples are split over all devices of its mesh; this process's by default.
      batch_size: examples per step; rounded up to a multiple of the devices.

    Returns:
      `Observed`, float32, a classifier's arrays with T = 1 and activations flattened.

    Raises:
      ValueError: examples that do not fit the model, or logits that are not finite.
    """
    check_fit(tapped, params, examples)
    logits, activations = _run(tapped.forward, params, examples, execution, batch_size)
    refuse_not_finite(logits)
    labels, weights = examples.labels, token_weights(examples)
    own = jax.tree.map(jnp.asarray, (logits, activations, labels, weights))
    return _as_tokens(tapped.objective, *own)


def activations_of(
    tapped: TappedModel, params: Params, examples: Examples, execution: Execution = Execution()
) -> Activations:
    """`forward_all` without logits, which are not computed, on the host.

    Args:
      tapped, params: the model.
      examples: a sample.
      execution: devices; as many examples at a time as leave half of the memory, were there logits.

    Returns:
      `{tap: [N, T, D]}`, float32; of a classifier T = 1.
    """
    one = read_rows(examples.inputs, slice(0, 1))
    most = _most_at_once(tapped, params, one, execution)
    made = _run(_hidden(tapped), params, examples, execution, most)
    tokens = (*examples.token_shape, 1)[:2]
    for activation in made.values():
        refuse_not_finite(activation)
    return {name: v.reshape(*tokens, -1) for name, v in made.items()}


def activations_program(
    tapped: TappedModel, params: Params, examples: Examples, count: int, execution: Execution
) -> Program:
    """The compiled step of `activations_of` for `count` examples; traced in the mesh's scope.

    Args:
      tapped: the model.
      params: its parameters, or their shapes.
      examples: one at least, like those of the sample.
      count: size of the sample.
      execution: as in `activations_of`.
    """
    mesh = meshes.local_mesh() if execution.mesh is None else execution.mesh
    one = read_rows(examples.inputs, slice(0, 1))
    size = -(-min(_most_at_once(tapped, params, one, execution), count) // mesh.size) * mesh.size
    rows = meshes.over_examples(mesh)
    inputs = jax.tree.map(lambda v: shape((size, *v.shape[1:]), v.dtype, rows), one)
    args = shapes_everywhere(params, meshes.replicated(mesh)), inputs
    return Program(_hidden(tapped), args, {}, -(-count // size), size)


def _most_at_once(tapped: TappedModel, params: Params, one: Any, execution: Execution) -> int:
    """Examples at a time that leave half of the memory, were there logits."""
    leaves = jax.tree.leaves(jax.eval_shape(tapped.forward, params, one))
    mesh = meshes.local_mesh() if execution.mesh is None else execution.mesh
    each = 4 * sum(math.prod(leaf.shape) for leaf in leaves)
    return min(512, max(1, execution.memory // 2 // each) * mesh.size)


@functools.lru_cache(maxsize=64)
def _hidden(tapped: TappedModel) -> Callable[[Params, Any], Activations]:
    return jax.jit(lambda params, inputs: tapped.forward(params, inputs)[1])


def _run(
    run: Callable[[Params, Any], Any],
    params: Params,
    examples: Examples,
    execution: Execution,
    batch_size: int,
) -> Any:
    """A model's output on all examples, float32 on the host, batch by batch over the devices."""
    mesh = meshes.local_mesh() if execution.mesh is None else execution.mesh
    params, parts = meshes.everywhere(params, mesh), []
    size = -(-min(batch_size, len(examples)) // mesh.size) * mesh.size
    for start in execution.progress(range(0, len(examples), size), desc="forward"):
        rows = read_rows(examples.inputs, slice(start, start + size))
        rows = jax.tree.map(lambda v: meshes.pad_rows(v, size), rows)
        with jax.set_mesh(mesh):  # as `traced_over`, outside of a program
            output = run(params, meshes.place(rows, meshes.over_examples(mesh)))
        real = min(size, len(examples) - start)  # padding need not travel
        parts.append(jax.tree.map(lambda v: meshes.fetch(v[:real]).astype(np.float32), output))  # noqa: B023
    return jax.tree.map(lambda *v: np.concatenate(v), *parts)


def token_weights(examples: Examples) -> np.ndarray:
    """Weights omega of every token, float32; ones where the examples have none of their own."""
    if examples.weights is None:
        # One number that stands for all of them.
        return np.broadcast_to(np.float32(1), examples.token_shape)
    return examples.weights


def counted_tokens(objective: Objective, examples: Examples) -> np.ndarray:
    """Whether each token counts, `[N, T]`: of some weight, and a class where labels are classes."""
    rows = len(examples)
    counted = np.asarray(token_weights(examples)).reshape(rows, -1) > 0
    if objective.classes:
        counted &= np.asarray(examples.labels[:rows]).reshape(rows, -1) != -1
    return counted


def refuse_not_finite(values: np.ndarray) -> None:
    """Refuse logits, or what is made of them, that are not finite.

    Args:
      values: `[N, ...]`.

    Raises:
      ValueError: with the number of examples, and the first.
    """
    finite_N = np.logical_and.reduce(np.isfinite(values), axis=tuple(range(1, values.ndim)))
    bad_N = np.logical_not(finite_N)
    if bad_N.any():
        raise ValueError(
            f"the model's logits are not finite for {int(bad_N.sum())} of {len(values)} examples, "
            f"first of row {int(bad_N.argmax())}; compute them in float32 and check the checkpoint"
        )


def check_fit(tapped: TappedModel, params: Params, examples: Examples) -> None:
    """Refuse examples that do not fit the model or its objective, before anything runs.

    Raises:
      ValueError: inputs that the model can't read, labels of another kind or shape than the
        objective calls for, a single class, or labels outside the classes.
    """
    one = read_rows(examples.inputs, slice(0, 1))
    try:
        shape = jax.eval_shape(tapped.forward, params, one)[0].shape
    except Exception as error:  # each framework raises its own kinds
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"the model fails on inputs {described(examples.inputs)} (one row per example): {first}"
        ) from error
    _check_targets(tapped.objective, examples, shape)


def _check_targets(objective: Objective, examples: Examples, shape: tuple[int, ...]) -> None:
    """Refuse labels of another kind or shape than outputs of `shape` for one example call for."""
    labels, numbers = examples.labels, examples.labels.dtype.kind not in "iu"
    if objective.classes and numbers:
        raise ValueError(
            f"labels of dtype {labels.dtype} are no classes, and the model's loss is "
            f"{objective.name}: use labels.astype(int); or say with which loss of numbers it was "
            "trained: with_objective(model, 'squared_error')"
        )
    if not objective.classes and not numbers:
        raise ValueError(
            f"labels of dtype {labels.dtype} are classes, and the model's loss, {objective.name}, "
            "reads numbers: use labels.astype(float)"
        )
    if (1, *examples.token_shape[1:]) != shape[:-1]:
        fits = (
            "a classifier gives [N, C] and [N], a language model [N, T, C] and [N, T]"
            if objective.classes
            else "[N, C] goes with [N, C], or [N] where C = 1, and [N, T, C] with [N, T, C]"
        )
        raise ValueError(
            f"logits of shape {shape} for one example do not fit labels of shape {labels.shape}: "
            f"{fits}"
        )
    if isinstance(labels, Rows):  # checked when they were written, and batch by batch
        labels = labels.stand_in
    objective.check(labels[:, None] if numbers and labels.ndim == 1 else labels, shape[-1])


def as_training(observed: Observed, doubt: float | None) -> Observed:
    """Training examples as the closed form reads them: in doubt of the model's own certainty.

    `p' = (1 − eps) p + eps / C`. A network that fits its training set exactly has residuals
    `e_y − p` of all but a few examples at zero, as if the others had no influence; held-out
    examples like them are less certain. Losses of unbounded numbers leave outputs as they are.

    Args:
      observed: the frozen model on the training examples.
      doubt: eps, in [0, 1), as `frozen.resolve` leaves it.

    Returns:
      The same with other logits.
    """
    assert doubt is not None, "settings of a frozen model are resolved"
    if doubt:
        doubted = observed.objective.doubted(observed.logits_NxTxC, doubt)
        observed = dataclasses.replace(observed, logits_NxTxC=doubted)
    return observed


def _as_tokens(
    objective: Objective,
    logits: jax.Array,
    activations: Activations,
    labels: jax.Array,
    weights: jax.Array,
) -> Observed:
    """Float32, one output of an example as a token, T = 1, and labels of −1 of weight 0."""
    logits, weights = logits.astype(jnp.float32), weights.astype(jnp.float32)
    if logits.ndim == 2:
        logits, weights = logits[:, None], weights[:, None]
    activations = {
        name: a.reshape(*weights.shape, -1).astype(jnp.float32) for name, a in activations.items()
    }
    if objective.classes:
        labels = labels.reshape(weights.shape)
        counted = labels != -1
        labels = jnp.where(counted, labels, 0).astype(jnp.int32)
        weights = weights * counted.astype(jnp.float32)
    else:
        labels = labels.reshape(*weights.shape, -1).astype(jnp.float32)
    return Observed(activations, logits, labels, weights, objective)
