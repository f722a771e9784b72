"""The frozen model: taps, sites and forms of curvature, resolved once and then only read."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from stride_jax import operators as ops
from stride_jax.examples import Examples
from stride_jax.inputs import read_rows
from stride_jax.model_checks import check_model
from stride_jax.objectives import CROSS_ENTROPY
from stride_jax.observed import (
    Context,
    Forward,
    Observed,
    Source,
    as_training,
    check_fit,
    forward_all,
    forward_and_pull,
    forward_batch,
    observed_source,
    token_weights,
)
from stride_jax.operators import settled
from stride_jax.operators.closed_form import DOUBT, ClosedFormSettings
from stride_jax.operators.fisher import DECAY, RELATIVE
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.progress import silent
from stride_jax.settings import IndexSettings
from stride_jax.taps import INPUT, Params, TappedModel, only, tap_names


class Chunk(NamedTuple):
    """What the frozen model says about some of the examples.

    Attributes:
      rows: which.
      observed: taps, logits and labels.
      contexts: `{site: what it needs of each example besides}`.
    """

    rows: slice
    observed: Observed
    contexts: dict[str, Context]


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenModel:
    """A trained model as the method reads it.

    Attributes:
      tapped: the model, with the taps that the basis or a site reads and no others.
      params: its parameters, laid out over devices or not.
      settings: what makes an index of it, the taps named and the design's kind decided.
      sites: `{site: where operators act}`.
      forms: `{site: form of the curvature}`, one of `operators.moments.FORMS`.
    """

    tapped: TappedModel
    params: Params
    settings: IndexSettings
    sites: dict[str, ops.Site]
    forms: dict[str, str]

    @property
    def signs_C(self) -> jax.Array | None:
        """The signs of the logit site's folding, if it has one."""
        site = self.sites.get("logit")
        return site.signs_C if isinstance(site, ops.FoldedSite) else None

    def source(
        self, examples: Examples, *, training: bool = False, question: ops.Question = ops.LOSS
    ) -> Source:
        """Examples for a program that runs the frozen model on batches of them.

        Args:
          examples: N of them.
          training: whether predictions are doubted, as the closed form reads training examples.
          question: what is asked of the examples.

        Raises:
          ValueError: examples that do not fit the model.
        """
        check_fit(self.tapped, self.params, examples)
        data = {
            "inputs": examples.inputs,
            "labels": examples.labels,
            "weights": token_weights(examples),
        }
        run = self.forward(training=training, question=question)
        return Source(run, self.params, data, self.tapped.dtype)

    def forward(self, *, training: bool = False, question: ops.Question = ops.LOSS) -> Forward:
        """The traced function that runs the model on a batch of a source."""
        doubt = self.settings.closed_form.doubt if training else None
        return _forward(self.tapped, doubt, ops.asked_of(question, self.tapped.objective))

    def observe(self, examples: Examples, execution: Execution = Execution()) -> Chunk:
        """One forward pass over all of these examples; what it says is held in memory."""
        observed = forward_all(self.tapped, self.params, examples, execution)
        contexts = {
            name: site.context(observed, examples.inputs) for name, site in self.sites.items()
        }
        return Chunk(slice(0, len(examples)), observed, contexts)

    def chunks(self, examples: Examples, execution: Execution, desc: str) -> Iterator[Chunk]:
        """`observe`, in equal chunks that take half of the memory at most."""
        shapes = jax.eval_shape(
            self.tapped.forward, self.params, read_rows(examples.inputs, slice(0, 1))
        )
        each = 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes))
        most, count = max(1, execution.memory // 2 // each), len(examples)
        size = -(-count // -(-count // most))
        if size == count:
            yield self.observe(examples, execution)
            return
        within = dataclasses.replace(execution, progress=silent)
        for start in execution.progress(range(0, count, size), desc=desc):
            rows = slice(start, min(start + size, count))
            yield self.observe(examples.take(rows), within)._replace(rows=rows)

    def observed_source(self, site: str, chunk: Chunk, question: ops.Question = ops.LOSS) -> Source:
        """A chunk as the source of a program at one site; the model is not run again."""
        own, observed, context = self.sites[site], chunk.observed, chunk.contexts[site]
        params = self.params if own.reads_params else None
        question = ops.asked_of(question, self.tapped.objective)
        if question != ops.asked_of(ops.LOSS, self.tapped.objective):
            gradient = observed.weighted(
                question.gradient(observed.logits_NxTxC, observed.labels_NxT)
            )
            context = context | {"errors": own.pulled(params, gradient, context)}
        return observed_source(observed, context, params)


def freeze(
    tapped: TappedModel,
    params: Params,
    examples: Examples,
    settings: IndexSettings = IndexSettings(),
    execution: Execution = Execution(),
    *,
    signs_C: jax.Array | None = None,
) -> FrozenModel:
    """Decide once where an index of this model reads and acts.

    Args:
      tapped: the model, from one of the constructors in `adapters`.
      params: its parameters.
      examples: some that it will read; taps are chosen on evenly spaced ones where none are named.
      settings: what makes the index.
      execution: devices.
      signs_C: of an index made before; drawn from the design's seed by default.

    Raises:
      ValueError: examples that do not fit the model; a tap or site that it does not have; outputs
        that are not finite, depend on the rest of the batch, or are probabilities.

    >>> from stride_jax.taps import from_function
    >>> model = from_function(lambda p, x: (x @ p, {"input": x}))
    >>> rows = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    >>> frozen = freeze(model, np.eye(3, 2, dtype=np.float32), Examples(rows, np.arange(6) % 2),
    ...                 IndexSettings(taps=("input",)))
    >>> frozen.sites["logit"].width, frozen.forms
    (2, {'logit': 'exact'})
    """
    check_fit(tapped, params, examples)
    one = read_rows(examples.inputs, slice(0, 1))
    if settings.taps:
        settings = with_sites(tapped, params, one, settings)
    jax.eval_shape(_with_needed(tapped, settings).forward, params, one)  # refuses unknown taps
    check_model(tapped, params, examples, execution)
    if not settings.taps:
        every = tap_names(tapped, params, examples.inputs)
        names = tuple(name for name in every if name not in tapped.layers)
        chosen = _chosen_taps(only(tapped, names), params, examples, execution, names)
        settings = dataclasses.replace(settings, taps=chosen)
    design = settings.design.resolved(examples.token_shape, settings.fit)
    closed_form = _for_unsettled(tapped, params, examples, settings, execution)
    settings = dataclasses.replace(settings, design=design, closed_form=closed_form)
    return resolve(tapped, params, one, settings, signs_C=signs_C)


def resolve(
    tapped: TappedModel,
    params: Params,
    one: Any,
    settings: IndexSettings,
    *,
    signs_C: jax.Array | None = None,
) -> FrozenModel:
    """`freeze` from shapes alone: no parameter is read, nothing is checked or chosen.

    Args:
      tapped, settings, signs_C: as in `freeze`, the taps named.
      params: arrays or their shapes.
      one: a batch of one example's inputs.
    """
    settings = with_sites(tapped, params, one, settings)
    closed_form = settings.closed_form
    if closed_form.doubt is None:
        closed_form = dataclasses.replace(closed_form, doubt=DOUBT)
    if closed_form.decay is None:
        closed_form = dataclasses.replace(closed_form, decay=DECAY)
    if closed_form.damping is None and not tapped.objective.classes:
        closed_form = dataclasses.replace(closed_form, damping=RELATIVE)
    settings = dataclasses.replace(settings, closed_form=closed_form)
    wanted = _with_needed(tapped, settings)
    logits, activations = jax.eval_shape(wanted.forward, params, one)
    tokens, classes = math.prod(logits.shape[1:-1]), logits.shape[-1]
    widths = {name: math.prod(v.shape) // tokens for name, v in activations.items()}
    sites: dict[str, ops.Site] = {}
    for name in settings.sites:
        if (tap := ops.tap_of(name)) is not None:
            sites[name] = _inner_site(wanted, name, tap, activations[tap].shape[1:], logits.shape)
        elif 0 < settings.output_rank < classes:
            signs = ops.draw_signs(classes, settings.design.seed) if signs_C is None else signs_C
            sites[name] = ops.FoldedSite(settings.output_rank, signs)
        else:
            sites[name] = ops.LogitSite(classes)
    forms = {}
    for name, site in sites.items():
        depth = sum(widths[tap] for tap in settings.taps_of(name))
        forms[name] = settings.closed_form.form(min(settings.basis.rank, depth) + 1, site)
    return FrozenModel(wanted, params, settings, sites, forms)


def evenly_spaced(examples: Examples, tokens: int) -> Examples:
    """Evenly spaced examples of about so many tokens altogether; all if there are fewer."""
    each = math.prod(examples.token_shape[1:])
    count = min(len(examples), -(-tokens // each))
    return examples.take(np.unique(np.linspace(0, len(examples) - 1, count).astype(int)))


def on_one_device(params: Params, execution: Execution) -> Execution:
    """Small work whose rounding should not depend on the devices, unless the model is split."""
    return dataclasses.replace(execution, mesh=meshes.mesh_of(params) or meshes.single_mesh())


def _with_needed(tapped: TappedModel, settings: IndexSettings) -> TappedModel:
    """The model with the taps that the basis or a site reads; with all while none are named."""
    steered = [tap for site in settings.sites if (tap := ops.tap_of(site)) is not None]
    needed = tuple(dict.fromkeys([*settings.every_tap(), *steered]))
    return only(tapped, needed) if needed else tapped


def _inner_site(
    tapped: TappedModel, name: str, tap: str, shape: tuple[int, ...], logits: tuple[int, ...]
) -> ops.ResidualSite | ops.LayerSite:
    """A site inside the network, of a tap and of logits of these shapes."""
    if tapped.suffix is None:
        raise ValueError(
            f"site {name!r} needs the rest of the network as a function of the tap: every adapter "
            "gives the tapped model a suffix; give from_function one"
        )
    units = math.prod(shape) // math.prod(logits[1:-1])
    layer = ops.ResidualSite(units, tap, tuple(shape), tapped.suffix)
    if name == tap:
        return layer
    if len(logits) > 2:
        raise ValueError(
            f"site {name!r} steers the logits through a layer too, which is for models of one "
            f"output an example, and this one has logits {logits}: use sites=('logit', {tap!r})"
        )
    return ops.LayerSite(units + int(logits[-1]), layer)  # pyright: ignore[reportGeneralTypeIssues]


# What a layer site takes that nobody asked for: a row of curvature for every class of an example,
# and K matrices of R O numbers.
_MOST_CLASSES, _MOST_NUMBERS = 32, 20_000


def with_sites(
    tapped: TappedModel, params: Params, one: Any, settings: IndexSettings
) -> IndexSettings:
    """The settings with sites: where none are named, the logits, and with them the first layer of a
    classifier whose basis reads the input, if it says where that is (`TappedModel.layers`).

    Args:
      tapped, params, one, settings: as in `resolve`, the taps named.
    """
    if settings.sites:
        return settings
    chosen, auto = ops.LOGIT_SITE, (settings.fit, settings.closed_form.fisher)
    reads_input = settings.taps == (INPUT,) and auto == ("closed_form", "auto")
    if tapped.layers and reads_input and tapped.objective.classes:
        logits, activations = jax.eval_shape(tapped.forward, params, one)
        depth, units = (math.prod(activations[tap].shape[1:]) for tap in (INPUT, tapped.layers[0]))
        rank, classes = min(settings.basis.rank, depth) + 1, int(logits.shape[-1])
        small = classes <= _MOST_CLASSES and rank * (units + classes) <= _MOST_NUMBERS
        if logits.ndim == 2 and small:
            chosen = tapped.layers[0] + ops.WITH_LOGIT
    return dataclasses.replace(settings, sites=(chosen,))


def _chosen_taps(
    tapped: TappedModel,
    params: Params,
    examples: Examples,
    execution: Execution,
    names: tuple[str, ...],
    sample: int = 1024,
) -> tuple[str, ...]:
    """The tap whose variation moves the logits most, on evenly spaced training examples."""
    if not names:
        raise ValueError(
            "the model has no taps to read: hand out named floating-point activations, such as "
            "{'embedding': …}; inputs of integers are none"
        )
    if len(names) == 1:
        return names
    if tapped.suffix is None:
        warnings.warn(
            f"this model has no suffix, so no tap can be chosen: the basis reads all of "
            f"{list(names)}; name some with IndexSettings(taps=…)",
            stacklevel=4,
        )
        return names
    few = evenly_spaced(examples, sample)
    observed = forward_all(tapped, params, few, on_one_device(params, execution))
    return (ops.choose_tap(ops.tap_energies(tapped, params, observed, few.inputs)),)


def _for_unsettled(
    tapped: TappedModel,
    params: Params,
    examples: Examples,
    settings: IndexSettings,
    execution: Execution,
) -> ClosedFormSettings:
    """Weight decay and the default's doubt, raised where training was stopped early.

    A decay that is named is left alone, and so is a doubt other than the default.
    """
    own = settings.closed_form
    named = own.decay is not None or own.damping is not None or settings.fit != "closed_form"
    if named or tapped.objective.name != CROSS_ENTROPY.name or len(examples.token_shape) > 1:
        return own
    few = evenly_spaced(examples, settled.SAMPLE)
    read = only(tapped, settings.every_tap())
    classes = jax.eval_shape(read.forward, params, read_rows(few.inputs, slice(0, 1)))[0].shape[-1]
    if classes > settled.MOST_CLASSES:
        return own
    observed = forward_all(read, params, few, on_one_device(params, execution))
    doubt, decay = settled.unsettled(settled.gain(observed, tapped.temperature))
    own = dataclasses.replace(own, decay=decay)
    return (
        own if own.doubt not in (None, DOUBT) else dataclasses.replace(own, doubt=max(doubt, DOUBT))
    )


@functools.lru_cache(maxsize=64)
def _forward(tapped: TappedModel, doubt: float | None, question: ops.Question) -> Forward:
    """Held, so that asking again costs no compilation; `doubt` is None of no training examples."""

    def forward(
        params: Params, site: ops.Site, batch: dict[str, jax.Array]
    ) -> tuple[Observed, Context]:
        layered = isinstance(site, ops.LayerSite)
        if layered or isinstance(site, ops.ResidualSite):
            observed, pull_back = forward_and_pull(tapped, params, batch, site.tap)
        else:
            observed, pull_back = forward_batch(tapped, params, **batch), None
        read = as_training(observed, doubt or 0.0)
        context: dict[str, Any] = site.context(observed, batch["inputs"])
        if pull_back is not None:
            # Weights first: a token moves those after it, which may not count.
            gradient = read.weighted(question.gradient(read.logits_NxTxC, read.labels_NxT))
            context["errors"] = pull_back(gradient)
            if doubt is not None and not layered and read.labels_NxT.shape[1] > 1:
                context["drawn"] = pull_back(read.drawn_errors(batch["inputs"]))
            if layered:
                context["errors"] = ops.with_logits(context["errors"], gradient)
        elif question != ops.asked_of(ops.LOSS, tapped.objective):  # whose errors are the site's
            gradient = read.weighted(question.gradient(read.logits_NxTxC, read.labels_NxT))
            context["errors"] = site.pulled(params, gradient, context)
        return read, context

    return forward
