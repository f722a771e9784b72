"""Which problems of a benchmark leaked into the training data, and which of them were learnt.

Two figures of a problem are compared with those of problems that are known to be clean: how much of
its words a group of training rows holds, and how much the group does to its answer, relative to
other groups. The p-value of a problem is the share of clean ones, itself among them, that look as
leaked:

    t(q, g) = max(z(overlap), z(log relative score)),   t_q = max_g t(q, g)
    p_q = (1 + #{clean c: t_c >= t_q}) / (1 + C)

z is the distance from the median of the clean problems' largest, in units of their spread. Where
clean problems are drawn as those of the benchmark are, a share `rate` of the clean ones among these
has `p <= rate` at most, on average and whatever the figures' distribution (conformal p-values; V.
Vovk et al., Algorithmic Learning in a Random World, 2005): nearly, as medians and spreads are those
of the same clean problems.

Letters of its own: C clean problems, G groups of training rows.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import scipy.stats

from stride_jax.applications.replicas import Evidence
from stride_jax.scores import row_scores

CLEAN, PRESENT, LEARNT = "clean", "present", "learnt"
"""What is said of a problem: no sign of it; its words are there; what is there moves the answer."""


@dataclasses.dataclass(frozen=True)
class AuditSettings:
    """How problems are judged.

    Attributes:
      rate: share of clean problems that may be taken for leaked.
      shingle: consecutive tokens that are compared as one word.
      control: training rows that are asked as if they were problems: what is found of them says
        what can be found in this run.
    """

    rate: float = 0.02
    shingle: int = 3
    control: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.rate < 0.5:
            raise ValueError(f"rate={self.rate} is a share of clean problems, in (0, .5)")
        if self.shingle < 1 or self.control < 0:
            raise ValueError(
                f"shingle={self.shingle}, control={self.control}: give at least 1 and 0"
            )

    @property
    def least_clean(self) -> int:
        """Clean problems without which no p-value is as small as the rate.

        >>> AuditSettings(rate=0.02).least_clean
        49
        """
        return math.ceil(1 / self.rate - 1e-9) - 1


class Null(NamedTuple):
    """What clean problems look like.

    Attributes:
      overlap, score: median and spread of their largest overlap, and log relative score.
      t_C: their t, ascending.
      critical: what t must reach for `p <= rate`.
      critical_score: what z of the score alone must reach likewise.
    """

    overlap: tuple[float, float]
    score: tuple[float, float]
    t_C: np.ndarray
    critical: float
    critical_score: float


class Judged(NamedTuple):
    """One problem.

    Attributes:
      verdict: `clean`, `present` or `learnt`.
      p: its p-value.
      t: what it is ranked by, the largest t of a group.
      overlap: the largest share of its words that a group holds.
      effect: by how much its loss would rise without all its replicas, nats, to first order: little
        where the answer is known by heart, as its gradient vanishes.
      times: the same, in effects of the problem's median group, which does not vanish.
      effect_z: the same, relative to other groups, against clean problems' strongest group.
      groups: numbers of its replicas' groups, strongest first; none where it is clean.
      nearest: the group that looks most like a replica; −1 where nothing is known of any.
    """

    verdict: str
    p: float
    t: float
    overlap: float
    effect: float
    times: float
    effect_z: float
    groups: tuple[int, ...]
    nearest: int


class Share(NamedTuple):
    """How much of a benchmark leaked.

    Attributes:
      flagged: problems with `p <= rate`.
      expected: clean problems that are flagged by chance, at most, if all are clean.
      leaked: estimated share of leaked problems.
      interval: 95 % interval of it.
    """

    flagged: int
    expected: float
    leaked: float
    interval: tuple[float, float]


def null_of(clean: Evidence, settings: AuditSettings) -> Null:
    """What is seen of clean problems.

    Args:
      clean: evidence on C of them.
      settings: rate.

    Raises:
      ValueError: too few of them for the rate.
    """
    count = len(clean.loss_Q)
    if count < settings.least_clean:
        raise ValueError(
            f"{count} clean problems can't tell a rate of {settings.rate}: give at least "
            f"{settings.least_clean}, or a rate of {1 / (count + 1):.3f}"
        )
    rows = [_figures(clean, q) for q in range(count)]
    pairs = [(own.overlap_g.max(initial=0.0), own.score_g.max(initial=0.0)) for own in rows]
    overlap_C, score_C = np.array(pairs).T
    overlap, score = _centre(overlap_C), _centre(score_C)
    z_score_C = (score_C - score[0]) / score[1]
    t_C = np.maximum((overlap_C - overlap[0]) / overlap[1], z_score_C)
    # The smallest t for which (1 + #{t_c >= t}) / (1 + C) <= rate: above all but so many.
    above = math.floor(settings.rate * (1 + count) + 1e-9) - 1
    return Null(overlap, score, np.sort(t_C), *(_above(v_C, above) for v_C in (t_C, z_score_C)))


def judge(evidence: Evidence, null: Null, settings: AuditSettings) -> list[Judged]:
    """Verdicts on problems.

    Args:
      evidence: on Q of them.
      null: of clean problems.
      settings: rate.
    """
    return [_judged(evidence, q, null, settings.rate) for q in range(len(evidence.loss_Q))]


def suspicion(evidence: Evidence, q: int, null: Null) -> tuple[np.ndarray, np.ndarray]:
    """Groups of which anything is known for a problem, and t of each.

    Args:
      evidence, null: as for `judge`.
      q: number of the problem.
    """
    own = _figures(evidence, q)
    return own.group_g, _t_of(own, null)


def _t_of(own: "_Figures", null: Null) -> np.ndarray:
    z_overlap_g = (own.overlap_g - null.overlap[0]) / null.overlap[1]
    return np.maximum(z_overlap_g, (own.score_g - null.score[0]) / null.score[1])


def _judged(evidence: Evidence, q: int, null: Null, rate: float) -> Judged:
    own = _figures(evidence, q)
    if not len(own.group_g):
        return Judged(CLEAN, 1.0, -math.inf, 0.0, 0.0, 0.0, -math.inf, (), -1)
    t_g = _t_of(own, null)
    p = (1 + len(null.t_C) - np.searchsorted(null.t_C, t_g.max())) / (1 + len(null.t_C))
    order = np.lexsort((-t_g, -own.effect_g))
    these = order[t_g[order] > null.critical] if p <= rate else order[:0]
    # All replicas together act as one group would.
    effect = float(own.effect_g[these].sum()) if len(these) else float(own.effect_g[t_g.argmax()])
    [relative] = _log_relative(np.array([effect]), own.scale)
    effect_z = (relative - null.score[0]) / null.score[1]
    learnt = PRESENT if effect_z <= null.critical_score else LEARNT
    return Judged(
        CLEAN if p > rate else learnt, float(p), float(t_g.max()), float(own.overlap_g.max()),
        effect, effect / max(own.scale, 1e-30), float(effect_z),
        tuple(own.group_g[these].tolist()), int(own.group_g[t_g.argmax()]),
    )  # fmt: skip


class _Figures(NamedTuple):
    """What is known of one problem and of the groups of which anything is known, g.

    Attributes:
      group_g: their numbers.
      overlap_g: shares of the problem's words.
      effect_g: exact scores, nats; 0 where none is known.
      score_g: logarithm of these, relative to `scale`.
      scale: median magnitude of the exact scores.
    """

    group_g: np.ndarray
    overlap_g: np.ndarray
    effect_g: np.ndarray
    score_g: np.ndarray
    scale: float


def _figures(evidence: Evidence, q: int) -> _Figures:
    (scored, effect), (held, overlap) = (
        row_scores(own, q) for own in (evidence.scores, evidence.overlaps)
    )
    group_g = np.union1d(scored, held)
    overlap_g, effect_g = np.zeros(len(group_g)), np.zeros(len(group_g))
    overlap_g[np.searchsorted(group_g, held)] = overlap
    effect_g[np.searchsorted(group_g, scored)] = effect
    scale = float(np.median(np.abs(effect))) if len(effect) else 0.0
    return _Figures(group_g, overlap_g, effect_g, _log_relative(effect_g, scale), scale)


def _log_relative(effect_g: np.ndarray, scale: float) -> np.ndarray:
    """Logarithms of one and the positive scores in units of the typical one."""
    return np.log1p(np.maximum(effect_g, 0.0) / scale) if scale > 0 else np.zeros(len(effect_g))


def _centre(values_C: np.ndarray) -> tuple[float, float]:
    """Median, and median distance from it in units of a normal distribution's deviation."""
    middle = float(np.median(values_C))
    spread = 1.4826 * float(np.median(np.abs(values_C - middle)))
    return middle, max(spread, 1e-3)


def _above(values_C: np.ndarray, count: int) -> float:
    """What so many of the values, at most, exceed.

    >>> _above(np.array([3.0, 1.0, 2.0]), 1)
    2.0
    """
    return float(np.sort(values_C)[len(values_C) - 1 - count])


def share_of(judged: list[Judged], num_clean: int, power: float, rate: float) -> Share:
    """How much of the benchmark leaked.

        share = (f − r) / (power − r),   r = ⌊rate (1 + C)⌋ / (1 + C)

    of the share f that is flagged; the interval is Clopper's and Pearson's of f, and its lower end
    takes all leaks for found.

    Args:
      judged: the problems.
      num_clean: C.
      power: share of leaks that are flagged, such as that of the control.
      rate: of false alarms.

    >>> clean = Judged("clean", 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, (), -1)
    >>> share_of([clean] * 98 + [clean._replace(p=0.01)] * 2, 99, 1.0, 0.02).leaked
    0.0
    """
    false = math.floor(rate * (1 + num_clean) + 1e-9) / (1 + num_clean)
    flagged, count = sum(own.p <= rate for own in judged), len(judged)
    power = max(power, false + 0.05)
    low, high = scipy.stats.binomtest(flagged, count).proportion_ci(method="exact")
    share, upper = ((f - false) / (power - false) for f in (flagged / count, high))
    lower = (low - false) / (1 - false)
    bounded = [float(min(1.0, max(0.0, v))) for v in (share, lower, upper)]
    return Share(flagged, false * count, bounded[0], (bounded[1], bounded[2]))
