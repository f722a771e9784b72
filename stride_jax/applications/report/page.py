"""A report as one file of HTML that asks no host for anything.

The page is a shell; what it shows stands in script tags as JSON, in parts that the browser reads
when they are looked at, so that thousands of queries open at once. Texts of data become text of
the page, never markup: JSON here has no `<`, and the script that reads it sets `textContent`.
"""

import importlib.resources
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stride_jax.applications.report.examples import SHEET

QUERIES, EXAMPLES = 25, 128
"""Queries, and examples or training rows, of a part."""

_INDEX = ("id", "row", "label", "guess", "p", "loss", "right", "verdict", "said", "target")
"""What the list of queries needs of each."""


def page(content: Mapping[str, Any], title: str, live: bool = False) -> str:
    """The page of a report.

    Args:
      content: from `content.content` or `content.questions`.
      title: of the page.
      live: whether a server is there to take questions.

    >>> about = {"kind": "table", "methods": ["stride"]}
    >>> content = {"about": about, "queries": [], "texts": {}, "examples": {}, "suspects": []}
    >>> "<title>&lt;b&gt;</title>" in page(content, "<b>")
    True
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    own = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    html = own.from_string(_file("page.html")).render(
        title=title,
        live=live,
        kind=content["about"]["kind"],
        style=Markup(_file("page.css")),
        script=Markup(_file("page.js")),
        parts=[(name, Markup(in_script(value))) for name, value in _parts(content)],
    )
    return html.encode("utf-8", "replace").decode()  # without halves of characters


def in_script(value: Any) -> str:
    """JSON that no script tag ends in, and no reader takes for a new line.

    >>> in_script("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    said = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029\x7f":
        said = said.replace(letter, f"\\u{ord(letter):04x}")
    return said


def _file(name: str) -> str:
    return (importlib.resources.files("stride_jax.applications.report") / name).read_text(
        encoding="utf-8"
    )


def _parts(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names of script tags and what stands in them."""
    queries, texts, examples = (content[name] for name in ("queries", "texts", "examples"))
    count = len(examples.get("id", []))
    yield (
        "about",
        content["about"]
        | {
            "parts": {"queries": QUERIES, "examples": EXAMPLES, "sheet": SHEET},
            "spread": texts.get("spread"),
            "size": texts.get("size"),
            "shown": count,
        },
    )
    pieces = texts.get("pieces")
    yield (
        "index",
        [
            {name: own[name] for name in _INDEX if name in own}
            | ({} if pieces is None else {"text": "".join(pieces[i])[:160]})
            for i, own in enumerate(queries)
        ],
    )
    yield "suspects", content["suspects"]
    for name, own in (("query", texts), ("example", examples)):
        for i, sheet in enumerate(own.get("sheets", [])):
            yield f"{name}-sheet-{i}", sheet
    for i, first in enumerate(range(0, len(queries), QUERIES)):
        some = slice(first, first + QUERIES)
        yield (
            f"queries-{i}",
            {
                "own": [dict(one) for one in queries[some]],
                "texts": _cut(texts, some, len(queries)),
            },
        )
    for i, first in enumerate(range(0, count, EXAMPLES)):
        yield f"examples-{i}", _cut(examples, slice(first, first + EXAMPLES), count)
    documents = sorted(content.get("documents", {}).items())
    for i, own in itertools.groupby(documents, key=lambda one: one[0] // EXAMPLES):
        yield f"documents-{i}", dict(own)


def _cut(columns: Mapping[str, Any], some: slice, count: int) -> dict[str, Sequence[Any]]:
    """Some rows of the columns that have a value for each."""
    whole = ("sheets", "size", "spread")
    return {n: v[some] for n, v in columns.items() if n not in whole and len(v) == count}
