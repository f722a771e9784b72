"""The pre-trained model that a run starts from: found, compared with the settings, loaded.

Products depend on what the folder holds, not on where it lies: its digest, vocabulary and
tokenizer are written into the settings (`model.origin`), and after the model's stage a run needs
the folder no more.
"""

import dataclasses
import pathlib
from collections.abc import Collection, Iterable
from typing import Any

from flax.traverse_util import flatten_dict

from stride_jax import models
from stride_jax.data import Tokenizer, load_tokenizer
from stride_jax.data.chat_template import BESIDE
from stride_jax.models import ModelSettings, Origin, WeightsError
from stride_jax.runtime import checkpoint
from stride_jax.runtime.files import atomic_path, file_digest, read_json

_TOKENIZER = "tokenizer.json"
_REMEDIES = {
    "huggingface": (
        "write it with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    ),
    "nanochat": (
        "nanochat pickles its tokenizer (tokenizer.pkl), and a pickle can run any code, so it is "
        "never read; convert it where nanochat runs: transformers.integrations.tiktoken."
        "convert_tiktoken_to_fast(get_tokenizer().enc, folder)"
    ),
    "orbax": "give the run's own tokenizer.json, from its data folder",
}
_MOST_UNUSED = 0.05  # share of a model's ids that a tokenizer may lack: tables are often padded


def differing(settings: Any) -> set[str]:
    """Dotted names of a settings dataclass' fields that are not at their defaults."""
    ours, plain = _flat(settings), _flat(type(settings)())
    return {name for name, value in ours.items() if plain.get(name) != value}


def adopt(model: ModelSettings, given: Collection[str]) -> ModelSettings:
    """The settings of the model in `init_from`, completed by what its folder says.

    Args:
      model: settings with `init_from`.
      given: dotted names below `model` that were set; those that the weights decide must agree.

    Raises:
      WeightsError: nothing there that is read, weights that don't fit, or settings that differ.
    """
    folder = source_folder(model.init_from)
    opened = _opened(folder, model, given)
    tokenizer = folder / _TOKENIZER
    digest = file_digest(tokenizer) if tokenizer.is_file() else ""
    origin = Origin(opened.source["format"], opened.digest(), opened.num_classes, digest)
    found = dataclasses.replace(opened.settings, init_from=model.init_from, origin=origin)
    _refuse_others(model, found, given)
    return found


def _opened(
    folder: pathlib.Path, model: ModelSettings, given: Collection[str]
) -> models.Opened | models.OpenedCheckpoint:
    """The weights, opened with the given settings that they do not decide."""
    kind = models.weights_format(folder)
    section = {"huggingface": "llama", "nanochat": "gpt"}.get(kind)
    if section is None:
        section = models.open_weights(folder).settings.kind
    own = getattr(model, section, None)
    names = [name for name in models.FREE[kind] if f"{section}.{name}" in given]
    return models.open_weights(folder, **{name: getattr(own, name) for name in names})


def _refuse_others(model: ModelSettings, found: ModelSettings, given: Iterable[str]) -> None:
    """Refuse settings that the weights contradict; sections of other kinds must be untouched."""
    ours, theirs, plain = _flat(model), _flat(found), _flat(ModelSettings())
    wrong = []
    for name in sorted(given):
        section = name.partition(".")[0]
        own = section in ("kind", "init_from", "origin", found.kind)
        wanted = theirs.get(name) if own else plain.get(name)
        if ours.get(name) != wanted:
            wrong.append(f"model.{name}={ours.get(name)!r}, but {wanted!r} there")
    if wrong:
        raise WeightsError(
            f"init_from={model.init_from!r} holds another model ({found.kind}) than the settings "
            f"say: {'; '.join(wrong)}; leave these settings out, the folder says them"
        )


def _flat(settings: Any) -> dict[str, Any]:
    return flatten_dict(dataclasses.asdict(settings), sep=".")


def source_folder(path: str) -> pathlib.Path:
    """The folder of the weights: itself, or the model folder of a run's workdir.

    Raises:
      WeightsError: a workdir without a model, or with several of which none is its summary's.
    """
    folder = pathlib.Path(path).expanduser()
    home = folder / "model"
    if not (folder / "settings.json").is_file() or not home.is_dir():
        return folder
    if (folder / "summary.json").is_file():
        told = read_json(folder / "summary.json").get("products", {}).get("model")
        if told and (folder / told).is_dir():
            return folder / told
    there = sorted(p for p in home.iterdir() if p.is_dir() and not p.suffix)
    there = [own for own in there if checkpoint.latest(own) is not None]
    if len(there) != 1:
        names = ", ".join(str(own) for own in there) or "none"
        raise WeightsError(
            f"init_from={path!r} is a run with {len(there)} finished models ({names}): give the "
            "folder of one"
        )
    return there[0]


def load(model: ModelSettings, sharding: Any = None) -> Any:
    """The parameters that a run starts from, float32, read into their places.

    Args:
      model: settings that `adopt` completed.
      sharding: one for all arrays, or a tree of them; None for numpy arrays.

    Raises:
      WeightsError: the folder holds something else by now.
    """
    opened = _opened(source_folder(model.init_from), model, differing(model))
    assert model.origin is not None, "adopt fills it in"
    if opened.digest() != model.origin.digest:
        raise WeightsError(
            f"init_from={model.init_from!r} holds other weights than when this run began: put the "
            "old ones back, or take another --workdir"
        )
    return opened.load(sharding)


def check_tokenizer(model: ModelSettings, path: str) -> None:
    """Refuse a tokenizer that the model was not made with, as far as sizes tell.

    Args:
      model: settings that `adopt` completed.
      path: a tokenizer.json of the user's own; empty for the one beside the weights.

    Raises:
      ValueError: none, unreadable, or of a vocabulary that does not fit.
    """
    assert model.origin is not None, "adopt fills it in"
    if not path and not model.origin.tokenizer:
        raise WeightsError(
            f"init_from={model.init_from!r} has no {_TOKENIZER}: give text.tokenizer the path of "
            f"one, or {_REMEDIES[model.origin.format]}"
        )
    own = path or str(source_folder(model.init_from) / _TOKENIZER)
    needed, there = _ids(load_tokenizer(own)), model.origin.num_classes
    if needed > there or there - needed > max(64, _MOST_UNUSED * there):
        raise WeightsError(
            f"{own} has {needed} token ids, but the model in {model.init_from} has {there}: give "
            "the tokenizer that the model was trained with"
        )


def _ids(tokenizer: Tokenizer) -> int:
    return max(tokenizer.core.get_vocab(with_added_tokens=True).values()) + 1


def kept_tokenizer(model: ModelSettings, folder: pathlib.Path) -> str:
    """Path of a run's copy of the tokenizer beside the weights, and of its chat template.

    It is made where it is not there yet.

    Raises:
      WeightsError: the tokenizer is another one by now.
    """
    assert model.origin is not None, "adopt fills it in"
    name = f"tokenizer-{model.origin.tokenizer}"
    if (earlier := folder / f"{name}.json").is_file():
        return str(earlier)
    copy = folder / name / _TOKENIZER
    if not copy.is_file():
        source = source_folder(model.init_from) / _TOKENIZER
        if not source.is_file() or file_digest(source) != model.origin.tokenizer:
            raise WeightsError(
                f"{source} is not the tokenizer that this run began with: put it back, or take "
                "another --workdir"
            )
        # The tokenizer last: where it is, the others are.
        for own in (*(source.parent / other for other in BESIDE), source):
            if own.is_file():
                with atomic_path(copy.parent / own.name) as temporary:
                    temporary.write_bytes(own.read_bytes())
    return str(copy)
