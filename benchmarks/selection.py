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
lowest loss, on the first tasks and on every second task of the other half. `--noise` gives a share
of the candidates another row's answer. Intervals are of a bootstrap over tasks, paired.
"""

import dataclasses
import pathlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from benchmarks.contestants import contestants
from benchmarks.house import APPLICATIONS, ROOT, Row, command, commit_of, record
from benchmarks.methods import ENCODER, Stride
from benchmarks.program import made_run
from benchmarks.selection_data import PoolSettings, write
from benchmarks.selection_models import judged, judged_model
from configs import instructions
from stride_jax.applications.selection import Pool, SelectSettings, choose
from stride_jax.applications.targets import Targets, relative, targets_of, task_scores
from stride_jax.baselines.encoder import EncoderSettings
from stride_jax.cli.doors import Parser, at_least
from stride_jax.evaluation.statistics import bootstrap_mean
from stride_jax.examples import Examples
from stride_jax.models.train import TrainSettings
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import fingerprint, read_arrays, read_json, write_arrays, write_json
from stride_jax.sequences import token_lists

OF_TEXTS = ("tf-idf", "bm25", "dsir", "encoder")
OPPONENTS = ("rds+", "grad-cos", "logra", "less", *OF_TEXTS)
OPPONENTS_TAPS = ("previous", "final")
"""What opponents by activations read, each alone."""
_SETTINGS = 2
"""Most settings of its own that a method which asks a GPT has here: by both GPTs, and with three
ways to pool its targets, they are twelve."""
_FRESH = TrainSettings(epochs=4, batch_size=16, optimizer="adamw", learning_rate=1e-3, warmup=0.05)
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


@dataclasses.dataclass(frozen=True)
class Choice:
    """Rows that a method chose with one of its settings, for each task.

    Attributes:
      method: its name.
      setting: what it was chosen with.
      rows_AxS: chosen rows.
    """

    method: str
    setting: str
    rows_AxS: np.ndarray


def choices(
    runs: Mapping[str, Run], targets: Targets, budget: int, encoder: str
) -> Iterator[Choice]:
    """What every method chooses, at each of its settings.

    Args:
      runs: on the same candidates, by the GPT that is asked; the last one stands for all where a
        method asks none.
      targets: of all tasks.
      budget: rows for a task.
      encoder: folder of the sentence encoder.
    """
    *_, last = runs
    for name, run in runs.items():
        for method, setting, scores in _scored(run, targets, encoder, asks_none=name == last):
            for pooled, rows_AxS in _rows(run, targets, scores, budget).items():
                yield Choice(method, ", ".join(filter(None, (name, pooled, setting))), rows_AxS)


def _rows(
    run: Run, targets: Targets, scores: dict[str, np.ndarray], budget: int
) -> dict[str, np.ndarray]:
    """Rows chosen for each task, `[A, S]`, by how its targets are pooled.

    A pool of one row a task is ranked; a row for each target lets them choose in turn.
    """
    out = {}
    for pooled, scores_RxN in scores.items():
        rows = []
        for a in range(len(targets.tasks)):
            own = targets.task_Q == a if len(scores_RxN) == len(targets.task_Q) else [a]
            some_RxN = np.atleast_2d(scores_RxN[own])
            names = tuple(map(str, range(len(some_RxN))))
            nothing = np.full(len(run.train), "")
            pool = Pool(some_RxN, names, run.text.train.sizes_N, run.train.ids, nothing)
            chosen = choose(pool, SelectSettings(budget, pool="turns")).chosen
            rows.append(sorted(one.row for one in chosen))
        out[pooled] = np.array(rows)
    return out


def _scored(
    run: Run, targets: Targets, encoder: str, *, asks_none: bool
) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    """Scores of every method at each of its settings, by how targets are pooled; kept on disk."""
    ids = tuple(map(str, range(len(targets.task_Q))))
    own_QxN = task_scores(run, Targets(targets.examples, ids, np.arange(len(ids))), print)[0]
    pooled = _by_task(own_QxN, targets.task_Q)
    pooled["max"] = task_scores(run, targets, print, each=True)[0]
    yield "stride", "", pooled
    yield "stride", "relative", {name: relative(run, own) for name, own in pooled.items()}
    methods = contestants(
        OPPONENTS_TAPS, Stride(), is_text=True, only=OPPONENTS,
        encoder=EncoderSettings(encoder, str(run.text.folder / "tokenizer.json")),
    )  # fmt: skip
    both = run.model, run.train
    for method in methods:
        of_texts = method.name in OF_TEXTS
        if of_texts and not asks_none:
            continue
        for group in method.grid if of_texts else _coarse(method.grid):
            state = None
            for setting in group:
                name = fingerprint(run.products.key("model"), method.name, setting, "targets")
                path = run.workdir / "methods" / f"{name}.npz"
                # DSIR asks what a task is like, not each of its targets.
                joined = method.name == "dsir"
                if not path.exists():
                    print(method.name, setting, flush=True)
                    state = method.fit(*both, group[0]) if state is None else state
                    asked = _joined(targets) if joined else targets.examples
                    write_arrays(path, scores=method.score(state, *both, asked, setting))
                own = read_arrays(path)["scores"]
                yield (
                    method.name,
                    str(setting),
                    {"task": own} if joined else _by_task(own, targets.task_Q),
                )


def _coarse(grid: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Two settings of a method's grid: of its first group, which share a fit, or of its groups."""
    every = list(grid[0]) if len(grid[0]) > 1 else [group[0] for group in grid]
    if len(every) > _SETTINGS:
        places = np.linspace(0, len(every) - 1, 2 * _SETTINGS + 1)[1::2].round().astype(int)
        every = [every[i] for i in places]
    return [every] if len(grid[0]) > 1 else [[setting] for setting in every]


def _by_task(scores_QxN: np.ndarray, task_Q: np.ndarray) -> dict[str, np.ndarray]:
    """The targets of a task as one, their mean or each row at its best target; or all of them."""
    parts = [scores_QxN[task_Q == a] for a in range(int(task_Q.max()) + 1)]
    return {
        "mean": np.stack([own.mean(axis=0) for own in parts]),
        "max": np.stack([own.max(axis=0) for own in parts]),
        "turns": scores_QxN,
    }


def _joined(targets: Targets) -> Examples:
    """The targets of each task as one sequence without padding, which is behind it."""
    lists = [token_lists(targets.of(a), "dsir") for a in range(len(targets.tasks))]
    rows = [np.concatenate(own) for own in lists]
    length = max(map(len, rows))
    filled = lambda v, row: np.pad(row, (0, length - len(row)), constant_values=v)  # noqa: E731
    labels = np.stack([filled(-1, np.zeros_like(row)) for row in rows])
    return Examples(np.stack([filled(0, row) for row in rows]), labels, np.array(targets.tasks))


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
        tests = self.tests.of(a)
        both, paths = list(zip(rows_JxS, seed_J, strict=True)), []
        for rows_S, seed in both:
            asked = fingerprint(self.run.products.key("model"), task, rows_S, int(seed), _FRESH)
            paths.append(self.run.workdir / "judged" / f"{asked}.npz")
        new = [j for j, path in enumerate(paths) if not path.exists()]
        if new:
            made = judged(self.run, rows_JxS[new], np.array(seed_J)[new], tests, _FRESH)
            for j, one in zip(new, made, strict=True):
                write_arrays(paths[j], figures=np.array([getattr(one, name) for name in FIGURES]))
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
    kept = [list(FIGURES).index(name) for name in ("f1", "loss")]
    told = {}
    for a in (asked := [*first, *voting[0], *voting[1]]):
        rows_JxS = np.stack([one.rows_AxS[a] for one in made])
        told[a] = contest.figures(names[a], rows_JxS, [0] * len(made))[:, kept]
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
        name: [np.stack([one.rows_AxS[a] for a, one in enumerate(own)])] * seeds
        for name, own in best.items()
    }
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
