"""Pictures of what was measured, in one style, each with words for who can't see it.

    python -m benchmarks.plots

Reads boards and results files of `docs/`, writes `docs/figures/*.png` and the page
`docs/figures.md`. Nothing is measured here.
"""

import itertools
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from benchmarks.drawing import BOUND, OTHERS, OURS, blank, save
from benchmarks.house import ROOT, command
from benchmarks.standing import opponents, read_boards
from stride_jax.cli.doors import Parser
from stride_jax.runtime.files import write_text

_MARKS = "osD^vP*X<>hp"


class Picture(NamedTuple):
    """A figure on the page.

    Attributes:
      name: of its file.
      draw: draws on axes, and says what they show in words.
      source: what measured it.
    """

    name: str
    draw: Callable[[Axes], str]
    source: str


def _rows(docs: pathlib.Path, name: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads((docs / f"results/{name}.json").read_text())}


# ── boards ───────────────────────────────────────────────────────────────────────────────────────


def standings(boards: dict[str, dict[str, Any]]) -> Callable[[Axes], str]:
    """LDS of every method as a share of what a perfect predictor has, board by board."""

    def draw(axes: Axes) -> str:
        said = []
        for x, (name, board) in enumerate(boards.items()):
            top = board["ceiling"]["perfect_predictor"]
            ours = next(row for row in board["rows"] if row["method"] == "stride")
            others = sorted(opponents(board), key=lambda row: -row["lds"])
            for row in others:
                axes.plot(x, row["lds"] / top, "o", mfc="none", mec=OTHERS, markersize=5)
            low, high = (end / top for end in ours["lds_ci95"])
            own = ours["lds"] / top
            axes.errorbar(x, own, yerr=[[own - low], [high - own]], fmt="D", color=OURS, capsize=3)
            best = others[0]
            name_in_lines = best["method"].replace("-", "-\n")
            axes.annotate(name_in_lines, (x, best["lds"] / top), xytext=(7, -12),
                          textcoords="offset points", fontsize=7.5, color=OTHERS)  # fmt: skip
            said.append(f"{name} {own:.2f} (best other, {best['method']}, {best['lds'] / top:.2f})")
        axes.set_xticks(range(len(boards)), [name.replace("_", "\n") for name in boards])
        axes.set_xlim(-0.5, len(boards) - 0.3)
        axes.set_ylim(top=1.02)  # room for the legend
        axes.set_ylabel("LDS / LDS of a perfect predictor")
        axes.plot([], [], "D", color=OURS, label="STRIDE, 95 % interval")
        axes.plot([], [], "o", mfc="none", mec=OTHERS, label="other methods, the best by name")
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        return "Share of a perfect predictor's LDS on each board. STRIDE: " + ", ".join(said) + "."

    return draw


def noise(boards: dict[str, dict[str, Any]]) -> Callable[[Axes], str]:
    """What a perfect predictor has, by the number of seeds that a subset is trained with."""
    seeds = range(1, 17)

    def draw(axes: Axes) -> str:
        said, begins = [], []
        for (name, board), mark in zip(boards.items(), itertools.cycle(_MARKS), strict=False):
            count, reliability = board["bank"]["num_seeds"], board["ceiling"]["reliability"]
            # Spearman and Brown: the mean of S outputs has S times the signal to noise of one.
            ratio = reliability / (1 - reliability) / count
            tops = [(ratio * s / (1 + ratio * s)) ** 0.5 for s in seeds]
            axes.plot(seeds, tops, color=OTHERS, linewidth=1)
            low, high = (end**0.5 for end in board["ceiling"]["reliability_ci95"])
            top = reliability**0.5
            axes.errorbar(count, top, yerr=[[top - low], [high - top]], fmt=mark, color=OURS,
                          capsize=2, markersize=5)  # fmt: skip
            begins.append((tops[0], name.replace("_", " ")))
            said.append(f"{name} {top:.2f} with {count}, {tops[-1]:.2f} with {seeds[-1]}")
        at = 1.0
        for begin, name in sorted(begins, reverse=True):
            at = min(begin, at - 0.03)  # names stay apart where lines don't
            axes.annotate(name, (1, at), xytext=(-5, -3), ha="right",
                          textcoords="offset points", fontsize=8)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        axes.set_xlim(0.6, 17)
        axes.set_xlabel("models of each subset (marks: measured; lines: by Spearman and Brown)")
        axes.set_ylabel("LDS of a perfect predictor")
        return (
            "LDS that a perfect predictor would have, by seeds a subset: " + "; ".join(said) + "."
        )

    return draw


def costs(rows: dict[str, dict[str, Any]]) -> Callable[[Axes], str]:
    """Seconds of fit and 100 queries on MNIST-5k against N, method by method."""
    pattern = re.compile(r"cost, mnist5k: (.*), N = ([\d,]+), Q = 100, seconds")
    lines: dict[str, dict[int, dict[str, Any]]] = {}
    for name, row in rows.items():
        if m := pattern.fullmatch(name):
            lines.setdefault(m[1], {})[int(m[2].replace(",", ""))] = row

    def draw(axes: Axes) -> str:
        said, sizes = [], sorted(next(iter(lines.values())))
        for (method, own), mark in zip(lines.items(), itertools.cycle(_MARKS), strict=False):
            ours = method.startswith("stride")
            values = [own[n]["value"] for n in sizes]
            ends = [[abs(own[n]["interval"][e] - own[n]["value"]) for n in sizes] for e in (0, 1)]
            axes.errorbar(sizes, values, yerr=ends, fmt=mark + ("-" if ours else ":"), capsize=2,
                          color=OURS if ours else OTHERS, mfc=None if ours else "none",
                          markersize=6, label=method)  # fmt: skip
            said.append(f"{method} {values[0]:.2g} to {values[-1]:.2g} s")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("training examples N (MNIST-5k's MLP, 100 queries)")
        axes.set_ylabel("seconds: fit and queries, without compilation")
        axes.legend(frameon=False, fontsize=8, ncols=2)
        return f"From N = {sizes[0]:,} to {sizes[-1]:,}: " + ", ".join(said) + "."

    return draw


def tuned_models(rows: dict[str, dict[str, Any]]) -> Callable[[Axes], str]:
    """LDS on the boards of fine-tuned language models, method by method."""

    def draw(axes: Axes) -> str:
        boards = ("instructions", "word problems")
        found = {board: _methods(rows, f"SFT {board}") for board in boards}
        names = sorted(found[boards[0]], key=lambda name: found[boards[0]][name]["value"])
        names = [name for name in names if all(name in own for own in found.values())]
        for board, mark in zip(boards, _MARKS, strict=False):
            for y, name in enumerate(names):
                row, ours = found[board][name], name == "stride"
                low, high = row["interval"]
                axes.errorbar(row["value"], y, xerr=[[row["value"] - low], [high - row["value"]]],
                              fmt=mark, color=OURS if ours else OTHERS, capsize=2, markersize=5,
                              mfc=OURS if ours else "none")  # fmt: skip
            axes.plot([], [], mark, color=OTHERS, mfc="none", label=board)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color="#e4e7ec")
        axes.set_xlabel("LDS, 95 % interval over queries")
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        best = [f"{board}: {found[board]['stride']['value']:.2f}" for board in boards]
        return f"LDS of {len(names)} methods on fine-tuned models. STRIDE: {', '.join(best)}."

    return draw


def _methods(rows: dict[str, dict[str, Any]], board: str) -> dict[str, dict[str, Any]]:
    pattern = re.compile(rf"{board}: (?!stride above|perfect)(.*), LDS")
    return {m[1]: row for name, row in rows.items() if (m := pattern.fullmatch(name))
            and row["interval"]}  # fmt: skip


# ── sketch and exact scores ──────────────────────────────────────────────────────────────────────


def budgets(rows: dict[str, dict[str, Any]]) -> Callable[[Axes], str]:
    """LDS on MNIST-5k against the number of exact scores a query, by design and K."""
    lines = {
        "K = 300, subsets by content": "K=300, nothing kept",
        "K = 1,000, subsets by hash": "hash, K=1000, nothing kept",
        "K = 300, subsets by hash": "hash, K=300, nothing kept",
    }

    def draw(axes: Axes) -> str:
        said = []
        for (label, name), mark in zip(lines.items(), _MARKS, strict=False):
            given = [(budget, f"MNIST-5k LDS, {name}, {budget or 'no'} exact")
                     for budget in (0, 300, 1000)]  # fmt: skip
            values = [rows[key]["value"] for _, key in given]
            axes.plot([b for b, _ in given], values, mark + "-", label=label, markersize=6,
                      color=OURS if "content" in label else OTHERS,
                      mfc=None if "content" in label else "none")  # fmt: skip
            said.append(f"{label}: {values[0]:.2f} to {values[-1]:.2f}")
        top = rows["MNIST-5k LDS, direct"]["value"]
        axes.axhline(top, color=BOUND, linestyle="--", linewidth=0.9)
        axes.annotate("all scores exact", (1.0, top), xytext=(0, 3), color=BOUND, fontsize=8,
                      xycoords=("axes fraction", "data"), textcoords="offset points",
                      ha="right")  # fmt: skip
        axes.set_xlabel("exact scores a query, of N = 4,500 (nothing kept)")
        axes.set_ylabel("LDS, whole bank")
        axes.legend(frameon=False, fontsize=8)
        return "LDS from no exact score to 1,000 a query. " + "; ".join(said) + f". All: {top:.2f}."

    return draw


def found(rows: dict[str, dict[str, Any]]) -> Callable[[Axes], str]:
    """Share of the true ten strongest that are found, against N, at 1,000 exact evaluations."""

    def draw(axes: Axes) -> str:
        sizes, said = (1e5, 1e6, 1e7), []
        for k, mark in zip((1000, 4000, 16000), _MARKS, strict=False):
            for who, tail in (("STRIDE", ""), ("faiss, inverted file", ", faiss IndexIVFFlat")):
                keys = [f"growth: true top 10 found, N={n:.0e}, K={k}, P=1000{tail}" for n in sizes]
                values, ours = [rows[key]["value"] for key in keys], not tail
                axes.plot(sizes, values, mark + ("-" if ours else ":"), markersize=6,
                          color=OURS if ours else OTHERS, mfc=None if ours else "none",
                          label=f"{who}, K = {k:,}")  # fmt: skip
                said.append(f"{who} with K = {k:,}: {values[0]:.2f} to {values[-1]:.2f}")
        axes.set_xscale("log")
        axes.set_ylim(0.5, 1.02)
        axes.set_xlabel("training examples N (synthetic gradients)")
        axes.set_ylabel("true ten strongest found")
        axes.legend(frameon=False, fontsize=8, loc="lower left")
        return "Share found from N = 10⁵ to 10⁷. " + "; ".join(said) + "."

    return draw


def growth(rows: dict[str, dict[str, Any]]) -> Callable[[Axes], str]:
    """Seconds of a query against N, beside a scan of all examples."""

    def draw(axes: Axes) -> str:
        sizes = (1e5, 1e6, 1e7)
        scan = [rows[f"growth: scan seconds per query, N={n:.0e}"]["value"] for n in sizes]
        axes.plot(sizes, scan, "s:", color=OTHERS, mfc="none", label="scan of all examples")
        said = [f"a scan takes {1e3 * scan[0]:.1f} to {1e3 * scan[-1]:.0f} ms"]
        for k, mark in ((1000, "o"), (16000, "D")):
            keys = [f"growth: query seconds, N={n:.0e}, K={k}, P=1000" for n in sizes]
            values = [rows[key]["value"] for key in keys]
            axes.plot(sizes, values, mark + "-", color=OURS, label=f"STRIDE, K = {k:,}")
            said.append(f"K = {k:,} {1e3 * values[0]:.1f} to {1e3 * values[-1]:.1f} ms")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("training examples N (synthetic gradients)")
        axes.set_ylabel("seconds a query")
        axes.legend(frameon=False, fontsize=8)
        return "From N = 10⁵ to 10⁷ " + ", ".join(said) + "."

    return draw


# ── the page ─────────────────────────────────────────────────────────────────────────────────────


def pictures(docs: pathlib.Path) -> list[Picture]:
    """All figures of the page, in its order."""
    boards = read_boards(docs / "boards")
    pointing, applications = _rows(docs, "pointing"), _rows(docs, "applications")
    of_boards = _rows(docs, "boards")
    return [
        Picture("Every board at a glance", standings(boards), "benchmarks.leaderboard"),
        Picture("What noise in the bank leaves to be had", noise(boards), "benchmarks.leaderboard"),
        Picture("Fine-tuned language models", tuned_models(applications), "benchmarks.leaderboard"),
        Picture("What exact scores add to the sketch", budgets(pointing), "benchmarks.pointing"),
        Picture("Who is found as N grows", found(pointing), "benchmarks.growth"),
        Picture("What a query costs as N grows", growth(pointing), "benchmarks.growth"),
        Picture("What a fit and 100 queries cost", costs(of_boards), "benchmarks.cost_curves"),
    ]


def main(words: Sequence[str]) -> None:
    """Draw all figures, write the page."""
    parser = Parser("plots", __doc__)
    parser.flag("docs", "Folder of the documentation.", default=str(ROOT / "docs"))
    given, _ = parser.read(words)
    docs = pathlib.Path(given.docs)
    (docs / "figures").mkdir(exist_ok=True)
    parts = ["# Figures\n\nWhat the results files say, drawn by `python -m benchmarks.plots`."]
    for one in pictures(docs):
        figure, axes = blank(one.name)
        words_of = one.draw(axes)
        file = one.name.lower().replace(" ", "_") + ".png"
        save(figure, docs / "figures" / file)
        parts.append(f"## {one.name}\n\n![{words_of}](figures/{file})\n\n{words_of} Measured by "
                     f"`python -m {one.source}`.")  # fmt: skip
    write_text(docs / "figures.md", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    command(main, "plots")
