"""Before a run: is this model safe to attribute, and what will its index cost?

    report = stride_jax.check(tapped, params, examples)
    print(report)

A few forward passes of a sample; nothing is fitted.
"""

import dataclasses
import math
import textwrap
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from stride_jax import check_outputs as outputs
from stride_jax import design as designs
from stride_jax import operators as ops
from stride_jax.examples import Examples
from stride_jax.fitting import fit_programs
from stride_jax.frozen import FrozenModel, evenly_spaced, freeze
from stride_jax.inputs import read_rows
from stride_jax.model_checks import LEVELS, Finding, forward_findings
from stride_jax.observed import Observed, check_fit, forward_all
from stride_jax.operators.closed_form import ClosedFormSettings
from stride_jax.operators.fisher import DECAY
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import plain
from stride_jax.runtime.flops import bytes_held, count_flops
from stride_jax.runtime.memory import memory_bytes
from stride_jax.settings import IndexSettings
from stride_jax.taps import Params, TappedModel, tap_names

# Tokens of the sample, and rows whose precision is compared.
_SAMPLE = 4096
_FEW = 64
# Share of a large product's speed that the programs of a fit reach.
_UTILISATION = 0.4
_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Report:
    """What was checked, in order.

    Attributes:
      findings: one for each thing.

    >>> print(Report((Finding("finite", "ok", "all"), Finding("taps", "note", "none", "name one"))))
    ok       finite  all
    note     taps    none
                     -> name one
    """

    findings: tuple[Finding, ...]

    @property
    def level(self) -> str:
        """The worst level of all findings."""
        return max((one.level for one in self.findings), key=LEVELS.index, default="ok")

    def __getitem__(self, name: str) -> Finding:
        """The finding of a name.

        Raises:
          KeyError: nothing of this name was checked.
        """
        for one in self.findings:
            if one.name == name:
                return one
        raise KeyError(name)

    def __str__(self) -> str:
        width = max((len(one.name) for one in self.findings), default=0)
        lines = []
        for one in self.findings:
            start = f"{one.level:<9}{one.name:<{width}}  "
            lines += _wrapped(start, one.measured)
            lines += _wrapped(" " * len(start) + "-> ", one.remedy) if one.remedy else []
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON values: `level`, and `findings` with name, level, measured and remedy each."""
        return {"level": self.level, "findings": plain(self.findings)}


def _wrapped(start: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def check(
    tapped: TappedModel,
    params: Params,
    examples: Examples,
    settings: IndexSettings = IndexSettings(),
    *,
    held_out: Examples | None = None,
    execution: Execution = Execution(),
) -> Report:
    """Check a model, its training examples and settings before an index is made of them.

    Args:
      tapped, params: the model.
      examples: the training set.
      settings: what would make the index.
      held_out: examples that it was not trained on, for its calibration.
      execution: devices, memory.

    Returns:
      Findings, of level `ok`, `note`, `warning` or `error`. With an error `fit` would refuse the
      model, or its scores would mean nothing.

    >>> import numpy as np
    >>> import stride_jax
    >>> model = stride_jax.from_function(lambda w, x: (jax.nn.softmax(x @ w), {"input": x}))
    >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    >>> report = check(model, 4 * np.eye(3, dtype=np.float32), Examples(x, x.argmax(axis=1)))
    >>> report.level, report["logits"].remedy
    ('error', 'give logits, such as log p, whose softmax they are')
    """
    return Report(tuple(_findings(tapped, params, examples, settings, held_out, execution)))


def _findings(
    tapped: TappedModel,
    params: Params,
    examples: Examples,
    settings: IndexSettings,
    held_out: Examples | None,
    execution: Execution,
) -> Iterator[Finding]:
    try:
        for some in (examples, held_out):
            if some is not None:
                check_fit(tapped, params, some)
    except ValueError as error:
        yield _refused("inputs and labels", error)
        return
    early = list(forward_findings(tapped, params, examples, execution))
    yield from early
    yield outputs.precision(tapped, params, examples.take(slice(0, _FEW)))
    if tapped.objective.classes:
        one = read_rows(examples.inputs, slice(0, 1))
        classes = jax.eval_shape(tapped.forward, params, one)[0].shape[-1]
        yield outputs.labels(examples, classes)
    else:
        yield outputs.numbers(examples)
    errors = [one for one in early if one.level == "error"]
    if not any(one.name == "finite" for one in errors):
        try:
            yield from _of_sample(tapped, params, examples, held_out, execution)
        except ValueError as error:  # not finite beyond the first few
            errors.append(_refused("finite, sample", error))
            yield errors[-1]
    if not errors:
        yield from _of_fit(tapped, params, examples, settings, execution)


def _refused(name: str, error: ValueError) -> Finding:
    """An error's message as a finding."""
    measured, _, remedy = str(error).rpartition("; ")
    if not measured:
        measured, _, remedy = str(error).partition(": ")
    return Finding(name, "error", measured, remedy)


def _of_sample(
    tapped: TappedModel,
    params: Params,
    examples: Examples,
    held_out: Examples | None,
    execution: Execution,
) -> Iterator[Finding]:
    """What the model says about evenly spaced examples."""

    def observed(some: Examples) -> tuple[Observed, Examples]:
        few = evenly_spaced(some, _SAMPLE)
        return forward_all(tapped, params, few, execution).without_taps(), few

    own, few = observed(examples)
    if not tapped.objective.classes:
        yield outputs.against_mean(own)
        return
    log_p_nxC, labels_n = outputs.log_probabilities(own)
    if len(labels_n) == 0:
        return
    yield outputs.against_chance(log_p_nxC, labels_n)
    yield outputs.saturation(log_p_nxC)
    if held_out is None:
        yield outputs.calibration(log_p_nxC, labels_n, held_out=False)
    else:
        yield outputs.calibration(*outputs.log_probabilities(observed(held_out)[0]), held_out=True)
    yield from outputs.shifted_labels(own, few.inputs)


# ── the index ────────────────────────────────────────────────────────────────────────────────────


def _of_training(resolved: ClosedFormSettings) -> Iterator[Finding]:
    """Whether a classifier was found to have been stopped early."""
    if resolved.decay is not None and resolved.decay > DECAY:
        yield Finding(
            "training", "note",
            f"stopped early: a weight decay of {resolved.decay:.3g} and a doubt of "
            f"{resolved.doubt:.3g} are used",
            "train longer, as scores of a model that has settled are more faithful; or name "
            "closed_form.decay",
        )  # fmt: skip


def _of_fit(
    tapped: TappedModel,
    params: Params,
    examples: Examples,
    settings: IndexSettings,
    execution: Execution,
) -> Iterator[Finding]:
    """Which taps an index would read, and what fitting it would cost."""
    names = tap_names(tapped, params, examples.inputs)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            frozen = freeze(tapped, params, examples, settings, execution)
        except ValueError as error:
            yield _refused("taps", error)
            return
    chosen = frozen.settings.taps
    by = "named by the settings" if settings.taps else "the one that moves the logits most"
    measured = f"the model has {', '.join(names)}; read: {', '.join(chosen)} ({by})"
    if not settings.taps and len(chosen) > 1:
        told = next((str(one.message) for one in said if "suffix" in str(one.message)), "")
        yield Finding("taps", "note", f"the model has {', '.join(names)}", told)
    else:
        yield Finding("taps", "ok", measured)
    yield from _of_training(frozen.settings.closed_form)
    design = frozen.settings.design
    try:
        designs.known_membership(design, examples.ids, examples.keys)
    except ValueError as error:
        yield _refused("design", error)
        return
    joins = f"{design.degree} of" if design.kind == "hash" else "one of"
    yield Finding("design", "ok", f"each example joins {joins} {design.num_subsets} subsets")
    if settings.fit == "joint":
        yield Finding("cost", "note", "not estimated for joint training", "see stride-jax plan")
    else:
        yield cost_of_fit(frozen, examples, execution)


def cost_of_fit(frozen: FrozenModel, examples: Examples, execution: Execution) -> Finding:
    """Bytes and seconds of a fit, from the shapes of its programs and the speed of a product.

    Seconds are a lower bound: they leave out samples, transfers and compilation.

    Args:
      frozen: the model.
      examples: the training set.
      execution: devices, memory.
    """
    one, settings = examples.take(slice(0, 1)), frozen.settings
    shapes = jax.eval_shape(frozen.tapped.forward, frozen.params, one.inputs)[1]
    widths = {n: math.prod(v.shape) // math.prod(one.token_shape) for n, v in shapes.items()}
    bases = settings.by_site(
        lambda taps: ops.basis_shapes(settings.basis, {n: widths[n] for n in taps})
    )
    held, flops, stored = 0, 0.0, 0
    for name, site in frozen.sites.items():
        programs = fit_programs(frozen, name, bases[name], one, len(examples), execution)
        held = max(held, *(bytes_held(own.args) for own in programs.values()))
        flops += sum(
            own.calls * count_flops(own.step, *own.args, **own.statics) for own in programs.values()
        )
        stored += 4 * settings.design.num_subsets * (bases[name].rank * site.width + 1)
        sums = programs["solve"].args[0]
        fisher = jax.eval_shape(
            lambda v: ops.fisher_of(
                v, settings.precision, invariant=frozen.tapped.objective.invariant
            ),
            sums,
        )
        stored += sum(math.prod(v.shape) * v.dtype.itemsize for v in jax.tree.leaves(fisher))
    devices = execution.mesh_for(settings.design.num_subsets).size
    seconds = flops / (devices * _UTILISATION * _speed())
    total, most = held + execution.memory, _device_bytes()
    said = (
        f"a fit of {len(examples)} examples takes about {total / 2**30:.2f} GiB per device, of "
        f"which up to {execution.memory / 2**30:.2f} are temporary, at least {_time(seconds)} "
        f"after compilation, and makes an index of {stored / 2**20:.0f} MiB"
    )
    if most is not None and total > most:
        return Finding(
            "cost", "warning", f"{said}; a device has {most / 2**30:.2f} GiB",
            "lower Execution(memory=…), index.basis.rank or num_subsets, or use more devices",
        )  # fmt: skip
    return Finding("cost", "ok", said)


def _time(seconds: float) -> str:
    """
    >>> _time(0.2), _time(90), _time(9000)
    ('1 second', '90 seconds', '2.5 hours')
    """
    if seconds > 7200:
        return f"{seconds / 3600:.1f} hours"
    whole = max(1, round(seconds))
    return f"{whole} second{'s' if whole > 1 else ''}"


def _speed(side: int = 1024) -> float:
    """Operations per second of a large product in float32 on one device."""
    x = jnp.ones((side, side), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    took = []
    for _ in range(3):
        began = time.perf_counter()
        product(x, x).block_until_ready()
        took.append(time.perf_counter() - began)
    return 2 * side**3 / min(took)


def _device_bytes() -> int | None:
    """Bytes of a device, or of this machine where devices share its memory; None if unknown."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return memory_bytes() if device.platform == "cpu" else None
