"""Where STRIDE stands on all boards together: the table that a reader sees first.

Opponents are methods that read one training run and no retrained model. Of a board, the best of
them is found on the figures themselves, which flatters it a little.
"""

import json
import pathlib
from typing import Any

import numpy as np

from benchmarks.house import Row

PUBLISHED = {
    "mnist5k": "MNIST MLP: STRIDE .417, LoGRA .303",
    "fashion_mlp": "FashionMNIST MLP: STRIDE .231, TRAK .198",
    "fashion_small": "FashionMNIST small MLP: STRIDE .211, TRAK .226",
    "parkinsons": "Parkinsons MLP: STRIDE .536, LoGRA .405",
    "cifar_resnet": "CIFAR-10 ResNet-9: STRIDE .130, LoGRA .285",
    "digits_resnet": "CIFAR-10 ResNet-9: STRIDE .130, LoGRA .285",
    "bible_gpt": "286M GPT, pre-training: STRIDE .158, AirRep .141",
}
"""LDS in the paper (arXiv 2606.05165) of what comes nearest; data, models and m differ."""

LATER = (
    "With ten dampings on mnist5k (of which Gauss-Newton and ASTRA get the seven largest) "
    "Gauss-Newton has .512 and ASTRA .404, so that `stride` is ahead by .044; those rows have no "
    "seconds and stand in `results/boards.json`."
)
"""What was measured after a board's page was written."""

_RETRAINED = ("datamodels", "encoder-trained")


def read_boards(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Boards of a folder, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def opponents(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the methods that STRIDE is ranked among: one training run, no retrained model."""
    names = {row["method"] for row in board["rows"]}
    return [
        row
        for row in board["rows"]
        if not row["method"].startswith("stride")
        and row["method"] not in _RETRAINED
        and row["method"].rpartition("-")[0] not in names  # ensembles are named after one of them
    ]


def standing(board: dict[str, Any]) -> dict[str, Any]:
    """STRIDE's LDS and rank on a board, and what is between it and the best opponent.

    Returns:
      `lds`, `ci95`, `rank`, `of`, `best` (its name), `best_lds`, and `ahead` and `ahead_ci95`,
      STRIDE's lead with a paired interval over queries.
    """
    ours = next(row for row in board["rows"] if row["method"] == "stride")
    others = opponents(board)
    best = max(others, key=lambda row: row["lds"])
    low, high = best["lds_minus_stride_ci95"]
    return {
        "lds": ours["lds"],
        "ci95": ours["lds_ci95"],
        "rank": 1 + sum(row["lds"] > ours["lds"] for row in others),
        "of": 1 + len(others),
        "best": best["method"],
        "best_lds": best["lds"],
        "ahead": ours["lds"] - best["lds"],
        "ahead_ci95": (-high, -low),
    }


def mean_ranks(
    boards: dict[str, dict[str, Any]], seed: int = 0
) -> list[tuple[str, float, float, float]]:
    """Mean rank of each method that is on every board, with a 95 % interval over boards.

    Returns:
      `(method, mean, low, high)`, the best first. The interval is a bootstrap's over boards, of
      which there are few.
    """
    every = [
        {row["method"]: row["lds"] for row in opponents(board)} | {"stride": standing(board)["lds"]}
        for board in boards.values()
    ]
    common = sorted(set.intersection(*(set(own) for own in every)))
    lds_BxM = np.array([[own[name] for name in common] for own in every])
    ranks_BxM = 1 + (lds_BxM[:, None, :] > lds_BxM[:, :, None]).sum(axis=2)
    rows = np.random.default_rng(seed).integers(0, len(every), (2000, len(every)))
    low, high = np.percentile(ranks_BxM[rows].mean(axis=1), (2.5, 97.5), axis=0)
    means = ranks_BxM.mean(axis=0)
    found = zip(common, means, low, high, strict=True)
    return sorted(((n, float(m), float(a), float(b)) for n, m, a, b in found), key=lambda r: r[1])


def table(boards: dict[str, dict[str, Any]]) -> str:
    """STRIDE on each board and the best opponent there, in Markdown."""
    lines = [
        "| board | N | K | perfect predictor | stride | best opponent | stride ahead by | rank "
        "| published |",
        "|---" * 9 + "|",
    ]
    for name, board in boards.items():
        own = standing(board)
        low, high = own["ahead_ci95"]
        first, last = own["ci95"]
        settings = next(row for row in board["rows"] if row["method"] == "stride")["settings"]
        lines.append(
            f"| [{name}](#{name}) | {board['num_train']:,} "
            f"| {settings['index']['design']['num_subsets']:,} "
            f"| {board['ceiling']['perfect_predictor']:.3f} "
            f"| **{own['lds']:.3f}** [{first:.3f}, {last:.3f}] "
            f"| {own['best']} {own['best_lds']:.3f} "
            f"| {own['ahead']:+.3f} [{low:+.3f}, {high:+.3f}] | {own['rank']} of {own['of']} "
            f"| {PUBLISHED.get(name, '')} |"
        )
    return "\n".join(lines)


def rows(boards: dict[str, dict[str, Any]]) -> list[Row]:
    """What is asked of all boards together; of seconds, `benchmarks.cost_curves` says it."""
    own = [standing(board) for board in boards.values()]
    first = sum(one["rank"] == 1 for one in own)
    clear = sum(one["ahead_ci95"][0] > 0 for one in own)
    below = sum(
        any(row["lds_minus_stride_ci95"][0] > 0 for row in opponents(board))
        for board in boards.values()
    )
    return [
        Row("boards", len(own), "higher", asked=9),
        Row("boards that stride is first on", first, "higher", asked=7),
        Row("boards that stride is first on, clear of zero", clear, "higher", asked=5),
        Row("boards with a method clearly above stride", below, "lower", asked=0),
    ]


def ranks(boards: dict[str, dict[str, Any]]) -> str:
    """Mean ranks over the boards, in Markdown."""
    lines = ["| method | mean rank | 95 % over boards |", "|---|---|---|"]
    lines += [
        f"| {name} | {mean:.1f} | {low:.1f} – {high:.1f} |"
        for name, mean, low, high in mean_ranks(boards)
    ]
    return "\n".join(lines)
