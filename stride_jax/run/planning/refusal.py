"""Whether a run fits: what its stages need against what there is, and which setting would help."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from stride_jax.run.planning.costs import gib
from stride_jax.run.planning.memory import Need, needs
from stride_jax.run.planning.sizes import Bytes, Names
from stride_jax.run.planning.stages import Extent
from stride_jax.run.settings import RunSettings
from stride_jax.runtime.memory import Limit, is_about_memory, limits

_HELP = {
    "data": "take fewer examples",
    "model": "lower train.batch_size, or raise train.accumulation",
    "operators": "lower execution.memory, index.design.num_subsets, index.basis.rank or "
    "index.output_rank",
    "measurements": "lower execution.memory or index.design.num_subsets",
    "recovery": "lower execution.memory, or take fewer queries",
    "unit": "lower unit.models_at_once or train.batch_size",
    "attribution": "lower top_k (0 stores every score), or take fewer queries",
    "evaluation": "lower bank.models_at_once or train.batch_size, or take fewer queries",
}
"""What helps a stage that ran out of memory all the same."""


class OutOfMemoryError(RuntimeError):
    """Memory was gone in the middle of a stage; names the stage and the settings to change."""


@contextlib.contextmanager
def named_stage(stage: str) -> Iterator[None]:
    """Errors that say memory is gone, whoever raises them, with the stage and what helps it.

    Raises:
      OutOfMemoryError: in place of any of them.
    """
    try:
        yield
    except Exception as error:
        if not is_about_memory(error):
            raise
        raise OutOfMemoryError(
            f"the stage {stage!r} ran out of memory: {_HELP[stage]}, or give the process more; "
            "stages before it are kept"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Room:
    """A limit, and what of a need counts against it."""

    limit: Limit
    share: Callable[[Bytes], float]

    def lacks(self, held: Bytes) -> bool:
        return self.share(held) > self.limit.left


def _rooms() -> list[_Room]:
    """Limits of the host and of a device; on a CPU they are one memory."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return [_Room(one, lambda held: held.host + held.devices) for one in limits()]
    rooms = [_Room(one, lambda held: held.host) for one in limits()]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        whole = int(stats["bytes_limit"])
        limit = Limit(f"{device.device_kind}'s memory", whole, whole - stats.get("bytes_in_use", 0))
        rooms.append(_Room(limit, lambda held: held.device))
    return rooms


def refuse_too_large(
    settings: RunSettings,
    extent: Extent,
    mesh: Mesh,
    stages: Collection[str],
    names: Names = Names(),
) -> None:
    """Refuse a run whose stages need more memory than there is.

    Args:
      settings: of the run.
      extent: amount of data.
      mesh: devices.
      stages: those that are still to be done; `bank` is the training of the bank's models.
      names: what else is known of the data.

    Raises:
      ValueError: names the stage that lacks most, what it needs, what there is, and the settings to
        change with values that would fit.
    """

    def lacking(settings: RunSettings, extent: Extent) -> list[tuple[Need, _Room]]:
        wanted = [one for one in needs(settings, extent, mesh, names) if one.stage in stages]
        return [(one, room) for one in wanted for room in rooms if room.lacks(one.held)]

    rooms = _rooms()
    if not (found := lacking(settings, extent)):
        return
    need, room = max(found, key=lambda pair: pair[1].share(pair[0].held) - pair[1].limit.left)

    def amount(settings: RunSettings, extent: Extent) -> float:
        own = [one for one in needs(settings, extent, mesh, names) if one.stage == need.stage]
        return max(room.share(one.held) for one in own)

    limit = room.limit
    raise ValueError(
        f"the stage {need.stage!r} would hold {gib(room.share(need.held))} at once ({need.what}), "
        f"but of {limit.name} ({gib(limit.whole)}) {gib(max(limit.left, 0))} are left: "
        f"{_remedy(settings, extent, need.settings, amount, limit.left)}"
    )


def _remedy(
    settings: RunSettings,
    extent: Extent,
    names: Sequence[str],
    amount: Callable[[RunSettings, Extent], float],
    room: float,
) -> str:
    """What to change, each setting by itself, with the value that would fit."""
    said = []
    for name in names:
        if value := _fitting(settings, extent, name, amount, room):
            said.append(f"{_words(settings, name)} to at most {value}")
    if said:
        return f"set {', or '.join(said)}"
    both = " and ".join(_words(settings, name) for name in names)
    return f"no single setting makes it fit; lower {both}, or give it more memory"


_ROWS = {
    "num_train": ("text.max_train", "data.train"),
    "num_queries": ("text.num_query", "data.query"),
}
"""Amounts of data, and what says them for a text and for a dataset."""


def _words(settings: RunSettings, name: str) -> str:
    """A setting's name; for the amount of data, the setting that says it."""
    if name not in _ROWS:
        return name
    text, data = _ROWS[name]
    if settings.tuning is not None:
        return text.replace("text", "tuning")
    if settings.text is not None and settings.verses is None:
        return text
    return "the number of verses" if settings.verses is not None else f"the examples of {data}"


def _fitting(
    settings: RunSettings,
    extent: Extent,
    name: str,
    amount: Callable[[RunSettings, Extent], float],
    room: float,
) -> int | None:
    """About the largest value of a setting that fits while all others stay; None if there is none.

    Needs are straight lines of most settings, or bend upwards, so a line between two values of one
    tells a third.
    """
    now = _value(settings, extent, name)

    def at(value: int) -> float:
        try:
            return amount(*_changed(settings, extent, name, value))
        except ValueError:  # a value that the settings refuse
            return float("inf")

    first = next((v for v in (1, 2, 4, 8, 16, 32) if v < now and at(v) < float("inf")), now)
    least, most = at(first), at(now)
    if least >= room or most <= least:
        return None
    value = int(first + (now - first) * (room - least) / (most - least))
    for _ in range(4):
        digits = 10 ** max(0, len(str(value)) - 2)
        value = max(1, value // digits * digits)
        if value < now and at(value) <= room:
            return value
        value = value * 3 // 4
    return None


def _value(settings: RunSettings, extent: Extent, name: str) -> int:
    """A setting's value; where 0 stands for all, their number."""
    if name in _ROWS:
        return getattr(extent, name)
    if name == "index.output_rank":
        return min(settings.index.output_rank or extent.num_classes, extent.num_classes)
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value or extent.num_train


def _changed(
    settings: RunSettings, extent: Extent, name: str, value: int
) -> tuple[RunSettings, Extent]:
    if name in _ROWS:
        return settings, dataclasses.replace(extent, **{name: value})
    return _replaced(settings, name.split("."), value), extent


def _replaced(section: Any, parts: Sequence[str], value: int) -> Any:
    first, *rest = parts
    own = _replaced(getattr(section, first), rest, value) if rest else value
    return dataclasses.replace(section, **{first: own})
