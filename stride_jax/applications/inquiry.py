"""Questions to a run: which examples made its model answer like this, read from its index.

To a language model a question is a prompt and a completion, of which the completion alone counts.
With another completion to hold it against, measurements of the two are read together; several
prompts may be one question. Of images and tables an example is the question.

Letter of its own: G groups of tokens.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax import asking, reading
from stride_jax import attribution as attributions
from stride_jax.applications.question import meaning, opening, question, questions, refuse_absent
from stride_jax.candidates import Candidates, as_one
from stride_jax.estimate import Estimator, estimator
from stride_jax.exact import Directions
from stride_jax.examples import Examples
from stride_jax.index import Index
from stride_jax.neighbours import Find, finder, most_named
from stride_jax.recovery import SelectionSettings
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import used
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.settings import ReadSettings


@dataclasses.dataclass(frozen=True)
class AskSettings:
    """The size of an answer, and the draw of a continuation.

    Attributes:
      top: number of proponents, and of opponents.
      new_tokens: largest number of tokens of a continuation.
      temperature: temperature of its draw; 0 takes the likeliest token.
      seed: random seed of its draw.
      sources: what names candidates besides the sketch, as in `ExactSettings`; None for the run's.
      question: what is asked of each token, `loss` or `margin`; None for what the run asks.
      tokens: tokens of the completions that count alone, as in `question.chosen`; all for "".
    """

    top: int = 3
    new_tokens: int = 16
    temperature: float = 0.7
    seed: int = 0
    sources: tuple[str, ...] | None = None
    question: str | None = None
    tokens: str = ""


@dataclasses.dataclass(frozen=True)
class Inquiry:
    """A question that was put to a run, and what was read of it.

    Attributes:
      prompt, completion: of text; lists where several prompts are one question. None otherwise.
      against: another completion.
      generated: whether the completions are the model's own.
      examples: the question as examples, and those it is held against where there are any.
      question: name of what was asked of each token or example.
      meaning: what a score is, in words.
      index: with the unit of its scores, where that was measured for this question.
      reading: one row of scores, what they are worth, and which are exact.
      y_K: the measurements it was read from.
    """

    prompt: str | list[str] | None
    completion: str | list[str] | None
    against: str | None
    generated: bool
    examples: list[Examples]
    question: str
    meaning: str
    index: Index
    reading: reading.Reading
    y_K: np.ndarray

    @property
    def ids(self) -> np.ndarray:
        """The question's name, `[1]`: that of its example, or of all it is made of."""
        ids = np.concatenate([own.ids for own in self.examples])
        return ids if len(ids) == 1 else asking.one_name(ids, [len(own) for own in self.examples])


def attribution(run: Run, inquiries: Sequence[Inquiry]) -> attributions.Attribution:
    """Answers with names, settings, and the unit of their scores.

    Args:
      run: whose answers they are.
      inquiries: one or more, of which none is put twice.
    """
    own = reading.joined([one.reading for one in inquiries])
    ids = np.concatenate([one.ids for one in inquiries])
    return attributions.Attribution(
        ids, run.train.ids, own.scores, used(run.resolved), diagnostics=own.diagnostics,
        exact=own.exact_QxN, sources=own.sources, train_keys=run.train.keys,
        unit=inquiries[0].index.unit,
    )  # fmt: skip


def continuation(run: Run, prompt: str, settings: AskSettings) -> str:
    """The model's continuation of a prompt, up to the end of a document or of its context.

    Raises:
      ValueError: an empty prompt, or one that fills the context.
    """
    tokenizer, length, template = run.corpus.tokenizer, run.train.inputs.shape[1], run.template
    # Refuses prompts that can't be continued.
    question(tokenizer, prompt, " ", length + 1, template=template)
    tokens = opening(tokenizer, template.asked(prompt)[0], template)
    ends = tokenizer.ends(template.source != "")
    start, key = len(tokens), jax.random.key(settings.seed)
    for i in range(min(settings.new_tokens, length + 1 - start)):
        inputs = np.full((1, length), tokenizer.bos_id, np.int32)
        inputs[0, : len(tokens)] = tokens
        logits_C = np.asarray(run.tapped(run.model.params, inputs)[0][0, len(tokens) - 1])
        if settings.temperature > 0:
            draw = jax.random.categorical(
                jax.random.fold_in(key, i), jnp.asarray(logits_C) / settings.temperature
            )
            tokens.append(int(draw))
        else:
            tokens.append(int(logits_C.argmax()))
        if tokens[-1] in ends:
            tokens.pop()
            break
        if template.stop and tokenizer.decode(tokens[start:]).endswith(template.stop):
            break
    if len(tokens) == start:
        raise ValueError(
            "the model ends the text here, so there is no completion to explain: give one, or "
            "another seed"
        )
    return tokenizer.decode(tokens[start:])


# ── questions ────────────────────────────────────────────────────────────────────────────────────


def inquire(
    run: Run,
    prompt: str | Sequence[str],
    completion: str | None = None,
    against: str | None = None,
    settings: AskSettings = AskSettings(),
) -> Inquiry:
    """Read what made the model complete a prompt like this.

    Args:
      run: a finished run of text.
      prompt: text before the completion; of several, their mean is one question.
      completion: text that is explained; the model's own continuation for None.
      against: another completion: the answer then explains why the first one and not this one.
      settings: what is asked, and the draw of a continuation.

    Raises:
      ValueError: no prompt, a question that `question.question` refuses, words that no completion
        has, or a completion that is held against itself.
    """
    tokenizer, length = run.corpus.tokenizer, run.train.inputs.shape[1]
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("no prompt to ask about: give one")
    if against == "":
        raise ValueError("against is empty: give another completion, or leave it out")
    said = [continuation(run, one, settings) if completion is None else completion
            for one in prompts]  # fmt: skip
    if against in said:
        raise ValueError(f"against is the completion itself, {against!r}: give another one")
    refuse_absent(settings.tokens, [*said, *([] if against is None else [against])])
    others = [] if against is None else [[against] * len(prompts)]
    asked = [
        questions(tokenizer, prompts, own, length, settings.tokens, run.template)
        for own in (said, *others)
    ]
    what = settings.question or run.settings.read.measure.question
    words = meaning(what, said, against, settings.tokens)
    both = (prompt, said[0]) if isinstance(prompt, str) else (prompts, said)
    selection = SelectionSettings(rule="best")
    read = dataclasses.replace(run.settings.read, selection=selection)
    found = _answered(run, asked, what, read, settings.sources)
    return Inquiry(*both, against, completion is None, asked, what, words, *found)


def inquire_example(run: Run, example: Examples) -> Inquiry:
    """Read what made the model treat one image, or row of a table, as it does.

    Args:
      run: a finished run of such examples.
      example: one, scaled as the run's are.
    """
    read = run.settings.read
    what = read.measure.question
    words = f"by how much the {what} of the label would rise without the example"
    found = _answered(run, [example], what, read, None)
    return Inquiry(None, None, None, False, [example], what, words, *found)


def _answered(
    run: Run,
    asked: list[Examples],
    what: str,
    settings: ReadSettings,
    sources: tuple[str, ...] | None,
) -> tuple[Index, reading.Reading, np.ndarray]:
    """The index with its unit, the answer to one question, and what it was read from, `[K]`."""
    # The unit was measured on what the run asks.
    known = run.measured_unit if what == run.settings.read.measure.question else None
    index = dataclasses.replace(run.index, unit=known)
    others = _candidates(run, asked, sources)
    one = _measure(run, asked[0], what)
    if len(asked) > 1:
        one = _rather(one, _measure(run, asked[1], what))
    one = _spoken(one)
    corpus = reading.Corpus(run.frozen, run.train)
    execution = Execution(meshes.local_mesh(), run.progress, memory=run.settings.execution.memory)
    own = reading.read(_estimator(run, settings), index, one, corpus, others, execution)
    return index, own, one.y_YxK.sum(axis=0)


@functools.lru_cache(maxsize=1)
def _estimator(run: Run, settings: ReadSettings) -> Estimator:
    return estimator(run.index, settings)


@functools.lru_cache(maxsize=1)
def _finder(run: Run, sources: tuple[str, ...]) -> Find:
    """Held, as what it makes of the training data serves every question."""
    return finder(sources, run.frozen, run.index, run.train)


def _candidates(
    run: Run, asked: Sequence[Examples], sources: tuple[str, ...] | None
) -> list[Candidates]:
    """What the sources name for a question, or for it and the one it is held against."""
    exact = run.settings.read.exact
    if sources is not None:
        exact = dataclasses.replace(exact, sources=sources)
    count = -(-most_named(exact, len(run.train)) // len(asked))
    find = _finder(run, exact.sources)
    lists = [[as_one(one, count) for one in find(own, count)] for own in asked]
    return [
        Candidates(same[0].source, np.concatenate([own.row_QxP for own in same], axis=1))
        for same in zip(*lists, strict=True)
    ]


def _rather(asked: asking.Asked, than: asking.Asked) -> asking.Asked:
    """A question against another one: what speaks for the first and against the second."""
    y_GxK, first, second = np.concatenate([asked.y_YxK, -than.y_YxK]), asked.aim, than.aim
    if first is None or second is None:
        return asking.Asked(y_GxK, None, 1)

    def aim(some: np.ndarray) -> Directions:
        other = second(some)
        return {n: jnp.concatenate([own, -other[n]]) for n, own in first(some).items()}

    return asking.Asked(y_GxK, aim, 1)


def _spoken(asked: asking.Asked) -> asking.Asked:
    """A question without its groups of the prompt alone, which measure nothing."""
    spoken_G, aim = np.abs(asked.y_YxK).max(axis=1) > 0, asked.aim
    if not spoken_G.any():  # nor does anything else: a prediction without a doubt
        return asked
    if aim is None:
        return asking.Asked(asked.y_YxK[spoken_G], None, 1)

    def spoken(some: np.ndarray) -> Directions:
        # Chosen on the host: each number of groups would be compiled for.
        return {name: jax.device_put(meshes.fetch(v)[spoken_G]) for name, v in aim(some).items()}

    return asking.Asked(asked.y_YxK[spoken_G], spoken, 1)


def _measure(run: Run, queries: Examples, what: str) -> asking.Asked:
    """Measurements and directions of one question's token groups."""
    settings, both = run.settings.read, (run.frozen, run.index)
    y_YxK = asking.measure_all(
        run.frozen, run.index.operators, queries, settings.measure, question=what
    )
    asked = asking.asked_of(*both, queries, y_YxK, settings, has_corpus=True, question=what)
    return asking.together(asked, np.full(len(queries), 1 / len(queries)))
