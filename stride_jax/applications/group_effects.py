"""What each named group of a run's training examples does to a question (docs/method.md §8.9)."""

import dataclasses
from collections.abc import Sequence

from stride_jax import asking
from stride_jax.examples import Examples
from stride_jax.index import Index
from stride_jax.run.pipeline import Run
from stride_jax.scores import top_rows


@dataclasses.dataclass(frozen=True)
class GroupEffect:
    """A named group of training sequences, as the run's setting `groups` made it.

    Attributes:
      name: of the group.
      examples: number of its training sequences.
      score: by how much what was asked would fall without the group; measured, not recovered.
    """

    name: str
    examples: int
    score: float


def group_effects(
    run: Run, index: Index, asked: Sequence[Examples], what: str, top: int
) -> list[GroupEffect]:
    """By how much what is asked would fall without each of the strongest groups.

    Args:
      run, index: what is read.
      asked: prompts with their completions, and with those that they are held against, if any.
      what: name of the question.
      top: number of groups that help, and of those that hurt.
    """
    groups = index.groups
    if groups is None:
        return []
    whole = dataclasses.replace(run.settings.read.measure, group=0)
    means = [
        asking.measure_all(run.frozen, groups.operators, own, whole, question=what).mean(axis=0)
        for own in asked
    ]
    score_G = index.factor * (means[0] - means[1] if len(means) > 1 else means[0])
    rows = [*top_rows(score_G, top), *reversed(top_rows(-score_G, top))]
    return [
        GroupEffect(str(groups.names[i]), int(groups.sizes_G[i]), float(score_G[i])) for i in rows
    ]
