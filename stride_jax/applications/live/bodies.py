"""What is asked over HTTP, checked before it joins the line: a prompt, an image, or a row.

Bodies are JSON objects. Text: `prompt`, and perhaps `completion`, `against`, `tokens`, `question`,
`seed`. Images: `image`, a PNG or JPEG file in base64. Tables: `row`, numbers in the units of the
data set. Of the last two the `label` is the model's own prediction unless it is given. `top` says
how many proponents and opponents; `form`, whether the answer is for programs or for the page.
"""

import base64
import binascii
import dataclasses
import io
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from stride_jax.data.source import Scaling, scaled
from stride_jax.examples import Examples
from stride_jax.run.pipeline import Run

FORMS = ("answer", "page")
MOST_SHOWN = 100
"""Proponents, and opponents, of an answer at most."""

_TEXT = ("prompt", "completion", "against", "tokens", "question", "seed")
_PIXELS = 20_000_000
_LETTERS = 200_000
_FORMATS = ("PNG", "JPEG")


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
      text: fields of a question to a language model; none otherwise.
      values: an image `[H, W, channels]` uint8, or a table's row `[columns]`, as the data set has
        it; None for text.
      label: its class or numbers; None for the model's own.
      top: proponents, and opponents.
      form: one of `FORMS`.
    """

    text: Mapping[str, Any]
    values: np.ndarray | None
    label: Any
    top: int
    form: str


def question_of(run: Run, body: Any) -> Question:
    """A question from a body's JSON.

    Args:
      run: that is asked.
      body: any JSON value.

    Raises:
      ValueError: what is wrong with the body, and what it should be.
    """
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object, such as " + _example(run))
    fields = _fields(run)
    if unknown := sorted(set(body) - {*fields, "top", "form"}):
        raise ValueError(f"unknown field {unknown[0]!r}: use {', '.join((*fields, 'top', 'form'))}")
    top, form = body.get("top", 3), body.get("form", FORMS[0])
    if not _is_whole(top) or not 1 <= top <= MOST_SHOWN:
        raise ValueError(f"top must be an integer from 1 to {MOST_SHOWN}")
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}")
    if run.settings.is_text:
        return Question(_text(body), None, None, top, form)
    if fields[0] not in body:
        raise ValueError(f"there is no {fields[0]!r}: send a body such as {_example(run)}")
    shape = run.query.inputs.shape[1:]
    values = _image(body["image"], shape) if fields[0] == "image" else _row(body["row"], shape)
    return Question({}, values, _label(run, body.get("label")), top, form)


def _fields(run: Run) -> tuple[str, ...]:
    if run.settings.is_text:
        return _TEXT
    return ("image" if run.query.inputs.ndim == 4 else "row", "label")


def _example(run: Run) -> str:
    shown = {"prompt": '{"prompt": "In the beginning"}', "row": '{"row": [0.5, 1.2]}'}
    return shown.get(_fields(run)[0], '{"image": "<a PNG file in base64>"}')


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(body: Mapping[str, Any]) -> dict[str, Any]:
    asked = {name: body[name] for name in _TEXT if body.get(name) is not None}
    for name, value in asked.items():
        if name == "seed":
            if not _is_whole(value) or not 0 <= value < 2**31:
                raise ValueError("seed must be an integer from 0 to 2147483647")
        elif not isinstance(value, str):
            raise ValueError(f"{name} must be a text")
        elif len(value) > _LETTERS:
            raise ValueError(f"{name} has {len(value)} letters: no model here reads so many")
        else:
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{name} has half a character in it: send whole ones") from None
    if not asked.get("prompt", "").strip():
        raise ValueError("the prompt is empty: write some words for the model to continue")
    return asked


def _image(given: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A picture in the size and colours of the data set, `[H, W, channels]` uint8.

    Raises:
      ValueError: no picture, or one that is too large to be drawn out.
    """
    from PIL import Image

    if not isinstance(given, str):
        raise ValueError("image must be a text: a PNG or JPEG file in base64")
    try:
        data = base64.b64decode(given.partition("base64,")[2] or given, validate=True)
    except binascii.Error:
        raise ValueError("image is not base64: encode the bytes of a PNG or JPEG file") from None
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            if math.prod(picture.size) > _PIXELS:
                raise ValueError(
                    f"image has {picture.size[0]} x {picture.size[1]} pixels: send a smaller one"
                )
            own = picture.convert("L" if shape[2] == 1 else "RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError("image is no PNG or JPEG file that can be read") from None
    resized = own.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.uint8).reshape(shape)


def _row(given: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A table's row, `[columns]` float32.

    Raises:
      ValueError: another number of columns, or one that is no finite number.
    """
    values = given.replace("\t", ",").split(",") if isinstance(given, str) else given
    if not isinstance(values, list) or len(values) != math.prod(shape):
        count = f"{len(values)} of them" if isinstance(values, list) else "something else"
        raise ValueError(f"row must have {math.prod(shape)} numbers, one a column: got {count}")
    return _numbers(values, "row").reshape(shape)


def _numbers(values: list[Any], name: str) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):
            numbers = np.array([float(one) for one in values]).astype(np.float32)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must have numbers alone") from None
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} must have finite numbers, which a float32 can hold")
    return numbers


def _label(run: Run, given: Any) -> Any:
    """A class, or numbers as the data set has them; None for the model's own prediction."""
    classes, width = run.model.objective.classes, run.data[1]
    if not classes:
        values = given if isinstance(given, list) else [given]
        if given is None or len(values) != width:
            raise ValueError(f"label must be {'a number' if width == 1 else f'{width} numbers'}")
        return _numbers(values, "label").reshape(run.query.labels.shape[1:])
    if given is not None and not (_is_whole(given) and 0 <= given < width):
        raise ValueError(f"label must be a class from 0 to {width - 1}")
    return given


def example_of(run: Run, asked: Question, scaling: Scaling) -> Examples:
    """The image or row that is asked about, named as its copy in the data set would be.

    Args:
      run: whose model predicts the class where none is given.
      asked: of an image or a row.
      scaling: of the run's data set.
    """
    assert asked.values is not None, "a text has no values"
    values, label = asked.values[None], asked.label
    if label is None:
        inputs = jnp.asarray(scaled(values, scaling.inputs))
        label = int(np.asarray(run.tapped(run.model.params, inputs)[0])[0].argmax())
    dtype = np.int32 if scaling.labels is None else run.query.labels.dtype
    return scaling.apply(Examples(values, np.asarray(label, dtype)[None]))
