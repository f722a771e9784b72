"""The stages of a run as a table: inputs, settings, and the processes that work on each."""

import dataclasses
from collections.abc import Callable
from typing import Any

from stride_jax.run.settings import RunSettings, used

STAGES = (
    "data",
    "model",
    "operators",
    "measurements",
    "recovery",
    "unit",
    "attribution",
    "evaluation",
)
"""In the order of the data flow; a run may end after any of them."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A product, and what it depends on.

    Attributes:
      needs: stages whose products it reads.
      settings: the part of a run's settings that shapes it, as JSON values.
      together: whether all processes work on it; else the first one alone.
    """

    needs: tuple[str, ...]
    settings: Callable[[dict[str, Any]], Any]
    together: bool = True


def _data(values: dict[str, Any]) -> Any:
    names = ("data", "text", "verses", "tuning", "shards", "facts", "near_copies")
    own = {name: values[name] for name in names if name in values}
    origin = values["model"].get("origin")  # its tokenizer reads the text
    return own if origin is None else own | {"tokenizer": origin["tokenizer"]}


def _model(values: dict[str, Any]) -> Any:
    """Weights to start from count by their digest, wherever they lie."""
    model = {name: value for name, value in values["model"].items() if name != "init_from"}
    return model, values["train"], values["num_checkpoints"]


def _operators(values: dict[str, Any]) -> Any:
    return (values["index"], values["groups"]) if "groups" in values else values["index"]


def _unit(values: dict[str, Any]) -> Any:
    own = values["unit"]
    return own and {name: value for name, value in own.items() if name != "models_at_once"}


PRODUCTS = {
    "data": Stage((), _data, together=False),
    "model": Stage(("data",), _model),
    "operators": Stage(("model",), _operators),
    "measurements": Stage(("operators",), lambda v: v["read"]["measure"]),
    "groups": Stage(("operators",), lambda v: v["read"]["measure"]),
    "recovery": Stage(
        ("measurements",), lambda v: {n: own for n, own in v["read"].items() if n != "measure"}
    ),
    "unit": Stage(("recovery",), _unit),
    # Three baselines that cost little, for comparison.
    "random": Stage(("data",), lambda _: (), together=False),
    "feature-cosine": Stage(("model",), lambda _: (), together=False),
    "grad-dot": Stage(("model",), lambda _: (), together=False),
}
"""Products named by a hash of all they depend on. The bank of retrained models names its own."""

BASELINES = ("grad-dot", "feature-cosine", "random")


def inputs(settings: RunSettings) -> dict[str, tuple[Any, tuple[str, ...]]]:
    """`{stage: (the settings that shape it, the stages it needs)}`."""
    values = used(settings)
    return {name: (stage.settings(values), stage.needs) for name, stage in PRODUCTS.items()}


def through(until: str | None) -> tuple[str, ...]:
    """The stages up to one of them; all for None.

    Raises:
      ValueError: no such stage.

    >>> through("model")
    ('data', 'model')
    """
    if until is None:
        return STAGES
    if until not in STAGES:
        raise ValueError(f"until={until!r}: use one of {', '.join(STAGES)}")
    return STAGES[: STAGES.index(until) + 1]
