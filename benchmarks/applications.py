"""The page of the applications' figures, written from their results file.

    python -m benchmarks.applications

Writes `docs/applications.md` from `docs/results/applications.json`, whose rows
`benchmarks.leaderboard --rows`, `benchmarks.selection --figures` and `benchmarks.audit --figures`
wrote: no figure is typed by hand.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.house import APPLICATIONS, ROOT, command
from stride_jax.cli.doors import Parser
from stride_jax.runtime.files import atomic_path, read_json

PAGE = ROOT / "docs/applications.md"

_INTRO = """# Applications: what was measured

How to use them: [fine-tuning](fine_tuning.md), [selection](selection.md), [audit](audit.md). Every
figure is a row of `docs/results/applications.json`, with its command, commit and device; brackets
are 95 % intervals. Written by `python -m benchmarks.applications`.
"""

_BOARDS = """## Attribution of fine-tuned models

LDS against models that are fine-tuned again, from the same base model, on random halves of the rows
(alpha = .5), two seeds each: one half of 64 subsets chooses the opponents' settings, the other
scores. `stride` has the setting of its config, whose sites and damping were chosen on the tuning
half of an earlier bank (800 of these rows and 100 of these queries were in it). "Above" is
`stride`'s figure less the method's, paired over queries. Seconds are those of fit and 300 queries
without compilation, alone on the machine; a command below a table that names methods is theirs.
*datamodels* and *encoder-trained* are charged for the models of the tuning half, which no other
method needs.
"""

_SELECTION = """## Choosing training rows

Models trained from the base model on the rows that a method chose for a task by ten targets, and
judged on the task's tests: means over 17 tasks, three seeds each. Every method had its settings
chosen on other tasks: which of two models it asks, how the targets are pooled, and of those that
ask a model two settings of their own. "Better" is `stride` less the method, paired over tasks (of
losses the other way round). `random of the task` knows which task each row belongs to; `all
candidates` trains one model on everything, for many more steps. "a + b" adds up the reciprocal
ranks of both. Where rows are wrong, a share of the candidates has another row's answer.
"""

_AUDIT = """## Finding leaked problems

Problems of a benchmark leaked into the training rows in 1 to 100 copies, verbatim, reworded or
shifted. AUPRC is of telling leaked problems from clean ones; hit@k asks whether a group of copies
is among the k most suspected; recall is that of the copies within 1.1 % of the rows; AUC is of
telling what the model learnt from what is merely present. "a + b" adds up the reciprocal ranks of
both, 1 / (60 + rank). Opponents take the setting that serves them best on these very problems.
Three models were trained at each rate, with other leaks each: AUPRC and AUC are means, their
brackets the least and the most.
"""


def _shown(row: Mapping[str, Any] | None, signed: bool = False) -> str:
    """A figure with its interval."""
    if row is None:
        return ""
    form = "{:+.3f}" if signed else "{:.3f}"
    interval = row["interval"]
    bounds = f" [{', '.join(form.format(v) for v in interval)}]" if interval else ""
    return form.format(row["value"]) + bounds


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


Rows = dict[str, dict[str, dict[str, Any]]]
"""Rows by method, and by what was measured."""


def sections(rows: Sequence[dict[str, Any]], pattern: str) -> dict[str, Rows]:
    """Rows whose names match, by their board's name, method and figure.

    >>> sections([{"name": "SFT words: bm25, LDS"}], "SFT (.+)")["words"]["bm25"]["LDS"]["name"]
    'SFT words: bm25, LDS'
    """
    out: dict[str, Rows] = {}
    for row in rows:
        board, _, rest = row["name"].partition(": ")
        method, _, figure = rest.rpartition(", ") if ", " in rest else (rest, "", "")
        if found := re.fullmatch(pattern, board):
            own = out.setdefault(found[1], defaultdict(dict))
            own[method][figure] = row
    return out


def boards(rows: Sequence[dict[str, Any]]) -> str:
    """Tables of the boards of fine-tuned models."""
    parts = []
    for name, own in sections(rows, "SFT (.+)").items():
        methods = [m for m in own if not m.startswith("stride above")]
        methods.sort(key=lambda m: -own[m]["LDS"]["value"])
        lines = [
            (m, _shown(own[m]["LDS"]), _shown(own.get(f"stride above {m}", {}).get("LDS"), True),
             _seconds(own[m].get("seconds")))
            for m in methods
        ]  # fmt: skip
        table = _table(("method", "LDS", "stride above", "seconds"), lines)
        parts.append(f"### {name}\n\n{table}\n{_commands(own)}")
    return "\n".join(parts)


def _seconds(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{row['value']:.1f}"


def selection(rows: Sequence[dict[str, Any]]) -> str:
    """Tables of data selection."""
    parts = []
    for name, own in sections(rows, "selection, (.+)").items():
        methods = [m for m in own if not m.startswith("stride better than")]
        methods.sort(key=lambda m: -own[m]["f1"]["value"])
        lines = []
        for m in methods:
            gaps = {
                f: own.get(f"stride better than {m} by {f}", {}).get("") for f in ("f1", "loss")
            }
            lines.append(
                (m, *(_shown(own[m][f]) for f in ("f1", "exact", "loss")),
                 *(_shown(gap, True) for gap in gaps.values()))
            )  # fmt: skip
        head = ("method", "F1", "exact match", "loss, nats a token", "better, F1", "better, loss")
        parts.append(f"### {name}\n\n{_table(head, lines)}\n{_commands(own)}")
    return "\n".join(parts)


def audit(rows: Sequence[dict[str, Any]]) -> str:
    """Tables of the audit."""
    parts = []
    for rate, own in sections(rows, "audit (.+)").items():
        figures = ("auprc", "hit@1 exact", "hit@10 reworded", "hit@10 shifted", "recall",
                   "auc of learnt")  # fmt: skip
        lines = [
            (m, *(_shown(values.get(f)) for f in figures))
            for m, values in own.items() if "auprc" in values
        ]  # fmt: skip
        lines.sort(key=lambda line: line[1], reverse=True)
        table = _table(("method", *figures), lines)
        [alarms] = [v for m, v in own.items() if m.startswith("false alarms")]
        said = f"False alarms at a stated rate of .02: {_shown(alarms[''])}."
        parts.append(f"### {rate} of the rows\n\n{table}\n{said} {_commands(own)}")
    return "\n".join(parts)


def _commands(own: Rows) -> str:
    words = dict.fromkeys(row["command"] for one in own.values() for row in one.values())
    return "By " + ", ".join(f"`{word}`" for word in words) + ".\n"


def main(words: Sequence[str]) -> int:
    """Write the page."""
    Parser("applications", __doc__).read(words)
    rows = read_json(APPLICATIONS)
    parts = [_INTRO]
    for text, tables in ((_BOARDS, boards), (_SELECTION, selection), (_AUDIT, audit)):
        if written := tables(rows):
            parts.append(f"{text}\n{written}")
    with atomic_path(PAGE) as place:
        place.write_text("\n".join(parts), encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    command(main, "applications")
