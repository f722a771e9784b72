"""What a model's outputs on a sample say about attributing it: their precision, certainty, labels.

Each function returns one `Finding`, or none where it does not apply. Letter of its own: n tokens
that count.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.examples import Examples
from stride_jax.inputs import Inputs, read_rows
from stride_jax.model_checks import Finding
from stride_jax.models import fit_temperature
from stride_jax.observed import Observed
from stride_jax.taps import Params, TappedModel

_HALF = ("bfloat16", "float16")
_CERTAIN = 1e-6
_BINS = 15


def precision(tapped: TappedModel, params: Params, few: Examples) -> Finding:
    """The dtype of the parameters, and what the other precision does to the logits.

    Parameters in half precision are compared with float32 ones, and float32 ones with bfloat16.

    Args:
      tapped, params: the model.
      few: some examples.
    """
    leaves = [jnp.asarray(v).dtype for v in jax.tree.leaves(params)]
    kinds = sorted({v.name for v in leaves if jnp.issubdtype(v, jnp.floating)})
    half = [kind for kind in kinds if kind in _HALF]
    inputs = read_rows(few.inputs, slice(None))
    logits, activations = jax.eval_shape(tapped.forward, params, inputs)
    inside = sorted({v.dtype.name for v in (logits, *activations.values())} & set(_HALF))
    said = f"parameters {', '.join(kinds) or 'of no floating type'}"
    if inside and not half:
        return Finding(
            "precision", "note", f"{said}, but the model computes in {', '.join(inside)} inside",
            "compare with its float32 form, if it has one",
        )  # fmt: skip
    other = "float32" if half else "bfloat16"
    own = np.asarray(tapped(params, inputs)[0], np.float32)
    try:
        cast = _cast(params, other), (inputs if half else _cast(inputs, other))
        there = np.asarray(tapped(*cast)[0], np.float32)
    except Exception as error:  # each framework raises its own kinds
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return Finding("precision", "note", f"{said}; it can't be run in {other}: {first}")
    if np.isfinite(own).all() and not np.isfinite(there).all():
        return Finding(
            "precision", "note", f"{said}; in {other} its logits are not finite",
            f"keep it in {', '.join(kinds)}",
        )  # fmt: skip
    if not np.isfinite(own).all():
        if half and np.isfinite(there).all():
            return Finding(
                "precision", "error",
                f"{said}: its logits are not finite, and in float32 they are: it overflows",
                "cast the parameters to float32",
            )  # fmt: skip
        return Finding("precision", "ok", f"{said}; {other} changes nothing about its logits")
    largest = max(float(np.abs(own).max()), 1e-6)
    moved = float(np.abs(own - there).max())
    flipped, also = 0.0, ""
    if tapped.objective.classes:
        flipped = float((own.argmax(axis=-1) != there.argmax(axis=-1)).mean())
        also = f" and {flipped:.1%} of predictions"
    said = f"{said}; {other} moves logits by {moved:.2g} at most (largest {largest:.3g}){also}"
    if half and (moved > 0.05 * largest or flipped > 0.02):
        return Finding(
            "precision",
            "warning",
            said,
            "cast the parameters to float32: rounding is in its scores",
        )
    return Finding("precision", "ok", said)


def _cast(tree: Any, kind: str) -> Any:
    def one(v: Any) -> Any:
        return jnp.asarray(v, kind) if jnp.issubdtype(jnp.asarray(v).dtype, jnp.floating) else v

    return jax.tree.map(one, tree)


def log_probabilities(observed: Observed) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the tokens that count, `[n, C]` float64, and their labels, `[n]`."""
    counted = np.asarray(observed.weights_NxT) > 0
    logits = np.asarray(observed.logits_NxTxC, np.float64)[counted]
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True), np.asarray(
        observed.labels_NxT
    )[counted]


def saturation(log_p_nxC: np.ndarray) -> Finding:
    """The share of predictions so sure that their error is nothing but rounding."""
    rest_n = -np.expm1(log_p_nxC.max(axis=1))
    share = float((rest_n < _CERTAIN).mean())
    said = f"{share:.1%} of predictions have p > 1 - {_CERTAIN:g}"
    if share < 0.5:
        return Finding("saturation", "note" if share > 0.1 else "ok", said, _sure(share > 0.1))
    return Finding("saturation", "warning", said, _sure(asked=True))


def _sure(asked: bool) -> str:
    if not asked:
        return ""
    return (
        "divide the logits by a temperature fitted on held-out examples (with_temperature), or "
        "raise closed_form.doubt"
    )


def calibration(log_p_nxC: np.ndarray, labels_n: np.ndarray, *, held_out: bool) -> Finding:
    """Expected calibration error, and the temperature that held-out cross-entropy asks for.

    `ECE = Σ_bins share · |accuracy − mean confidence|`, 15 equal bins of confidence (Guo et al.,
    On calibration of modern neural networks, 2017).

    Args:
      log_p_nxC, labels_n: from `log_probabilities`.
      held_out: whether the model was not trained on them.
    """
    sure_n = np.exp(log_p_nxC.max(axis=1))
    right_n = log_p_nxC.argmax(axis=1) == labels_n
    bin_n = np.minimum((sure_n * _BINS).astype(int), _BINS - 1)
    gap = np.bincount(bin_n, right_n - sure_n, _BINS)
    error = float(np.abs(gap).sum() / len(sure_n))
    tau = fit_temperature(log_p_nxC, labels_n)
    where = "held-out examples" if held_out else "these examples (give held_out= too)"
    said = f"on {where} accuracy {right_n.mean():.1%}, calibration error {error:.3f}"
    said = f"{said}, temperature {tau:.2f}"
    far = tau > 1.5 or (held_out and tau < 1 / 1.5)
    if not (far and error > 0.02):
        return Finding("calibration", "ok", said)
    remedy = f"divide the logits by {tau:.2f}: with_temperature(tapped, {tau:.2f})"
    return Finding("calibration", "warning" if held_out else "note", said, remedy)


def labels(examples: Examples, classes: int) -> Finding:
    """The labels' range, and how evenly they are spread."""
    values = np.asarray(examples.labels)
    counted = values >= 0
    if examples.weights is not None:
        counted &= np.asarray(examples.weights) > 0
    own = values[counted]
    share = float(counted.mean())
    if values.ndim > 1:
        said = f"{share:.1%} of {values.size} tokens count, classes {own.min()} … {own.max()}"
        remedy = "check the padding (-1) and the weights" if share < 0.05 else ""
        return Finding("labels", "warning" if remedy else "ok", f"{said} of {classes}", remedy)
    count = np.bincount(own, minlength=classes)
    largest, absent = count.max() / count.sum(), int((count == 0).sum())
    said = (
        f"{int((count > 0).sum())} of {classes} classes have examples, the smallest of them "
        f"{count[count > 0].min()}, the largest {count.max()} ({largest:.0%})"
    )
    if largest > 0.95 or (count > 0).sum() < 2:
        return Finding(
            "labels", "warning", said, "give examples of the other classes: what is never wrong "
            "has no error to trace",
        )  # fmt: skip
    if absent or count.max() > 20 * count[count > 0].min():
        return Finding("labels", "note", said, "scores of rare classes rest on few examples")
    return Finding("labels", "ok", said)


def against_chance(log_p_nxC: np.ndarray, labels_n: np.ndarray) -> Finding:
    """Whether the model does better on the labels than one that knows nothing.

    Args:
      log_p_nxC, labels_n: from `log_probabilities`, of training examples.
    """
    classes = log_p_nxC.shape[1]
    loss = float(-np.take_along_axis(log_p_nxC, labels_n[:, None], axis=1).mean())
    said = f"mean loss {loss:.3f} nats; knowing nothing costs log {classes} = {np.log(classes):.3f}"
    if loss > np.log(classes) + 0.05:
        return Finding(
            "loss", "warning", said,
            "check that labels count as in training, that inputs are preprocessed as there, and "
            "the checkpoint",
        )  # fmt: skip
    return Finding("loss", "ok", said)


def numbers(examples: Examples) -> Finding:
    """The range of targets that are numbers, and whether they vary."""
    counted = slice(None) if examples.weights is None else np.asarray(examples.weights) > 0
    own = np.asarray(examples.labels, np.float64)[counted]
    own = own.reshape(-1, own.shape[-1] if examples.labels.ndim > 1 else 1)
    said = f"{own.shape[1]} numbers each, {own.min():.3g} to {own.max():.3g}, deviation "
    said = f"{said}{own.std(axis=0).min():.3g}"
    if own.std(axis=0).max() <= 1e-6 * max(np.abs(own).max(), 1e-30):
        return Finding("labels", "warning", said, "give targets that differ between examples")
    return Finding("labels", "ok", said)


def against_mean(observed: Observed) -> Finding:
    """Whether the model's loss is below that of its own mean output for every example."""
    w_NxT, o_NxTxC = observed.weights_NxT, observed.logits_NxTxC
    mean_C = (w_NxT[..., None] * o_NxTxC).sum(axis=(0, 1)) / jnp.maximum(w_NxT.sum(), 1e-30)
    mean_1x1xC = mean_C[None, None]
    gain_NxT = observed.objective.drop(o_NxTxC - mean_1x1xC, mean_1x1xC, observed.labels_NxT)
    gain = float((w_NxT * gain_NxT).sum() / jnp.maximum(w_NxT.sum(), 1e-30))
    said = f"mean loss {gain:.3g} nats below that of the mean output for every example"
    if gain <= 0:
        return Finding(
            "loss", "warning", said.replace("below", "(not) below"),
            "check that targets are scaled as in training, and with_objective names its loss",
        )  # fmt: skip
    return Finding("loss", "ok", said)


def shifted_labels(observed: Observed, inputs: Inputs) -> Iterator[Finding]:
    """Whether a language model's labels are off by one place: its loss on those beside is lower.

    Args:
      observed: sequences.
      inputs: theirs.
    """
    labels_NxT, length = np.asarray(observed.labels_NxT), observed.labels_NxT.shape[1]
    if length < 3:
        return
    counted = np.asarray(observed.weights_NxT) > 0
    log_p = np.asarray(jax.nn.log_softmax(observed.logits_NxTxC), np.float64)
    found = []
    for places in (1, -1):
        here = slice(0, length - 1) if places > 0 else slice(1, length)
        there = slice(1, length) if places > 0 else slice(0, length - 1)
        both = counted[:, here] & counted[:, there]
        if both.any():
            mean = [
                -np.take_along_axis(log_p[:, here], labels_NxT[:, at][..., None], 2)[..., 0][
                    both
                ].mean()
                for at in (here, there)
            ]
            found.append((float(mean[0]), float(mean[1]), places))
    if not found:
        return
    given, other, places = max(found, key=lambda one: one[0] - one[1])
    said = f"mean loss {given:.3f} nats, {other:.3f} with every label moved by one place"
    tokens = [v for v in jax.tree.leaves(inputs) if v.shape == labels_NxT.shape]
    same = max((float((v == labels_NxT)[counted].mean()) for v in tokens), default=0.0)
    if given - other > max(0.2, 0.2 * given):
        way = "labels[:, :-1] = inputs[:, 1:]" if places > 0 else "labels[:, 1:] = labels[:, :-1]"
        yield Finding(
            "shift of the labels", "error", f"{said}: the model was trained on the latter",
            f"a label is the token after its input: {way}, and -1 where none is known",
        )  # fmt: skip
    elif same > 0.95:
        yield Finding(
            "shift of the labels", "warning", f"{same:.0%} of labels are the input at their place",
            "a label is the token after its input: labels[:, :-1] = inputs[:, 1:], -1 at the end",
        )  # fmt: skip
    else:
        yield Finding("shift of the labels", "ok", said)
