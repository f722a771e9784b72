"""From a question to the training texts that made a language model answer as it does.

A question is a prompt and a completion; the loss counts the completion alone. With another
completion to contrast it with, measurements of the two are read together.

Letter of its own: G groups of tokens.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax import asking, reading
from stride_jax.attribution import found_by
from stride_jax.candidates import Candidates
from stride_jax.data.tokens import Tokenizer
from stride_jax.estimate import Estimator, estimator
from stride_jax.exact import Directions
from stride_jax.examples import Examples
from stride_jax.measure import MeasureSettings
from stride_jax.neighbours import Find, finder, most_named
from stride_jax.recovery import SelectionSettings
from stride_jax.run.pipeline import Run
from stride_jax.scores import as_dense, top_rows
from stride_jax.unit import words


@dataclasses.dataclass(frozen=True)
class AskSettings:
    """The size of an answer, and the draw of a continuation.

    Attributes:
      top: number of proponents, and of opponents.
      new_tokens: largest number of tokens of a continuation.
      temperature: temperature of its draw; 0 takes the likeliest token.
      seed: random seed of its draw.
      sources: what names candidates besides the sketch, as in `ExactSettings`; None for the run's.
    """

    top: int = 3
    new_tokens: int = 16
    temperature: float = 0.7
    seed: int = 0
    sources: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Passage:
    """A training sequence that mattered.

    Attributes:
      id: content hash of the sequence.
      score: in what `Answer.scores` says; positive = proponent.
      found_by: where its exact score came from, such as `kept` or `sketch`; `estimate` for a score
        that is none.
      references: passages that the sequence comes from.
      pieces: text of each token.
      shares: agreement of each token with the question, relative to the largest magnitude, in
        [-1, 1].
    """

    id: str
    score: float
    found_by: str
    references: list[str]
    pieces: list[str]
    shares: list[float]


@dataclasses.dataclass(frozen=True)
class Answer:
    """A completion, the training texts behind it, and what the answer is worth.

    Attributes:
      prompt, completion, contrast: the question; the completion may be the model's own.
      generated: whether the completion is the model's own.
      loss: loss of the completion, nats.
      proponents, opponents: training sequences, strongest first.
      support: number of training sequences with a score.
      scores: what scores are in: nats, where the run measured their unit, or relative.
      verdict: whether the texts behind it were found (`reading.certificate`).
      diagnostics: the numbers behind the verdict, and of the recovery, where there was one.
    """

    prompt: str
    completion: str
    contrast: str | None
    generated: bool
    loss: float
    proponents: list[Passage]
    opponents: list[Passage]
    support: int
    scores: str
    verdict: str
    diagnostics: dict[str, float]


def question(
    tokenizer: Tokenizer, prompt: str, completion: str, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels of a question, `[1, T]`; labels of the prompt do not count.

    Raises:
      ValueError: an empty prompt or completion, or more tokens than the model reads.
    """
    if not prompt.strip():
        raise ValueError("the prompt is empty: write some words for the model to continue")
    if not completion:
        raise ValueError("the completion is empty: give one, or leave it out for the model's own")
    before = [tokenizer.bos_id, *tokenizer.encode(prompt).tolist()]
    after = tokenizer.encode(completion).tolist()
    tokens = [*before, *after]
    if len(tokens) - 1 > length:
        raise ValueError(
            f"prompt and completion take {len(before)} + {len(after)} tokens, the mark of the "
            f"start included, but the model reads {length}: shorten them"
        )
    inputs = np.full((1, length), tokenizer.bos_id, np.int32)
    labels = np.full((1, length), -1, np.int32)
    inputs[0, : len(tokens) - 1] = tokens[:-1]
    labels[0, len(before) - 1 : len(tokens) - 1] = after
    return inputs, labels


def continuation(run: Run, prompt: str, settings: AskSettings) -> str:
    """The model's continuation of a prompt, up to the end of a document or of its context.

    Raises:
      ValueError: an empty prompt, or one that fills the context.
    """
    tokenizer, length = run.text.tokenizer, run.train.inputs.shape[1]
    question(tokenizer, prompt, " ", length + 1)  # refuses prompts that can't be continued
    tokens = [tokenizer.bos_id, *tokenizer.encode(prompt).tolist()]
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
        if tokens[-1] == tokenizer.bos_id:
            tokens.pop()
            break
    if len(tokens) == start:
        raise ValueError(
            "the model ends the text here, so there is no completion to explain: give one, or "
            "another seed"
        )
    return tokenizer.decode(tokens[start:])


@functools.lru_cache(maxsize=1)
def _estimator(run: Run) -> Estimator:
    selection = SelectionSettings(rule="best")
    return estimator(run.index, dataclasses.replace(run.settings.read, selection=selection))


@functools.lru_cache(maxsize=1)
def _finder(run: Run, sources: tuple[str, ...]) -> Find:
    """Held, as what it makes of the training data serves every question."""
    return finder(sources, run.frozen, run.index, run.train)


def _candidates(run: Run, questions: Sequence[Examples], settings: AskSettings) -> list[Candidates]:
    """What the sources name for a question, or for it and the one it is held against."""
    exact = run.settings.read.exact
    if settings.sources is not None:
        exact = dataclasses.replace(exact, sources=settings.sources)
    count = -(-most_named(exact, len(run.train)) // len(questions))
    lists = [_finder(run, exact.sources)(own, count) for own in questions]
    return [
        Candidates(same[0].source, np.concatenate([own.row_QxP for own in same], axis=1))
        for same in zip(*lists, strict=True)
    ]


def ask(
    run: Run,
    prompt: str,
    completion: str | None = None,
    contrast: str | None = None,
    settings: AskSettings = AskSettings(),
) -> Answer:
    """The training sequences that made the model complete the prompt like this.

    Args:
      run: a finished run of text.
      prompt: text before the completion.
      completion: text that is explained; the model's own continuation for None.
      contrast: another completion: the answer then explains why the first one and not this one.
      settings: size of the answer, and draw of a continuation.

    Raises:
      ValueError: a question that `question` refuses.
    """
    tokenizer, length = run.text.tokenizer, run.train.inputs.shape[1]
    generated = completion is None
    if completion is None:
        completion = continuation(run, prompt, settings)
    said = [completion] if contrast is None else [completion, contrast]
    questions = [Examples(*question(tokenizer, prompt, own, length)) for own in said]
    others = _candidates(run, questions, settings)
    asked, loss = _measure(run, questions[0])
    if contrast is not None:
        asked = _rather(asked, _measure(run, questions[1])[0])
    asked = _spoken(asked)
    corpus = reading.Corpus(run.frozen, run.train)
    index = dataclasses.replace(run.index, unit=run.measured_unit)
    own = reading.read(_estimator(run), index, asked, corpus, others)
    scores_N = as_dense(own.scores)[0]
    bits_N, y_K = own.exact_QxN.toarray()[0], asked.y_YxK.sum(axis=0)
    picks = [top_rows(sign * scores_N, settings.top) for sign in (1, -1)]
    proponents, opponents = (
        [_passage(run, i, scores_N[i], found_by(bits_N[i], own.sources), y_K) for i in rows]
        for rows in picks
    )
    return Answer(
        prompt, completion, contrast, generated, loss, proponents, opponents,
        support=int((scores_N != 0).sum()),
        scores=words(index.unit),
        verdict=reading.VERDICTS[int(own.diagnostics["verdict"][0])],
        diagnostics={n: float(v[0]) for n, v in own.diagnostics.items() if n != "verdict"},
    )  # fmt: skip


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
    own = None if aim is None else lambda some: {n: v[spoken_G] for n, v in aim(some).items()}
    return asking.Asked(asked.y_YxK[spoken_G], own, 1)


def _measure(run: Run, query: Examples) -> tuple[asking.Asked, float]:
    """Measurements and directions of one question's token groups, and its loss."""
    settings = run.settings.read
    y_GxK = asking.measure_all(run.frozen, run.index.operators, query, settings.measure)
    asked = asking.asked_of(run.frozen, run.index, query, y_GxK, settings, has_corpus=True)
    logits = run.tapped(run.model.params, jnp.asarray(query.inputs))[0]
    log_p = np.asarray(jax.nn.log_softmax(logits))[0]
    places = np.flatnonzero(query.labels[0] >= 0)
    return asked, float(-log_p[places, query.labels[0, places]].sum())


def _passage(run: Run, row: int, score: float, source: str, y_K: np.ndarray) -> Passage:
    """A training sequence with each token's agreement with the question.

    `<y_t, y_x>` over the K operators: the token's own measurements against the question's.
    """
    text, tokenizer = run.text.train, run.text.tokenizer
    example = run.train.take([row])
    single = MeasureSettings("first_order", group=1)
    y_TxK = asking.measure_all(run.frozen, run.index.operators, example, single)
    share_T = y_TxK @ (y_K - y_K.mean())
    share_T = share_T / max(np.abs(share_T).max(), 1e-30)
    size = int(text.sizes_N[row])
    # A token's measurements are of the prediction of the next token.
    tokens = [*example.inputs[0, 1:size], max(example.labels[0, size - 1], 0)]
    pieces = tokenizer.pieces(tokens)
    return Passage(
        str(run.train.ids[row]), float(score), source, text.references(row), pieces,
        [float(v) for v in share_T[: len(pieces)]],
    )  # fmt: skip
