"""What a page of a run costs: its bytes, its first paint, a filter; and who could not use it.

    pip install playwright==1.49.0 axe-playwright-python==0.1.8    # and Debian's chromium
    python -m experiments.run --config=configs/fashion_mnist.py --workdir=runs/fashion
    python -m benchmarks.report_page --workdir=runs/fashion --name="1,000 of 50,000 images"

Opens the page in headless Chromium, clicks through it, counts what it complains of, what it asks a
host for, and serious violations of accessibility (axe-core), and takes pictures at two widths,
light and dark, to be looked at. Rows go to `docs/results/people.json`.
"""

import pathlib
import shutil
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.house import ROOT, Row, command, record
from stride_jax.applications.report.content import ReportSettings, content
from stride_jax.applications.report.page import page
from stride_jax.cli.doors import Parser, at_least
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import read_run_settings

PEOPLE = ROOT / "docs/results/people.json"
_WIDTHS = ((1280, 900), (390, 844))

_FILTER = """(word) => {
  const box = document.getElementById("search"), began = performance.now();
  box.value = word;
  box.dispatchEvent(new Event("input"));
  document.getElementById("rows").getBoundingClientRect();
  return performance.now() - began;
}"""
_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def looked_at(file: pathlib.Path, pictures: pathlib.Path, repeats: int) -> dict[str, Any]:
    """Open a page as people would; milliseconds, complaints, requests, violations.

    Args:
      file: the page.
      pictures: folder of the pictures.
      repeats: fresh openings whose first paint is measured, and filters.
    """
    from axe_playwright_python.sync_playwright import Axe  # pyright: ignore[reportMissingImports]
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    browser = shutil.which("chromium")
    if browser is None:
        raise ValueError("no chromium on the path: apt-get install chromium")
    said: list[str] = []
    asked: list[str] = []
    violations: set[str] = set()
    paints, filters = [], []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])

        def opened(**details: Any) -> Any:
            tab = chromium.new_page(**details)
            tab.on("console", lambda message: said.append(message.text))
            tab.on("pageerror", lambda error: said.append(str(error)))
            tab.on("request", lambda request: asked.append(request.url))
            tab.goto(f"file://{file.resolve()}")
            tab.wait_for_selector("#detail h2")
            return tab

        for _ in range(repeats):
            tab = opened()
            paints.append(tab.evaluate(_PAINT))
            filters += [tab.evaluate(_FILTER, word) for word in ("row 1", "", "a")]
            tab.close()
        for width, height in _WIDTHS:
            for scheme in ("light", "dark"):
                size = {"width": width, "height": height}
                tab = opened(viewport=size, color_scheme=scheme)
                for name in ("queries", "suspects", "about"):
                    button = tab.locator(f"nav [data-page={name}]")
                    if not button.is_visible():
                        continue
                    button.click()
                    tab.screenshot(path=pictures / f"{file.stem}-{name}-{width}-{scheme}.png")
                    found = Axe().run(tab).response["violations"]
                    violations |= {v["id"] for v in found if v["impact"] in ("serious", "critical")}
                tab.close()
        chromium.close()
    own = ("file:", "blob:", "data:")
    return {
        "paint": paints, "filter": filters, "said": said, "violations": sorted(violations),
        "asked": [url for url in asked if not url.startswith(own)],
    }  # fmt: skip


def picture(file: pathlib.Path, out: pathlib.Path) -> None:
    """The page at the first prediction that was wrong, as README shows it."""
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        tab = chromium.new_page(viewport={"width": 1280, "height": 740})
        tab.goto(f"file://{file.resolve()}")
        tab.locator("#state").select_option("wrong")
        tab.locator(".row").first.click()
        tab.screenshot(path=out)
        chromium.close()


def main(words: Sequence[str]) -> None:
    """Make the page of a run, look at it, write the rows down."""
    parser = Parser("report_page", __doc__)
    parser.flag("workdir", "Folder of a finished run.", required=True)
    parser.flag("name", "What its rows are called.", required=True)
    parser.flag("queries", "Most queries.", type=at_least(1), default=1000)
    parser.flag("picture", "File of a picture of the first wrong prediction.", default="")
    parser.flag("repeats", "Openings that are timed.", type=at_least(1), default=7)
    given, _ = parser.read(words)
    folder = pathlib.Path(given.workdir)
    began = time.monotonic()
    run = Run(read_run_settings(folder), folder)
    html = page(content(run, settings=ReportSettings(queries=given.queries)), folder.name)
    seconds = time.monotonic() - began
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    told = looked_at(file, folder, given.repeats)
    if given.picture:
        picture(file, pathlib.Path(given.picture))
    print(*told["said"], *told["asked"], *told["violations"], sep="\n")
    name = f"report of {given.name}"
    record([
        Row(f"{name}, megabytes", len(html.encode()) / 1e6, "lower", asked=30),
        Row(f"{name}, seconds to make", seconds, "lower"),
        Row(f"{name}, first paint, seconds", statistics.median(told["paint"]) / 1e3, "lower",
            (min(told["paint"]) / 1e3, max(told["paint"]) / 1e3), 1.5),
        Row(f"{name}, filter, milliseconds", statistics.median(told["filter"]), "lower",
            (min(told["filter"]), max(told["filter"])), 100),
        Row(f"{name}, complaints of the console", len(told["said"]), "lower", asked=0),
        Row(f"{name}, requests to a host", len(told["asked"]), "lower", asked=0),
        Row(f"{name}, serious violations of accessibility", len(told["violations"]), "lower",
            asked=0),
    ], path=PEOPLE)  # fmt: skip


if __name__ == "__main__":
    command(main, "report_page")
