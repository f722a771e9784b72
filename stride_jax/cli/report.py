"""Write a run's answers as one page to open, search and share.

    stride-jax report --workdir=runs/quickstart
    stride-jax report --workdir=runs/bible_gpt --compare=runs/other,base.parquet --out=bible.html

The page is one file that asks no host for anything: queries with their predictions, proponents and
opponents as images, rows of tables or texts, suspected labels, and what the answers are worth.
--compare puts other attributions of the same queries beside them: folders of runs, or files that
Attribution.save wrote.
"""

import pathlib
from collections.abc import Sequence

from absl import logging

from stride_jax.applications.report.content import ReportSettings, content
from stride_jax.applications.report.page import page
from stride_jax.attribution import Attribution
from stride_jax.cli.doors import PAGES, Parser, at_least, out_file
from stride_jax.run import summary
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import read_run_settings
from stride_jax.runtime.files import write_text
from stride_jax.runtime.folders import local_folder
from stride_jax.runtime.progress import bars
from stride_jax.runtime.screen import visible

_FILE = "attribution.parquet"


def _parser() -> Parser:
    own = ReportSettings()
    parser = Parser("report", __doc__)
    parser.flag("workdir", "Folder of a finished run.", required=True)
    parser.flag("out", "File of the page; report.html in the run's folder by default.", default="")
    parser.flag("compare", "Other runs or attributions, with commas between them.", default="")
    parser.flag("title", "Title of the page; the folder's name by default.", default="")
    parser.flag("top", "Proponents, and the same number of opponents, of each query.",
                type=at_least(1), default=own.top)  # fmt: skip
    parser.flag("queries", "Most queries; evenly spaced ones where there are more.",
                type=at_least(1), default=own.queries)  # fmt: skip
    parser.flag("tokens", "Of these many at either end each token's share is told; texts alone.",
                type=at_least(0), default=own.tokens)  # fmt: skip
    parser.flag("suspects", "Suspected labels; 0 for none.", type=at_least(0),
                default=own.suspects)  # fmt: skip
    return parser


def main(words: Sequence[str]) -> int:
    """Read the run, write the page."""
    given, _ = _parser().read(words)
    logging.set_verbosity(logging.WARNING)
    folder = local_folder(given.workdir, writable=False)
    out = out_file(given.out or str(folder / "report.html"), "out", PAGES)
    others = {name: Attribution.load(path) for name, path in _others(given.compare).items()}
    run = Run(read_run_settings(folder), folder, bars)
    if summary.read(run, "attribution") is None:
        raise ValueError(
            f"the run in {given.workdir} has no attribution yet: finish it with stride-jax run"
        )
    settings = ReportSettings(given.top, given.queries, given.tokens, given.suspects)
    told = content(run, others, settings)
    write_text(out, page(told, given.title or folder.resolve().name))
    size = out.stat().st_size / 2**20
    shown = f"{len(told['queries'])} queries, {len(told['examples']['id'])} training examples"
    print(visible(f"{shown}, {size:.1f} MiB: {out}", kept=""))
    return 0


def _others(given: str) -> dict[str, pathlib.Path]:
    """What is compared, by the name to show.

    Raises:
      ValueError: something that is not there, or a name twice.
    """
    others: dict[str, pathlib.Path] = {}
    for each in (part.strip() for part in given.split(",")):
        if not each:
            continue
        path = pathlib.Path(each)
        file = path / _FILE if path.is_dir() else path
        if not file.is_file():
            raise ValueError(
                f"--compare={each}: no {_FILE} is there: give the folder of a finished run, or a "
                "file that Attribution.save wrote"
            )
        name = path.name if path.is_dir() else path.stem
        if name in (*others, "stride"):
            raise ValueError(f"--compare names {name!r} twice: rename one of the two")
        others[name] = file
    return others
