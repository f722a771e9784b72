"""The report of an audit as a page: problems in place of queries, beside them the rows found."""

from collections.abc import Mapping
from typing import Any

from stride_jax.applications.report.page import page as drawn
from stride_jax.applications.report.texts import columns


def page(report: Mapping[str, Any]) -> str:
    """A report (`audit_report.report`) as a page; texts of data can't change it.

    Args:
      report: of an audit.

    >>> told = {"verdict": "<b>", "flagged": 0, "problems": 0, "learnt": 0, "present": 0,
    ...     "leaked_share": 0.0, "leaked_share_ci95": (0.0, 0.1), "expected_false_alarms": 0.0}
    >>> settings = {"train": 5, "clean": 99, "rate": 0.02}
    >>> rest = {"control": {"rows": 0}, "warnings": [], "problems": [], "settings": settings}
    >>> "<b>" in page({"benchmark": told, **rest})
    False
    """
    return drawn(content(report), f"Contamination audit: {report['benchmark']['verdict']}")


def content(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows: of each problem the groups of rows, by their effect on its answer."""
    problems, groups = report["problems"], []
    queries = []
    for row, own in enumerate(problems):
        entries = []
        for one in own["replicas"]:
            found = f"words {100 * one['overlap']:.0f} %"
            entries.append([len(groups), float(f"{one['times']:.4g}"), found])
            groups.append(one)
        queries.append(_problem(row, own, sorted(entries, key=lambda entry: -entry[1])))
    return {
        "about": _about(report),
        "queries": queries,
        "texts": columns([own["text"] for own in problems], [[] for _ in problems]),
        "examples": {
            "id": [one["ids"][0] for one in groups],
            "row": [None] * len(groups),
            "copies": [one["copies"] for one in groups],
            **columns([one["text"] for one in groups], [_rows(one) for one in groups]),
        },
        "suspects": [],
    }


def _rows(group: Mapping[str, Any]) -> list[str]:
    return [name for row in group["rows"] for name in row]


def _problem(row: int, own: Mapping[str, Any], entries: list[list[Any]]) -> dict[str, Any]:
    worth = {
        "chance that a clean problem looks as leaked": own["p"],
        "share of its words in one row": own["overlap"],
        "effect of its rows, times that of typical ones": own["times"],
        "groups of rows that act": own["groups"],
    }
    return {
        "id": str(own["id"]), "row": row, "verdict": own["verdict"],
        "loss": float(f"{own['loss_per_token']:.4g}"),
        "worth": {name: float(f"{value:.4g}") for name, value in worth.items()},
        "histogram": [0.0, 0.0, []], "shares": [], "lists": [entries], "tokens": {},
    }  # fmt: skip


def _about(report: Mapping[str, Any]) -> dict[str, Any]:
    whole, control, settings = report["benchmark"], report["control"], report["settings"]
    low, high = whole["leaked_share_ci95"]
    notes = [
        ["problems", whole["problems"]],
        ["flagged", whole["flagged"]],
        ["of them by chance, at most", f"{whole['expected_false_alarms']:.1f}"],
        ["learnt", whole["learnt"]],
        ["merely present", whole["present"]],
        ["leaked, 95 %", f"{100 * low:.1f} to {100 * high:.1f} %"],
        ["training rows", settings["train"]],
        ["clean problems for comparison", settings["clean"]],
        ["rate of false alarms, stated", settings["rate"]],
    ]
    if control["rows"]:
        notes += [
            ["training rows asked as if they were problems", control["rows"]],
            ["of them flagged", f"{100 * control['flagged']:.0f} %"],
            ["told by their effect alone", f"{100 * control['by_effect']:.0f} %"],
        ]
    return {
        "kind": "text", "methods": ["audit"], "classes": False, "objective": "",
        "unit": "× typical",
        "scores": "by how much the answer's loss would rise without the rows, in units of what the "
                  "problem's typical group of rows does to it",
        "train": settings["train"], "queries": whole["problems"], "top": 0, "versions": {},
        "summary": {"settings": dict(settings)},
        "fine": ["clean"],
        "words": {
            "queries": "problems", "doubt": "flagged problems", "loss": "loss, nats a token",
            "help": "Rows found: without them its loss would rise",
            "hurt": "Rows found: without them it would fall",
            "worth": f"The benchmark: {whole['verdict']}", "answer": "Why it is judged so",
        },
        "notes": {"figures": notes, "warnings": list(report["warnings"])},
    }  # fmt: skip
