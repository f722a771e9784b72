"""Data selection: models trained on the rows that each method chooses for a task, and judged on it.

    make encoder
    python -m benchmarks.instructions
    python -m experiments.run --config=configs/instructions_base.py \\
        --workdir=runs/instructions_base --until=model
    python -m benchmarks.selection --workdir=runs/selection
    python -m benchmarks.selection --workdir=runs/selection --noise=.2
    python -m benchmarks.selection --workdir=runs/selection --figures

A small GPT has read rows of other tasks as text. Every method ranks the candidates of all tasks
(`benchmarks.selection_data`) for each task by its ten targets, by that GPT as it is, or by one that
was fine-tuned on all candidates. Then models are trained from the first GPT again, on the best
`budget` rows alone, and answer the task's tests.

Settings of a method: its own; which of both GPTs; and whether a row counts by the mean over the
targets, by the one it does most for, or the targets choose in turn. `stride`'s own is whether
scores are relative to the root of a row's self-influence. No figure is taken of the first tasks,
and the others are halves: a method is judged on a task at the setting of the highest F1, then the
lowest loss, on the first tasks and on every second task of the other half. "a + b" adds up the
reciprocal ranks of both, each at the setting it chose alone. `--noise` gives a share of the
candidates another row's answer. Intervals are of a bootstrap over tasks, paired.
"""

import dataclasses
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from benchmarks.house import APPLICATIONS, ROOT, Row, command, commit_of, record
from benchmarks.methods import ENCODER
from benchmarks.program import made_run
from benchmarks.selection_choices import Choice, choices, joined
from benchmarks.selection_data import PoolSettings, write
from benchmarks.selection_models import judged, judged_model
from configs import instructions
from stride_jax.applications.targets import Targets, targets_of
from stride_jax.cli.doors import Parser, at_least
from stride_jax.evaluation.statistics import bootstrap_mean
from stride_jax.models.train import TrainSettings
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import fingerprint, read_arrays, read_json, write_arrays, write_json

_FRESH = TrainSettings(epochs=4, batch_size=16, optimizer="adamw", learning_rate=1e-3, warmup=0.05)
JOINED = (("stride", "tf-idf"), ("stride", "encoder"), ("logra", "tf-idf"))
"""Methods that choose together, each at its own setting."""
FIGURES: dict[str, Literal["higher", "lower"]] = {
    "f1": "higher",
    "exact": "higher",
    "loss": "lower",
}


def settings_of(home: pathlib.Path, base: str, epochs: int = 2) -> dict[str, Any]:
    """Config of the candidates' run: that of `configs/instructions.py` on them."""
    config = instructions.get_config().to_dict()
    for name in ("bank", "leaderboard"):
        del config[name]
    files = {"path": str(home / "candidates.jsonl"), "query_path": str(home / "targets.jsonl"),
             "max_train": 0, "num_query": 0}  # fmt: skip
    config["tuning"] |= files
    config["model"]["init_from"] = base
    config["train"]["epochs"] = epochs
    config["read"]["exact"]["budget"] = None
    return config


def _all_exact(run: Run) -> Run:
    """The run, with every candidate scored exactly: their number is known once they are read."""
    read = run.settings.read
    exact = dataclasses.replace(read.exact, budget=len(run.train))
    settings = dataclasses.replace(run.settings, read=dataclasses.replace(read, exact=exact))
    return Run(settings, run.workdir)


def references(run: Run, targets: Targets, budget: int, seeds: int) -> dict[str, list[np.ndarray]]:
    """Rows drawn at random, from all and from those of the task itself, `[A, S]` for each seed."""
    task_N = run.text.train.origins("task")
    out: dict[str, list[np.ndarray]] = {"random": [], "random of the task": []}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        count = len(targets.tasks)
        out["random"].append(
            np.stack([rng.choice(len(task_N), budget, replace=False) for _ in range(count)])
        )
        own = [np.flatnonzero(task_N == name) for name in targets.tasks]
        out["random of the task"].append(
            np.stack([rng.choice(rows, budget, replace=len(rows) < budget) for rows in own])
        )
    return out


# ── models ───────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True)
class Contest:
    """What methods are judged with.

    Attributes:
      run: of the candidates, fine-tuned on all of them.
      start: on the same, by the GPT that this one began as.
      targets: of all tasks.
      tests: of all tasks, their tasks numbered as the targets'.
      budget: rows chosen for a task.
    """

    run: Run
    start: Run
    targets: Targets
    tests: Targets
    budget: int

    def figures(self, task: str, rows_JxS: np.ndarray, seed_J: Sequence[int]) -> np.ndarray:
        """Figures of models trained on some rows each, `[J, figures]`; stored by what they are."""
        a = self.targets.tasks.index(task)
        tests, most = self.tests.of(a), int(np.bincount(self.tests.task_Q).max())
        paths = []
        for rows_S, seed in zip(rows_JxS, seed_J, strict=True):
            asked = fingerprint(self.run.products.key("model"), task, rows_S, int(seed), _FRESH)
            paths.append(self.run.workdir / "judged" / f"{asked}.npz")
        # Settings that choose the same rows have one model.
        new = {path: j for j, path in enumerate(paths) if not path.exists()}
        if new:
            chosen = list(new.values())
            rows, seeds = rows_JxS[chosen], np.array(seed_J)[chosen]
            made = judged(self.run, rows, seeds, tests, _FRESH, room=most)
            for path, one in zip(new, made, strict=True):
                write_arrays(path, figures=np.array([getattr(one, name) for name in FIGURES]))
        return np.stack([read_arrays(path)["figures"] for path in paths])


def tuned(
    contest: Contest, made: Sequence[Choice], tuning: Sequence[str]
) -> dict[str, list[Choice]]:
    """What each method chose, for each task at the setting that served best on other tasks.

    That of the highest F1; of those that are even, of the lowest loss.

    Returns:
      By method, a choice for each task in the order of `contest.targets.tasks`.
    """
    names = contest.targets.tasks
    scored = [a for a, name in enumerate(names) if name not in tuning]
    first = [a for a in range(len(names)) if a not in scored]
    halves = scored[::2], scored[1::2]
    voting = [half[::2] for half in halves]
    place = [list(FIGURES).index(name) for name in ("f1", "loss")]
    told = {}
    for a in (asked := [*first, *voting[0], *voting[1]]):
        rows_JxS = np.stack([one.rows(a) for one in made])
        told[a] = contest.figures(names[a], rows_JxS, [0] * len(made))[:, place]
        print(f"settings: {len(told)} of {len(asked)} tasks, {names[a]} done", flush=True)
    out: dict[str, list[Choice]] = {}
    for method in dict.fromkeys(one.method for one in made):
        own = [i for i, one in enumerate(made) if one.method == method]
        out[method] = []
        for a in range(len(names)):
            others = [other for half in voting for other in half if a not in scored or
                      scored.index(a) % 2 != scored.index(other) % 2]  # fmt: skip
            others += [other for other in first if other != a]
            f1_I, loss_I = np.mean([told[other][own] for other in others], axis=0).T
            out[method].append(made[own[int(np.lexsort((loss_I, -f1_I.round(3)))[0])]])
    return out


def board(contest: Contest, tuning: Sequence[str], seeds: int, encoder: str) -> dict[str, Any]:
    """Figures of each method on each task, means over the seeds."""
    runs = {"fine-tuned": contest.run, "start": contest.start}
    made = list(choices(runs, contest.targets, contest.budget, encoder))
    best = tuned(contest, made, tuning)
    chosen = {
        name: [np.stack([one.rows(a) for a, one in enumerate(own)])] * seeds
        for name, own in best.items()
    }
    count = len(contest.run.train)
    for both in JOINED:
        parts_A = zip(*(best[name] for name in both), strict=True)
        rows = [joined(parts, a, count) for a, parts in enumerate(parts_A)]
        chosen[" + ".join(both)] = [np.stack(rows)] * seeds
    chosen |= references(contest.run, contest.targets, contest.budget, seeds)
    scored = [name for name in contest.targets.tasks if name not in tuning]
    figures: dict[str, dict[str, list[float]]] = {
        method: {name: [] for name in FIGURES} for method in (*chosen, "all candidates")
    }
    task_N = contest.run.text.train.origins("task")
    wrong_N = contest.run.text.train.origins("wrong").astype(int)
    of_task: dict[str, list[float]] = {method: [] for method in chosen}
    of_wrong: dict[str, list[float]] = {method: [] for method in chosen}
    on_all = everything(contest, scored, seeds)
    for number, task in enumerate(scored):
        a = contest.targets.tasks.index(task)
        rows_JxS = np.stack([own[e][a] for own in chosen.values() for e in range(seeds)])
        seed_J = list(range(seeds)) * len(chosen)
        own = contest.figures(task, rows_JxS, seed_J).reshape(len(chosen), seeds, -1).mean(axis=1)
        rows = dict(zip(chosen, own, strict=True)) | {"all candidates": on_all[number]}
        for method, values in rows.items():
            for name, value in zip(FIGURES, values, strict=True):
                figures[method][name].append(float(value))
        for method, by_seed in chosen.items():
            of_task[method].append(float(np.mean([task_N[r[a]] == task for r in by_seed])))
            of_wrong[method].append(float(np.mean([wrong_N[r[a]] for r in by_seed])))
        print(f"task {number + 1} of {len(scored)}, {task} done", flush=True)
    return {"tasks": scored, "figures": figures, "of_task": of_task, "of_wrong": of_wrong,
            "settings": {name: [one.setting for one in own] for name, own in best.items()},
            "candidates": len(task_N), "budget": contest.budget, "seeds": seeds,
            "commit": commit_of(ROOT)}  # fmt: skip


def everything(contest: Contest, tasks: Sequence[str], seeds: int) -> np.ndarray:
    """Figures of models trained on all candidates, mean over their seeds, `[A, figures]`."""
    run, out = contest.run, []
    for seed in range(seeds):
        own = run if seed == 0 else run.another(seed)
        made = [judged_model(own, contest.tests.of(contest.targets.tasks.index(t))) for t in tasks]
        out.append([[getattr(one, name) for name in FIGURES] for one in made])
    return np.mean(out, axis=0)


def recorded(result: dict[str, Any], name: str) -> list[Row]:
    """Rows of a board: every method's figures, and their paired differences to `stride`."""
    rows, own = [], {k: np.array(v) for k, v in result["figures"]["stride"].items()}
    for method, figures in result["figures"].items():
        for figure, better in FIGURES.items():
            values = np.array(figures[figure])
            mean, interval = bootstrap_mean(values)
            rows.append(Row(f"{name}: {method}, {figure}", mean, better, interval))
            if method != "stride":
                gap = own[figure] - values
                mean, interval = bootstrap_mean(gap if better == "higher" else -gap)
                what = f"{name}: stride better than {method} by {figure}"
                rows.append(Row(what, mean, "higher", interval, asked=0.0))
    return rows


def main(words: Sequence[str]) -> int:
    """Measure a board, or write the rows of all."""
    parser = Parser("selection", __doc__)
    parser.flag("workdir", "Folder of the boards.", default="runs/selection")
    parser.flag("data", "Folder of benchmarks.instructions.", default="data/instructions")
    parser.flag("base", "Folder of the base model's run.", default="runs/instructions_base")
    parser.flag("encoder", "Folder of the sentence encoder.", default=ENCODER)
    parser.flag("noise", "Candidates with another's answer, a share.", type=float, default=0.0)
    parser.flag("budget", "Rows chosen for a task.", type=at_least(1), default=100)
    parser.flag("seeds", "Models of each choice.", type=at_least(1), default=3)
    parser.switch("figures", "Write the rows of all boards that were measured.")
    given, _ = parser.read(words)
    home = pathlib.Path(given.workdir)
    if given.figures:
        for path in sorted(home.glob("noise-*/board.json")):
            noise = float(path.parent.name.partition("-")[2])
            record(
                recorded(read_json(path), f"selection, {100 * noise:g} % wrong"), path=APPLICATIONS
            )
        return 0
    own = home / f"noise-{given.noise:g}"
    settings = PoolSettings(noise=given.noise)
    asked = write(pathlib.Path(given.data), own, settings)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*(repeat another's content|of their completion)"
        )
        run, start = (
            _all_exact(made_run(settings_of(own, given.base, epochs), own / name))
            for name, epochs in (("candidates", 2), ("start", 0))
        )
        targets, tests = (
            targets_of(run, str(own / f"{name}.jsonl"), "task") for name in ("targets", "tests")
        )
    if targets.tasks != tests.tasks:
        raise ValueError(
            f"tests of {tests.tasks}, but targets of {targets.tasks}: take shorter rows"
        )
    contest = Contest(run, start, targets, tests, given.budget)
    result = board(contest, asked[: settings.tuning], given.seeds, given.encoder)
    write_json(own / "board.json", result)
    for method, figures in result["figures"].items():
        print(method, {name: round(float(np.mean(v)), 4) for name, v in figures.items()})
    return 0


if __name__ == "__main__":
    command(main, "selection")
