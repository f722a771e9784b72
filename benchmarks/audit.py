"""Leaked problems of a benchmark: are they found, and is what was learnt told from what is there?

    make encoder
    python -m benchmarks.instructions
    python -m benchmarks.audit --rate=.01 --seed=0 --workdir=runs/audit
    python -m benchmarks.audit --figures --workdir=runs/audit

A small GPT is trained on instructions and word problems, among them problems of the benchmark in 1,
4, 16 and 100 copies, verbatim, reworded or shifted (`benchmarks.audit_data`); a second one on the
same rows without them: a problem was learnt if its answer's loss is at most half of what it is
there. Opponents take, of all their settings, the one that serves them best on the very problems
that are scored; ours has its defaults. Cases are kept in the workdir; `--figures` writes the rows
of all of them to `docs/results/applications.json`.
"""

import dataclasses
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
import scipy.stats
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.audit_data import Leaked, LeakSettings, write
from benchmarks.contestants import contestants
from benchmarks.house import APPLICATIONS, ROOT, Row, command, commit_of, record
from benchmarks.methods import ENCODER, Method, Stride
from benchmarks.program import made_run
from stride_jax.applications.audit import AuditSettings, judge, null_of, suspicion
from stride_jax.applications.fusion import fused
from stride_jax.applications.replicas import Evidence, gather, losses, read_problems
from stride_jax.baselines.encoder import EncoderSettings
from stride_jax.cli.doors import Parser
from stride_jax.data.text_examples import TextExamples
from stride_jax.evaluation.statistics import bootstrap_mean
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import read_json, write_json

OPPONENTS = ("logra", "tf-idf", "bm25", "feature-cosine", "encoder")
_FLAGGED = 0.011
"""Share of the training rows that the paper flags for a problem."""

_DRAWS = 20


def settings_of(home: pathlib.Path, train: str, tokenizer: str = "") -> dict[str, Any]:
    """The config of a run on one of the case's files."""
    gpt = {"depth": 3, "width": 96, "num_heads": 2, "num_kv_heads": 2, "sequence_len": 96,
           "softcap": 0.0, "smear": False, "backout": False, "embedding_std": 0.05}  # fmt: skip
    return {
        "tuning": {"path": str(home / f"{train}.jsonl"), "num_query": 20, "num_calibration": 30,
                   "vocab_size": 2048, "length": 96, "tokenizer": tokenizer},
        "model": {"kind": "gpt", "gpt": gpt},
        "train": {"epochs": 4, "batch_size": 16, "optimizer": "adamw", "learning_rate": 3e-3,
                  "warmup": 0.05},
        "num_checkpoints": 1,
        "index": {"taps": ("embedding", "final"), "basis": {"rank": 96}, "output_rank": 96,
                  "design": {"num_subsets": 300, "kind": "hash"}, "kept": 0},
        "read": {"measure": {"form": "first_order"}, "exact": {"budget": 300, "rounds": 1},
                 "prior": 0.0, "lasso": {"lambda_fraction": 0.2, "relative_gap": 1e-2}},
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with leaks in its training data.

    Attributes:
      run: its run.
      plan: what was leaked.
      problems: the leaked ones first, as in the plan.
      clean: known to be clean.
      replica_QxG: which groups of training rows give each problem away, bool.
      learnt_Q: of the leaked problems, whether the loss at least halved by the leak.
    """

    run: Run
    plan: list[Leaked]
    problems: TextExamples
    clean: TextExamples
    replica_QxG: np.ndarray
    learnt_Q: np.ndarray


def case_of(home: pathlib.Path, data: pathlib.Path, settings: LeakSettings) -> Case:
    """Both models of a case, trained, or read if they were."""
    plan = write(data, home, settings)
    run = made_run(settings_of(home, "train"), home / "run")
    _ = run.index
    tokenizer = str(run.text.folder / "tokenizer.json")
    without = made_run(settings_of(home, "unleaked", tokenizer), home / "without")
    problems, clean = (
        read_problems(run, str(home / f"{name}.jsonl")) for name in ("problems", "clean")
    )
    names = problems.origins("document").tolist()
    rows = run.text.train.origins("document")
    leaks = {one.name: np.char.startswith(rows, f"leak {one.name} ") for one in plan}
    # A single copy that was too long for the model is no row of its training set, and no leak.
    here = [one for one in plan if one.name in names and leaks[one.name].any()]
    problems = problems.take(np.array([names.index(n) for n in _in_order(here, names)]))
    before_Q, after_Q = (losses(own, problems.examples)[0] for own in (without, run))
    groups = run.train.ids if run.train.keys is None else run.train.keys
    _, group_N = np.unique(groups, return_inverse=True)
    replica = np.zeros((len(problems), int(group_N.max()) + 1), bool)
    for q, one in enumerate(here):
        replica[q, group_N[leaks[one.name]]] = True
    learnt_Q = (after_Q <= before_Q / 2)[: len(here)]
    return Case(run, here, problems, clean, replica, learnt_Q)


def _in_order(plan: Sequence[Leaked], names: Sequence[str]) -> list[str]:
    """Names of the problems, the leaked ones first."""
    leaked = [one.name for one in plan]
    return [*leaked, *(name for name in names if name not in set(leaked))]


# ── what methods say ─────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True)
class Said:
    """What a method says of the problems.

    Attributes:
      detection_Q: the higher, the likelier it leaked.
      groups_QxG: the higher, the likelier the group gives it away.
      learnt_Q: the higher, the more the model learnt of the leak.
    """

    detection_Q: np.ndarray
    groups_QxG: np.ndarray
    learnt_Q: np.ndarray


def ours(case: Case, evidence: Evidence, clean: Evidence, settings: AuditSettings) -> Said:
    """Those of the audit."""
    null = null_of(clean, settings)
    judged = judge(evidence, null, settings)
    groups = np.full(case.replica_QxG.shape, -np.inf)
    for q in range(len(judged)):
        group_g, t_g = suspicion(evidence, q, null)
        groups[q, group_g] = t_g
    return Said(np.array([one.t for one in judged]), groups,
                np.array([one.effect_z for one in judged]))  # fmt: skip


def theirs(case: Case, evidence: Evidence, method: Method) -> list[Said]:
    """What an opponent says, at each of its settings; of groups by their best or by their sum."""
    both, said = (case.run.model, case.run.train), []
    count = case.replica_QxG.shape[1]
    places = (np.arange(len(both[1])), evidence.group_N)
    members = scipy.sparse.csr_array((np.ones(len(both[1])), places), (len(both[1]), count))
    for group in method.grid:
        state = method.fit(*both, group[0])
        for choice in group:
            scores = method.score(state, *both, case.problems.examples, choice)
            summed = np.asarray(scores @ members)
            best = np.full((len(scores), count), -np.inf)
            np.maximum.at(best.T, evidence.group_N, scores.T)
            for own in (best, summed):
                said.append(Said(own.max(axis=1), own, own.max(axis=1)))
    return said


def together(*parts: Said) -> Said:
    """What methods say together, by their ranks."""
    names = [field.name for field in dataclasses.fields(Said)]
    return Said(*(fused(*(getattr(own, name) for own in parts)) for name in names))


# ── figures ──────────────────────────────────────────────────────────────────────────────────────


def figures(case: Case, said: Said, size_G: np.ndarray) -> dict[str, list[float]]:
    """Figures of a method, a value for each leaked problem, or one of all.

    Args:
      case: the truth.
      said: what the method says.
      size_G: rows of each group.
    """
    leaked = np.arange(len(case.problems)) < len(case.plan)
    out: dict[str, list[float]] = {"auprc": [average_precision_score(leaked, said.detection_Q)]}
    hits: dict[str, list[float]] = {}
    for q, one in enumerate(case.plan):
        order = np.argsort(-said.groups_QxG[q], kind="stable")
        found = case.replica_QxG[q, order]
        for k in (1, 10):
            for name in (one.kind, f"{one.copies} copies", f"{one.kind} {one.copies} copies"):
                hits.setdefault(f"hit@{k} {name}", []).append(float(found[:k].any()))
        budget = max(one.copies, round(_FLAGGED * size_G.sum()))
        inside = np.cumsum(size_G[order]) <= budget
        replicas = size_G[order] * found
        hits.setdefault("recall", []).append(float(replicas[inside].sum() / replicas.sum()))
    if 0 < case.learnt_Q.sum() < len(case.learnt_Q):
        auc = roc_auc_score(case.learnt_Q, said.learnt_Q[: len(case.plan)])
        out["auc of learnt"] = [float(auc)]
    return out | hits


def false_alarms(parts: Sequence[Evidence], rate: float) -> list[float]:
    """Shares of clean problems that are flagged, when these are split at random again and again.

    Args:
      parts: evidence on clean problems, of the benchmark and beside it.
      rate: stated.
    """
    scores, held = (scipy.sparse.csr_array(scipy.sparse.vstack([getattr(p, name) for p in parts]))
                    for name in ("scores", "overlaps"))  # fmt: skip
    others = [np.concatenate([getattr(p, n) for p in parts])
              for n in ("loss_Q", "size_Q", "verdict_Q")]  # fmt: skip
    alarms, settings = [], AuditSettings(rate)
    for seed in range(_DRAWS):
        order = np.random.default_rng(seed).permutation(len(others[0]))
        known, asked = np.split(order, [200])
        clean, fresh = (Evidence(scores[rows], held[rows], parts[0].group_N,
                                 *(v[rows] for v in others))
                        for rows in (known, asked))  # fmt: skip
        judged = judge(fresh, null_of(clean, settings), settings)
        alarms.append(float(np.mean([one.p <= rate for one in judged])))
    return alarms


def board(case: Case) -> dict[str, Any]:
    """Figures of every method on a case, and of the audit's promises."""
    settings, count = AuditSettings(), len(case.plan)
    evidence, clean = (
        gather(case.run, own.examples, settings.shingle) for own in (case.problems, case.clean)
    )
    size_G = np.bincount(evidence.group_N)
    own = ours(case, evidence, clean, settings)
    by_loss = -evidence.loss_Q / evidence.size_Q
    rows = {"stride audit": figures(case, own, size_G)}
    rows["loss"] = {"auprc": [average_precision_score(np.arange(len(by_loss)) < count, by_loss)]}
    best: dict[str, Said] = {}
    taps = case.run.frozen.settings.every_tap()
    encoder = EncoderSettings(ENCODER, str(case.run.text.folder / "tokenizer.json"))
    for method in contestants(taps, Stride(), is_text=True, only=OPPONENTS, encoder=encoder):
        tried = [(figures(case, one, size_G), one) for one in theirs(case, evidence, method)]
        # Each figure at the setting that serves it best.
        rows[method.name] = {
            name: max((t[0][name] for t in tried), key=lambda v: float(np.mean(v)))
            for name in tried[0][0]
        }
        best[method.name] = max(tried, key=lambda t: float(np.mean(t[0]["recall"])))[1]
    for other in ("logra", "tf-idf", "encoder"):
        rows[f"stride audit + {other}"] = figures(case, together(own, best[other]), size_G)
    rows["logra + tf-idf"] = figures(case, together(best["logra"], best["tf-idf"]), size_G)
    judged = judge(evidence, null_of(clean, settings), settings)
    return {
        "rows": rows,
        "false_alarms": false_alarms([evidence.of(slice(count, None)), clean], settings.rate),
        "flagged": [one.verdict for one in judged],
        "plan": [dataclasses.asdict(one) for one in case.plan],
        "learnt": case.learnt_Q.tolist(),
        "loss_per_token": float((evidence.loss_Q / evidence.size_Q)[count:].mean()),
        "rows_of_training": len(case.run.train),
        "commit": commit_of(ROOT),
    }


def interval_of(values: np.ndarray) -> tuple[float, float] | None:
    """95 %: of hits and misses Clopper's and Pearson's, else of the mean; None of a single value.

    >>> interval_of(np.array([0.9])), interval_of(np.ones(10))[0] < 0.7
    (None, True)
    """
    if len(values) < 2:
        return None
    if set(values.tolist()) <= {0.0, 1.0}:
        own = scipy.stats.binomtest(int(values.sum()), len(values))
        low, high = own.proportion_ci(method="exact")
        return float(low), float(high)
    return bootstrap_mean(values)[1]


def recorded(boards: Sequence[dict[str, Any]], rate: float) -> list[Row]:
    """Rows of all seeds of a rate, pooled over problems."""
    asked = {
        "auprc": 0.5, "auc of learnt": 0.8, "recall": 0.9,
        "hit@1 exact 100 copies": 0.95, "hit@10 exact 100 copies": 0.99,
        "hit@1 exact 1 copies": 0.9, "hit@10 exact 1 copies": 0.95,
        "hit@10 reworded": 0.8, "hit@10 shifted": 0.8,
    }  # fmt: skip
    rows = []
    for method in boards[0]["rows"]:
        for name in boards[0]["rows"][method]:
            if method != "stride audit" and "copies" in name:
                continue
            values = np.array([v for own in boards for v in own["rows"][method].get(name, [])])
            mean, interval = float(values.mean()), interval_of(values)
            wanted = asked.get(name) if method == "stride audit" else None
            rows.append(Row(f"audit {100 * rate:g} %: {method}, {name}", mean, "higher",
                            interval, wanted))  # fmt: skip
    alarms = np.array([v for own in boards for v in own["false_alarms"]])
    mean, interval = bootstrap_mean(alarms)
    rows.append(Row(f"audit {100 * rate:g} %: false alarms at a rate of .02", mean, "lower",
                    interval, asked=0.02))  # fmt: skip
    return rows


def main(words: Sequence[str]) -> int:
    """Measure a case, or write the rows of all."""
    parser = Parser("audit", __doc__)
    parser.flag("workdir", "Folder of the cases.", default="runs/audit")
    parser.flag("data", "Folder of benchmarks.instructions.", default="data/instructions")
    parser.flag("rate", "Leaked problems, as a share of the other rows.", type=float, default=0.01)
    parser.flag("seed", "Seed of the case.", type=int, default=0)
    parser.switch("figures", "Write the rows of all cases that were measured.")
    given, _ = parser.read(words)
    home = pathlib.Path(given.workdir)
    if given.figures:
        for rate in sorted({float(p.name.split("-")[1]) for p in home.glob("case-*")}):
            boards = [read_json(p) for p in sorted(home.glob(f"case-{rate}-*/board.json"))]
            if boards:
                commits = ", ".join(dict.fromkeys(own["commit"] for own in boards))
                record(recorded(boards, rate), path=APPLICATIONS, commit=commits)
        return 0
    own = home / f"case-{given.rate}-{given.seed}"
    settings = LeakSettings(rate=given.rate, seed=given.seed)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*(repeat another's content|of their completion)"
        )
        result = board(case_of(own, pathlib.Path(given.data), settings))
    write_json(own / "board.json", result)
    for method, one in result["rows"].items():
        print(method, {name: round(float(np.mean(v)), 3) for name, v in one.items()})
    print("false alarms", np.mean(result["false_alarms"]))
    return 0


if __name__ == "__main__":
    command(main, "audit")
