"""What a run prints when it ends: a line for each method, and how far to trust it."""

from collections.abc import Mapping
from typing import Any

from stride_jax.runtime.screen import visible

# Groups at either end of the list.
_SHOWN = 5


def table(summary: Mapping[str, Any]) -> str:
    """A summary for reading; figures that were not computed are left out.

    >>> print(table({"methods": {"stride": {"seconds": 2.0}}, "stages": {"data": 0.5}}))
    method           seconds
    stride               2.0
    seconds: data 0.5
    """
    lines = [*_methods(summary.get("methods") or {}), *_bank(summary), *_recovery(summary)]
    lines += _groups(summary.get("groups") or {})
    data = _figures(
        summary,
        {"num_train": "{} train", "num_queries": "{} queries", "accuracy": "accuracy {:.3f}",
         "held_out_loss": "held-out loss {:.3f} nats", "explained_variance": "R² {:.3f}",
         "temperature": "temperature {:.2f}", "noise_variance": "noise variance {:.3f}"},
    )  # fmt: skip
    lines += [", ".join(data)] if data else []
    if stages := summary.get("stages"):
        spent = [(name, _seconds(value)) for name, value in stages.items()]
        known = [f"{name} {value:.1f}" for name, value in spent if value is not None]
        lines.append("seconds: " + ", ".join(known))
    return "\n".join([line for line in lines if line])


def _methods(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not methods:
        return []
    scored = any(row.get("lds") is not None for row in methods.values())
    middle = f"{'LDS':>8}{'95 % interval':>20}" if scored else ""
    lines = [f"{'method':<16}{middle}{'seconds':>{10 if scored else 8}}"]
    ranked = sorted(methods.items(), key=lambda item: -(item[1].get("lds") or 0.0))
    for name, row in ranked:
        figures = f"{_number(row.get('lds')):>8}{_interval(row.get('lds_ci95')):>20}"
        seconds = "" if row.get("seconds") is None else f"{row['seconds']:.1f}"
        lines.append(f"{name:<16}{figures if scored else ''}{seconds:>{10 if scored else 8}}")
    return lines


def _bank(summary: Mapping[str, Any]) -> list[str]:
    """How good the truth is, and whether there is enough of it to rank methods."""
    lines = []
    if (attainable := summary.get("perfect_predictor")) is not None:
        lines.append(f"a perfect predictor scores about {attainable:.3f}")
    bank = (summary.get("settings") or {}).get("bank")
    if bank and attainable is not None:
        lines.append(
            f"bank: {bank['num_subsets']} subsets, alpha {bank['alpha']}, {bank['num_seeds']} seeds"
        )
    if summary.get("until") == "evaluation" and not bank:
        lines.append("no bank: the run ends with its scores, and nothing is evaluated")
    if warning := summary.get("too_small"):
        lines.append(f"note: {warning}")
    return lines


def _recovery(summary: Mapping[str, Any]) -> list[str]:
    said = _figures(
        summary.get("recovery") or {},
        {"mean_exact": "{:.0f} exact scores per query", "mean_explained":
         "explain {:.0%} of what was measured", "mean_agreement": "sketch agrees {:.2f}",
         "mean_support": "{:.0f} estimated", "max_relative_gap": "duality gap below {:.1e}",
         "found": "found {:.0%}", "partly_found": "partly {:.0%}"},
    )  # fmt: skip
    scores = summary.get("scores")
    lines = [f"answers: {', '.join(said)}"] if said else []
    return [*lines, f"scores: {scores}"] if scores else lines


def _groups(groups: Mapping[str, Any]) -> list[str]:
    """By how much the queries' losses would rise without the strongest groups.

    >>> row = {"name": "Ruth", "examples": 40, "mean": 0.5, "first": 0.25}
    >>> print("\\n".join(_groups({"by": "book", "count": 2, "rows": [row]})))
    without (of 2 by book)           examples    mean score   first for
    Ruth                                   40       +0.5000         25%
    """
    if not groups:
        return []
    title = f"without (of {groups['count']} by {groups['by']})"
    rows = groups["rows"]
    if len(rows) > 2 * _SHOWN:
        rows = [*rows[:_SHOWN], *rows[-_SHOWN:]]
    return [
        f"{title:<29}{'examples':>12}{'mean score':>14}{'first for':>12}",
        *(
            f"{visible(row['name'], kept='')[:28]:<29}{row['examples']:>12}"
            f"{row['mean']:>+14.4f}{row['first']:>12.0%}"
            for row in rows
        ),
    ]


def _figures(values: Mapping[str, Any], forms: Mapping[str, str]) -> list[str]:
    return [
        form.format(values[name]) for name, form in forms.items() if values.get(name) is not None
    ]


def _seconds(value: Any) -> float | None:
    """A stage's seconds, given alone or in a row of its totals."""
    return value.get("seconds") if isinstance(value, Mapping) else value


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"
