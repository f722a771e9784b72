"""What an audit found, as JSON values: problem by problem, and of the whole benchmark."""

import math
from collections import Counter
from typing import Any

import numpy as np

from stride_jax import reading
from stride_jax.applications.audit import LEARNT, PRESENT, AuditSettings, Judged, Null, share_of
from stride_jax.applications.replicas import Evidence
from stride_jax.data.text_examples import TextExamples
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import plain

_SHOWN = 3
"""Groups that are shown of a problem, and rows that are named of each."""

_WEAK = 0.5
"""A share of the control below which an audit is said to be weak."""


def report(
    run: Run,
    problems: TextExamples,
    evidence: Evidence,
    judged: list[Judged],
    null: Null,
    control: list[Judged],
    settings: AuditSettings,
) -> dict[str, Any]:
    """The whole report.

    Args:
      run: that was audited.
      problems: Q of them.
      evidence: on them.
      judged: them.
      null: of clean problems.
      control: training rows that were judged as if they were problems.
      settings: of the audit.

    Returns:
      `benchmark`, what is said of all problems; `control`; `warnings`; `problems`, the most
      suspicious first; and `settings`.
    """
    told, power = _control(control, null, settings)
    share = share_of(judged, len(null.t_C), power, settings.rate)
    counts = Counter(own.verdict for own in judged)
    order = sorted(range(len(judged)), key=lambda q: (judged[q].p, -judged[q].t))
    return {
        "benchmark": {
            "problems": len(judged),
            "flagged": share.flagged,
            "present": counts[PRESENT],
            "learnt": counts[LEARNT],
            "expected_false_alarms": share.expected,
            "leaked_share": share.leaked,
            "leaked_share_ci95": share.interval,
            "verdict": _verdict(share.flagged, share.interval),
        },
        "control": told,
        "warnings": warnings_of(told, evidence, math.log(run.data[1])),
        "problems": [_problem(run, problems, evidence, q, judged[q]) for q in order],
        "settings": plain(settings) | {"clean": len(null.t_C), "train": len(run.train)},
    }


def _verdict(flagged: int, interval: tuple[float, float]) -> str:
    low, high = (f"{100 * end:.1f}" for end in interval)
    if interval[0] > 0:
        return f"leaked: {low} to {high} % of the problems"
    if flagged:
        return f"no more is flagged than chance may flag: at most {high} % leaked"
    return f"no leak found: at most {high} % leaked"


def _control(
    control: list[Judged], null: Null, settings: AuditSettings
) -> tuple[dict[str, Any], float]:
    """What is found of training rows themselves, and the share of them that is flagged."""
    if not control:
        return {"rows": 0}, 1.0
    flagged = float(np.mean([own.p <= settings.rate for own in control]))
    alone = float(np.mean([own.effect_z > null.critical_score for own in control]))
    return {"rows": len(control), "flagged": flagged, "by_effect": alone}, flagged


def warnings_of(told: dict[str, Any], evidence: Evidence, guess: float) -> list[str]:
    """What is weak about an audit, in words.

    Args:
      told: what is said of the control.
      evidence: on the problems.
      guess: loss of a token that is guessed, nats.
    """
    said = []
    if (loss := float(np.median(evidence.loss_Q / evidence.size_Q))) > guess:
        said.append(
            f"the model's loss on the answers, {loss:.1f} nats a token, is worse than guessing "
            f"({guess:.1f}): it did not learn such texts, so effects say little"
        )
    if told["rows"] and told["by_effect"] < _WEAK:
        said.append(
            f"exact influence tells only {100 * told['by_effect']:.0f} % of the training rows from "
            "clean problems, so reworded leaks will be missed and what was learnt is not surely "
            "told from what is merely present: train longer or on fewer rows, or raise K "
            "(index.design.num_subsets) and read.exact.budget"
        )
    lost = float((evidence.verdict_Q == len(reading.VERDICTS) - 1).mean())
    if lost > 1 - _WEAK:
        said.append(
            f"of {100 * lost:.0f} % of the problems the sketch can't tell which rows matter (N/K "
            f"and budget are too weak): only rows that share their words or features were scored; "
            "raise K (index.design.num_subsets) or read.exact.budget"
        )
    if not told["rows"]:
        said.append("no control was asked, so nothing says what this audit is able to find")
    return said


def _problem(
    run: Run, problems: TextExamples, evidence: Evidence, q: int, own: Judged
) -> dict[str, Any]:
    """A problem, what is said of it, and the groups that were found."""
    shown = own.groups[:_SHOWN] or ((own.nearest,) if own.nearest >= 0 else ())
    tokens = max(1, int(evidence.size_Q[q]))
    return {
        "id": problems.origins_of(q)[0]["id"],
        "text": problems.take(np.array([q])).texts(run.corpus.tokenizer)[0],
        "verdict": own.verdict,
        "p": own.p,
        "overlap": own.overlap,
        "loss_per_token": float(evidence.loss_Q[q]) / tokens,
        "effect_per_token": own.effect / tokens,
        "times": own.times,
        "effect_z": own.effect_z,
        "groups": len(own.groups),
        "replicas": [_replica(run, evidence, q, group, own) for group in shown],
        "reading": reading.VERDICTS[int(evidence.verdict_Q[q])],
    }


def _replica(run: Run, evidence: Evidence, q: int, group: int, own: Judged) -> dict[str, Any]:
    """A group of rows that act as one: its copies, its first row's text, and what it does."""
    rows = np.flatnonzero(evidence.group_N == group)
    text = run.text.train
    return {
        "copies": len(rows),
        "rows": [text.references(int(row)) for row in rows[:_SHOWN]],
        "ids": run.train.ids[rows[:_SHOWN]].tolist(),
        "text": text.take(rows[:1]).texts(run.corpus.tokenizer)[0],
        "overlap": float(evidence.overlaps[[q], [group]][0]),
        "effect": (effect := float(evidence.scores[[q], [group]][0])),
        "times": effect * own.times / own.effect if own.effect else 0.0,
    }
