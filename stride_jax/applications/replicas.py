"""What training texts hold of some problems, and what each of them does to their answers.

Two things are told of a problem and a training text: how much of the problem's words stands in it
(`overlap`), and by how much the answer's loss would rise without it (its exact score). Rows of one
key act as one, so a group's score is the sum of its members': of a hundred copies each matters
little, and all of them much.

Letter of its own: G groups, the keys of the training rows.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import scipy.sparse

from stride_jax import asking, reading
from stride_jax.applications.overlap import overlaps
from stride_jax.candidates import Candidates, padded
from stride_jax.data.text_examples import TextExamples
from stride_jax.data.tuning import TuningSettings, read_rows
from stride_jax.examples import Examples
from stride_jax.ids import grouped
from stride_jax.objectives import cross_entropy
from stride_jax.run.pipeline import Run
from stride_jax.run.recovering import from_arrays, read_in_blocks
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import fingerprint
from stride_jax.scores import extent, row_scores
from stride_jax.sequences import token_lists
from stride_jax.settings import FEATURES

OVERLAP = "overlap"
"""The source of candidates that hold a problem's words."""


class Evidence(NamedTuple):
    """What is known of problems and groups of training rows.

    Attributes:
      scores: `[Q, G]` exact scores of groups, nats, in compressed rows; none where no member was
        scored exactly.
      overlaps: `[Q, G]` the largest overlap of a member, in compressed rows.
      group_N: the group of each training row.
      loss_Q: loss of the answers, nats, sum over their tokens.
      size_Q: tokens of the answers.
      verdict_Q: number of the certificate's verdict (`reading.VERDICTS`).
    """

    scores: scipy.sparse.csr_array
    overlaps: scipy.sparse.csr_array
    group_N: np.ndarray
    loss_Q: np.ndarray
    size_Q: np.ndarray
    verdict_Q: np.ndarray

    def of(self, queries: slice) -> "Evidence":
        """That of some problems."""
        return Evidence(
            self.scores[queries], self.overlaps[queries], self.group_N, self.loss_Q[queries],
            self.size_Q[queries], self.verdict_Q[queries],
        )  # fmt: skip


def read_problems(run: Run, path: str) -> TextExamples:
    """The problems of a file with their answers, written down as the run's own rows are.

    Args:
      run: a run of text that is held in memory.
      path: a file of prompts and completions, or chats.

    Raises:
      ValueError: as `tuning.read_rows`, or a run of shards.
    """
    if run.settings.shards is not None:
        raise ValueError(
            f"the run in {run.workdir} is of shards, which are not searched for problems yet: "
            "audit a run of fine-tuning, or of text that fits the memory"
        )
    tuning = run.settings.tuning
    if tuning is None:
        tuning = TuningSettings(path=path, length=run.train.inputs.shape[1], stop="")
    return read_rows(run.with_tokenizer(tuning), path, run.corpus.tokenizer)


def gather(run: Run, problems: Examples, shingle: int) -> Evidence:
    """Evidence on problems; what an earlier call wrote is read back.

    Args:
      run: a run of text with its operators.
      problems: Q of them, the answers' tokens counted.
      shingle: tokens of a shingle (`overlap.overlaps`).
    """
    train, index, settings = run.train, run.index, run.settings.read
    held = overlaps(token_lists(train, OVERLAP), token_lists(problems, OVERLAP), shingle)
    count = settings.exact.allowed(len(train))
    others = [Candidates(OVERLAP, _strongest(held, max(1, count // 2)))]
    exact = dataclasses.replace(settings.exact, sources=(FEATURES,) if count > 1 else ())
    execution = Execution(
        meshes.local_mesh(), run.progress, memory=run.settings.execution.memory,
        batch_size=run.settings.execution.batch_size,
    )  # fmt: skip
    y_YxK = asking.measure_all(run.frozen, index.operators, problems, settings.measure, execution)
    name = fingerprint(run.products.key("recovery"), problems.inputs, problems.labels, shingle)
    own = from_arrays(
        read_in_blocks(
            index, reading.Corpus(run.frozen, train), problems, y_YxK,
            dataclasses.replace(settings, exact=exact), run.workdir / "audit" / name, execution,
            others,
        )
    )  # fmt: skip
    group_N = np.arange(len(train)) if train.keys is None else grouped(train.keys)[1]
    named = scipy.sparse.csr_array(own.exact_QxN != 0)
    exact_QxN = scipy.sparse.csr_array(named.multiply(own.scores))
    return Evidence(
        _summed(exact_QxN, group_N),
        _largest(held, group_N),
        group_N,
        *losses(run, problems, execution),
        own.diagnostics["verdict"],
    )


def _strongest(held: scipy.sparse.csr_array, count: int) -> np.ndarray:
    """Rows of the largest overlaps of each problem, `[Q, P]`."""
    lists = []
    for q in range(extent(held)[0]):
        rows, share = row_scores(held, q)
        lists.append(rows[np.argsort(-share, kind="stable")[:count]].tolist())
    return padded(lists)


def _summed(scores: scipy.sparse.csr_array, group_N: np.ndarray) -> scipy.sparse.csr_array:
    """Sums over the members of each group, `[Q, G]`."""
    shape = (len(group_N), int(group_N.max()) + 1)
    places = (np.arange(len(group_N)), group_N)
    members = scipy.sparse.csr_array((np.ones(len(group_N), np.float32), places), shape=shape)
    return scipy.sparse.csr_array(scores @ members)


def _largest(held: scipy.sparse.csr_array, group_N: np.ndarray) -> scipy.sparse.csr_array:
    """The largest over the members of each group, `[Q, G]`."""
    cells = held.tocoo()
    row_Z, column_Z = cells.row, group_N[cells.col]
    order = np.lexsort((cells.data, column_Z, row_Z))
    place_Z, value_Z = row_Z[order] * np.int64(len(group_N)) + column_Z[order], cells.data[order]
    last_Z = np.append(np.diff(place_Z) != 0, True)[: len(place_Z)]
    places = (row_Z[order][last_Z], column_Z[order][last_Z])
    shape = (extent(held)[0], int(group_N.max()) + 1)
    return scipy.sparse.csr_array((value_Z[last_Z], places), shape=shape)


def losses(
    run: Run, problems: Examples, execution: Execution = Execution()
) -> tuple[np.ndarray, np.ndarray]:
    """Loss of each answer, nats, and its tokens, both `[Q]`.

    Args:
      run: whose model is asked.
      problems: Q of them.
      execution: memory.
    """
    parts = []
    for chunk in run.frozen.chunks(problems, execution, "answers"):
        own = chunk.observed
        losses_QxT = cross_entropy(own.logits_NxTxC, own.labels_NxT) * own.weights_NxT
        parts.append(np.asarray(losses_QxT).sum(axis=1))
    return np.concatenate(parts), (problems.labels >= 0).sum(axis=1)
