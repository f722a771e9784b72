"""What training rows do for a few target examples, task by task: what rows are chosen by.

A task is asked as one question, the mean of its targets' losses, or target by target. Where every
row is scored exactly there is nothing to recover, and one pass over the rows answers all targets;
else each task's scores are stored as soon as they are there.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from stride_jax import asking, reading, stride
from stride_jax.baselines.text import TfidfSettings, fit_tfidf, score_tfidf
from stride_jax.data.tuning import read_rows
from stride_jax.estimate import estimator
from stride_jax.examples import Examples
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import fingerprint, read_arrays, write_arrays
from stride_jax.scores import as_dense
from stride_jax.self_influence import self_influence

ALL = "all"
"""Name of the one task of targets that have no tasks."""


class Targets(NamedTuple):
    """Target examples.

    Attributes:
      examples: all of them.
      tasks: names of the tasks, ascending.
      task_Q: the task of each example, by number.
    """

    examples: Examples
    tasks: tuple[str, ...]
    task_Q: np.ndarray

    def of(self, task: int) -> Examples:
        """The examples of one task."""
        return self.examples.take(np.flatnonzero(self.task_Q == task))


def targets_of(run: Run, path: str = "", by: str = "") -> Targets:
    """The target examples of a run.

    Args:
      run: a run of fine-tuning.
      path: a file of prompts and completions, or chats, written down as the run's own; "" for the
        run's queries.
      by: column of the targets that names their task; "" for one task.

    Raises:
      ValueError: a file that can't be used, or a column that the targets lack.
    """
    text = run.text.query
    if path:
        assert run.settings.tuning is not None, "a run of fine-tuning"
        own = run.with_tokenizer(run.settings.tuning)
        text = read_rows(own, path, run.corpus.tokenizer)
    if not by:
        return Targets(text.examples, (ALL,), np.zeros(len(text), int))
    names, task_Q = np.unique(text.origins(by), return_inverse=True)
    return Targets(text.examples, tuple(names.tolist()), task_Q)


def task_scores(
    run: Run, targets: Targets, told: Callable[[str], None] = lambda _: None, *, each: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Scores of all training rows for each task, and what they are worth.

    Args:
      run: a run of text with operators.
      targets: target examples.
      told: called with a line for what is begun.
      each: whether a row counts by the target that it does most for, relative to the root mean
        square of that target's scores, in place of the mean over a task's targets.

    Returns:
      `[A, N]` float32, by how much the mean loss of a task's targets would rise without the row,
      or with `each` the largest relative score; and a verdict a task (`reading.VERDICTS`).
    """
    if _all_exact(run):
        scores_QxN = _exact_scores(run, targets, told)
        parts = [scores_QxN[targets.task_Q == a] for a in range(len(targets.tasks))]
        joined = [_largest(own) if each else own.mean(axis=0) for own in parts]
        return np.stack(joined), [reading.VERDICTS[0]] * len(parts)
    scores, verdicts = [], []
    for a, task in enumerate(targets.tasks):
        examples = targets.of(a)
        asked = (run.products.key("recovery"), examples.inputs, examples.labels)
        name = fingerprint(*asked, "each") if each else fingerprint(*asked)
        path = run.workdir / "select" / f"{name}.npz"
        if not path.exists():
            told(f"task {a + 1} of {len(targets.tasks)}, {task}: {len(examples)} targets")
            write_arrays(path, **_one_task(run, examples, each))
        stored = read_arrays(path)
        scores.append(stored["score_N"])
        verdicts.append(reading.VERDICTS[int(stored["verdict"])])
    return np.stack(scores), verdicts


def likeness(run: Run, targets: Targets, *, each: bool = False) -> np.ndarray:
    """How alike the words of each row and of a task's targets are: cosines of TF-IDF, `[A, N]`.

    Args:
      run: a run of text.
      targets: target examples.
      each: whether a row counts by its likest target, in place of the mean over a task's targets.
    """
    settings = TfidfSettings()
    state = fit_tfidf(None, run.train, settings)
    own_QxN = score_tfidf(state, None, run.train, targets.examples, settings)
    parts = [own_QxN[targets.task_Q == a] for a in range(len(targets.tasks))]
    return np.stack([own.max(axis=0) if each else own.mean(axis=0) for own in parts])


def _largest(scores_nxN: np.ndarray) -> np.ndarray:
    """Each row at the target it is best for; a target's own size says nothing of its rows."""
    size_n = np.sqrt((scores_nxN**2).mean(axis=1, keepdims=True))
    return (scores_nxN / np.maximum(size_n, np.finfo(np.float32).tiny)).max(axis=0)


def _all_exact(run: Run) -> bool:
    """Whether every row is scored exactly: then nothing is left for the sketch to find."""
    budget, index = run.settings.read.exact.budget, run.index
    return budget is not None and budget >= len(run.train) and not (index.unit or not index.fisher)


def _exact_scores(run: Run, targets: Targets, told: Callable[[str], None]) -> np.ndarray:
    """Scores of all rows for each target, `[Q, N]`, by one pass over the rows."""
    asked = targets.examples
    name = fingerprint(run.products.key("operators"), asked.inputs, asked.labels, "exact")
    path = run.workdir / "select" / f"{name}.npz"
    if not path.exists():
        told(f"{len(asked)} targets, {len(run.train)} rows scored exactly")
        own = stride.direct(run.tapped, run.model.params, run.index, run.train, asked)
        write_arrays(path, scores_QxN=own.scores_QxN)
    return read_arrays(path)["scores_QxN"]


def relative(run: Run, scores_AxN: np.ndarray) -> np.ndarray:
    """Scores for what a row says, whatever the size of its gradient: `w_i(x) / sqrt(w_ii)`.

    A sum over the tokens of a long answer, or an answer that the model finds odd, has a large
    gradient and a large score for every task; an optimiser that takes steps of one size, as Adam
    does, makes little of that. The root of the self-influence is the gradient's length in the
    curvature's metric (Barshan et al., RelatIF, 2020).

    Args:
      run: a run of text with operators.
      scores_AxN: of all its training rows, from `task_scores`.

    Returns:
      `[A, N]` float32; in the curvature's metric the cosine, up to a factor of each task.
    """
    path = run.workdir / "select" / f"self-{run.products.key('operators')}.npz"
    if not path.exists():
        both = run.tapped, run.model.params, run.index
        write_arrays(path, self_N=self_influence(*both, run.train).scores_N)
    self_N = read_arrays(path)["self_N"]
    # A row of no gradient has no score either.
    return (scores_AxN / np.sqrt(np.maximum(self_N, np.finfo(np.float32).tiny))).astype(np.float32)


def _one_task(run: Run, examples: Examples, each: bool) -> dict[str, np.ndarray]:
    settings, both = run.settings.read, (run.frozen, run.index)
    y_YxK = asking.measure_all(run.frozen, run.index.operators, examples, settings.measure)
    asked = asking.asked_of(*both, examples, y_YxK, settings, has_corpus=True)
    if not each:
        asked = asking.together(asked, np.full(len(examples), 1 / len(examples)))
    corpus = reading.Corpus(run.frozen, run.train)
    own = reading.read(estimator(run.index, settings), run.index, asked, corpus)
    scores_nxN = as_dense(own.scores).astype(np.float32)
    return {
        "score_N": _largest(scores_nxN) if each else scores_nxN[0],
        "verdict": np.max(own.diagnostics["verdict"]),
    }
