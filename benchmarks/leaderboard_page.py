"""The leaderboard as a page like a report's: boards in place of queries, methods beside them.

python -m benchmarks.leaderboard_page --out=leaderboard.html
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.house import ROOT, command
from benchmarks.standing import LATER, opponents, read_boards, standing
from stride_jax.applications.report.page import page as drawn
from stride_jax.applications.report.texts import columns
from stride_jax.cli.doors import Parser, out_file
from stride_jax.runtime.files import write_text


def page(boards: Mapping[str, dict[str, Any]]) -> str:
    """Boards as one file of HTML, by name."""
    return drawn(content(boards), "Leaderboard")


def content(boards: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What the page shows: of each board its methods by LDS."""
    queries, rows, places = [], [], []
    for number, (name, board) in enumerate(boards.items()):
        entries = []
        for row in board["rows"]:
            low, high = row["lds_ci95"]
            interval = f"[{low:.3f}, {high:.3f}]"
            if row["method"] != "stride":
                below, above = row["lds_minus_stride_ci95"]
                interval += f" · less STRIDE [{below:+.3f}, {above:+.3f}]"
            entries.append([len(rows), round(row["lds"], 4), interval])
            rows.append(row)
            places.append(name)
        queries.append(_board(number, name, board, sorted(entries, key=lambda e: -e[1])))
    settings = [_settings(row) for row in rows]
    single = {name: {row["method"] for row in opponents(board)} for name, board in boards.items()}
    kinds = [
        "one training run"
        if row["method"] in single[name] | {"stride"}
        else "a variant or reference"
        for name, row in zip(places, rows, strict=True)
    ]
    said = [f"{_cost(row)}\n{own}" for row, own in zip(rows, settings, strict=True)]
    return {
        "about": _about(boards),
        "queries": queries,
        "texts": columns([_bank(board) for board in boards.values()], [[n] for n in boards]),
        "examples": {
            "id": [row["method"] for row in rows],
            "row": [None] * len(rows),
            "copies": [1] * len(rows),
            **columns(said, [[kind] for kind in kinds]),
        },
        "suspects": [],
    }


def _settings(row: Mapping[str, Any]) -> str:
    """What a method was tuned to; ours are a tree, which stands in the board's file."""
    own = row["settings"]
    if any(isinstance(value, dict) for value in own.values()):
        return ""
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in own.items())


def _cost(row: Mapping[str, Any]) -> str:
    """What a method is, and what it costs."""
    if row["train_seconds"] is None:
        return f"{row['method']}: no seconds were taken"
    seconds = f"fit {row['train_seconds']:.3g} s, queries {row['query_seconds']:.3g} s"
    times = row.get("ratio_to_grad_dot")
    return f"{row['method']}: {seconds}" + ("" if times is None else f", {times:.3g} × grad-dot")


def _bank(board: Mapping[str, Any]) -> str:
    bank = board["bank"]
    return (
        f"{bank['model'].split('(')[0]}: {board['num_train']:,} training examples, "
        f"{board['num_queries']} queries, {bank['num_subsets']} subsets of the scoring half, "
        f"alpha {bank['alpha']}, {bank['num_seeds']} seeds"
    )


def _board(
    number: int, name: str, board: Mapping[str, Any], entries: list[list[Any]]
) -> dict[str, Any]:
    own = standing(dict(board))
    first = own["rank"] == 1 and own["ahead_ci95"][0] > 0
    ceiling = board["ceiling"]
    worth = {
        "STRIDE's rank among methods of one training run": own["rank"],
        "of": own["of"],
        "ahead of the best of them": own["ahead"],
        "a perfect predictor": ceiling["perfect_predictor"],
        "reliability of the truth": ceiling["reliability"],
    }
    return {
        "id": name, "row": number, "verdict": "clearly first" if first else "not clearly first",
        "loss": None, "worth": {what: float(f"{value:.4g}") for what, value in worth.items()},
        "histogram": [0.0, 0.0, []], "shares": [], "lists": [entries], "tokens": {},
    }  # fmt: skip


def _about(boards: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    notes = []
    for name, board in boards.items():
        own = standing(board)
        low, high = own["ahead_ci95"]
        notes.append([
            name,
            f"{own['lds']:.3f}, rank {own['rank']} of {own['of']}; ahead of {own['best']} by "
            f"{own['ahead']:+.3f} [{low:+.3f}, {high:+.3f}]",
        ])  # fmt: skip
    return {
        "kind": "text", "methods": ["leaderboard"], "classes": False, "objective": "",
        "unit": "LDS",
        "scores": "how well a method's sums of scores order retrained models (LDS), with a "
                  "bootstrap 95 % interval over queries",
        "train": 0, "queries": len(boards), "top": 0, "versions": {}, "summary": {"settings": {}},
        "fine": ["clearly first"],
        "words": {
            "queries": "boards", "doubt": "boards where STRIDE is not clearly first",
            "help": "Methods, by LDS", "hurt": "Methods worse than chance",
            "worth": "Where STRIDE stands", "answer": "What the board is worth", "loss": "",
        },
        "notes": {"figures": notes, "warnings": [LATER]},
    }  # fmt: skip


def main(words: Sequence[str]) -> None:
    """Write the page of the boards in `docs/boards`."""
    parser = Parser("leaderboard_page", __doc__)
    parser.flag("out", "File of the page.", default="leaderboard.html")
    given, _ = parser.read(words)
    out = out_file(given.out, "out", [".html"])
    write_text(out, page(read_boards(ROOT / "docs/boards")))
    print(f"written: {out}")


if __name__ == "__main__":
    command(main, "leaderboard_page")
