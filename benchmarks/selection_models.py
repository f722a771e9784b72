"""Fresh models trained on chosen rows, and what they answer: losses, exact matches and F1.

Letters of its own: B models trained together, S rows of each, L tokens of an answer.
"""

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.data import Tokenizer
from stride_jax.evaluation.retrain import Outputs, answers, model_keys
from stride_jax.examples import Examples
from stride_jax.models.train import TrainSettings, fit
from stride_jax.run.pipeline import Run

_LONGEST = 12
"""Tokens of the longest answer."""


class Judged(NamedTuple):
    """What a model answers to the tests of a task, means over them.

    Attributes:
      loss: nats a token of the right answers.
      exact: share of answers that are right to the letter.
      f1: agreement of words.
    """

    loss: float
    exact: float
    f1: float


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return re.sub(f"[{re.escape(string.punctuation)}]", " ", text.lower()).split()


def f1(answer: str, right: str) -> float:
    """Harmonic mean of precision and recall of words.

    >>> f1("the old man", "The man.")
    0.8
    """
    own, wanted = Counter(words_of(answer)), Counter(words_of(right))
    if not (common := (own & wanted).total()):
        return float(own == wanted)
    return 2 * common / (own.total() + wanted.total())


def starts(examples: Examples) -> np.ndarray:
    """Place of the last token of each prompt, `[Q]`: what it predicts is the answer's first."""
    return (examples.labels >= 0).argmax(axis=1).astype(np.int32)


def greedy(module: Any, params: Any, inputs_QxT: jax.Array, start_Q: jax.Array) -> jax.Array:
    """Likeliest continuations, a token after the other, `[Q, L]`; traceable."""
    rows = jnp.arange(len(inputs_QxT))
    last = inputs_QxT.shape[1] - 1

    def step(tokens_QxT: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = module.apply({"params": params}, tokens_QxT)[0]
        place_Q = jnp.minimum(start_Q + i, last)
        own_Q = logits[rows, place_Q].argmax(axis=-1).astype(tokens_QxT.dtype)
        # What does not fit any more is written past the end, which drops it.
        return tokens_QxT.at[rows, start_Q + i + 1].set(own_Q, mode="drop"), own_Q

    return jax.lax.scan(step, inputs_QxT, jnp.arange(_LONGEST))[1].T


@functools.partial(jax.jit, static_argnames=("module", "training"))
def _train_and_answer(
    data: dict[str, Any], members_BxS: jax.Array, keys_B: jax.Array, *,
    module: Any, training: TrainSettings,
) -> tuple[Outputs, jax.Array]:  # fmt: skip
    def one(members_S: jax.Array, key: jax.Array) -> tuple[Outputs, jax.Array]:
        forward = lambda p, x: module.apply({"params": p}, x)[0]  # noqa: E731
        params = fit(
            forward, data["start"], data["inputs"], data["labels"], members_S, key, training
        )
        tests = data["test_inputs"], data["test_labels"]
        own = answers(module, training.objective, params, *tests)
        return own, greedy(module, params, tests[0], data["test_starts"])

    return jax.vmap(one)(members_BxS, keys_B)


def judged(
    run: Run, members_JxS: np.ndarray, seed_J: np.ndarray, tests: Examples,
    training: TrainSettings, at_once: int = 4, room: int = 0,
) -> list[Judged]:  # fmt: skip
    """Models trained from the run's start on rows of its training set, and judged on tests.

    Args:
      run: a run of fine-tuning that starts from a model.
      members_JxS: rows of each model.
      seed_J: seed of each model's order of rows.
      tests: of one task.
      training: recipe.
      at_once: models trained together.
      room: tests that the program has room for, so that one serves tasks with fewer too.
    """
    start = run.retraining.start
    assert start is not None, "a run that starts from a model"
    count = len(tests)
    places = np.minimum(np.arange(max(room, count)), count - 1)
    data = {
        "start": jax.device_put(start.load()),
        "inputs": jnp.asarray(run.train.inputs), "labels": jnp.asarray(run.train.labels),
        "test_inputs": jnp.asarray(tests.inputs[places]),
        "test_labels": jnp.asarray(tests.labels[places]),
        "test_starts": jnp.asarray(starts(tests)[places]),
    }  # fmt: skip
    keys_J = model_keys(0, np.zeros_like(seed_J), seed_J)
    out: list[Judged] = []
    size = min(at_once, len(members_JxS))
    for first in range(0, len(members_JxS), size):
        rows = np.minimum(np.arange(first, first + size), len(members_JxS) - 1)
        outputs, said_BxQxL = _train_and_answer(
            data, jnp.asarray(members_JxS[rows]), keys_J[rows],
            module=run.module, training=training,
        )  # fmt: skip
        for b in range(min(size, len(members_JxS) - first)):
            said, loss_Q = (np.asarray(v[b])[:count] for v in (said_BxQxL, outputs.losses_BxQ))
            out.append(_verdict(run.corpus.tokenizer, tests, said, loss_Q))
    return out


@functools.partial(jax.jit, static_argnames=("module", "objective"))
def _answer(
    params: Any, inputs: jax.Array, labels: jax.Array, start_Q: jax.Array, *,
    module: Any, objective: str,
) -> tuple[Outputs, jax.Array]:  # fmt: skip
    own = answers(module, objective, params, inputs, labels)
    return own, greedy(module, params, inputs, start_Q)


def judged_model(run: Run, tests: Examples) -> Judged:
    """The run's own model, judged on tests."""
    asked = (jnp.asarray(v) for v in (tests.inputs, tests.labels, starts(tests)))
    outputs, said = _answer(
        run.model.params, *asked, module=run.module, objective=run.settings.train.objective
    )
    return _verdict(run.corpus.tokenizer, tests, np.asarray(said), np.asarray(outputs.losses_BxQ))


def _verdict(
    tokenizer: Tokenizer, tests: Examples, said_QxL: np.ndarray, loss_Q: np.ndarray
) -> Judged:
    counted_QxT = tests.labels >= 0
    rights = [_line(tokenizer, own[mask])
              for own, mask in zip(tests.labels, counted_QxT, strict=True)]  # fmt: skip
    given = [_line(tokenizer, own) for own in said_QxL]
    return Judged(
        float(loss_Q.sum() / counted_QxT.sum()),
        _mean([float(a == b) for a, b in zip(given, rights, strict=True)]),
        _mean([f1(a, b) for a, b in zip(given, rights, strict=True)]),
    )


def _line(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """An answer: its first line, behind the white space before it."""
    return tokenizer.decode(ids).strip().partition("\n")[0].strip()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
