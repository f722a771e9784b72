"""Ask a language model's run which training texts made it continue a prompt the way it does.

    stride-jax ask --workdir=runs/bible_gpt --prompt="And God said, Let there be"
    echo "And God said" | stride-jax ask --workdir=runs/bible_gpt --json
    stride-jax ask --workdir=runs/bible_gpt --html=answers.html < prompts.txt
    stride-jax ask --workdir=runs/bible_gpt --prompt="Let there be" --completion=" light" \\
        --against=" war"

Without --prompt, prompts are read from the terminal or a pipe, one per line. The run must have its
model and its operators: stride-jax run --until=operators makes them. Where the run's examples have
groups (--config.groups=book), the answer says what each does besides.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging
from rich.console import Console
from rich.text import Text

from stride_jax.applications.answer import Answer, Passage, answered
from stride_jax.applications.inquiry import AskSettings, Inquiry, inquire
from stride_jax.applications.report import content as contents
from stride_jax.applications.report.page import page
from stride_jax.cli.doors import PAGES, Parser, at_least, out_file
from stride_jax.cli.streams import as_utf8
from stride_jax.operators.questions import QUESTIONS
from stride_jax.run.opened import open_run
from stride_jax.runtime.files import plain, without_nan, write_text
from stride_jax.runtime.folders import local_folder
from stride_jax.runtime.screen import json_text, visible

_SHOWN = 3
"""Documents of a passage of whose rows the page says more than their names."""


def _parser() -> Parser:
    parser = Parser("ask", __doc__)
    parser.flag("workdir", "Folder of a run of text.", required=True)
    parser.flag("prompt", "What the model continues; read from the input without it.")
    parser.flag("completion", "What to explain; the model's own by default.")
    parser.flag("against", "Explain the completion against this one.")
    parser.flag("contrast", "Another name of --against.")
    parser.flag("question", "What is asked of each token; what the run asks by default.",
        choices=tuple(QUESTIONS))  # fmt: skip
    parser.flag(
        "tokens", "Ask about these alone: words of the completion, or a slice such as 0:2.",
        default="",
    )  # fmt: skip
    parser.switch("together", "All prompts of the input are one question, their mean.")
    parser.flag(
        "top", "Proponents, and the same number of opponents; groups alike.", type=at_least(1),
        default=3,
    )  # fmt: skip
    parser.flag("seed", "Seed of the model's own completion.", type=int, default=0)
    parser.flag(
        "sources", "Candidates besides the sketch's: bm25,features; the run's by default.",
        type=_names,
    )  # fmt: skip
    parser.switch("json", "Print JSON, one line per prompt.")
    parser.flag("html", "File of a page with all answers, as stride-jax report writes it.")
    return parser


def _names(text: str) -> tuple[str, ...]:
    """Names with commas between them; none for an empty text."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _as_text(given: argparse.Namespace) -> argparse.Namespace:
    """The flags, with what a locale could not read as UTF-8."""
    code = sys.getfilesystemencoding()
    asked = ("prompt", "completion", "against", "contrast", "tokens")
    texts = {name: getattr(given, name) for name in asked if getattr(given, name) is not None}
    read = {name: as_utf8(text, f"--{name}", code) for name, text in texts.items()}
    return argparse.Namespace(**{**vars(given), **read})


def _shown(passage: Passage) -> Text:
    """A passage in one paragraph, its tokens the bolder the more they agree with the question."""
    colour = "green" if passage.score > 0 else "red"
    text = Text(f"{passage.score:+.4f}  ", style=f"bold {colour}")
    source = f"{passage.found_by}  {'; '.join(passage.references)}  [{passage.id}]"
    text.append(visible(source, kept="") + "\n", style="dim")
    for document in passage.documents[:_SHOWN]:
        if said := _said_of(document):
            text.append(visible(f"    {said}", kept="") + "\n", style="dim")
    sign = 1 if passage.score > 0 else -1
    for piece, share in zip(passage.pieces, passage.shares, strict=True):
        strength = sign * share
        style = f"bold {colour}" if strength > 0.3 else colour if strength > 0.1 else ""
        text.append(visible(piece), style=style)
    return text


def _said_of(document: dict[str, Any]) -> str:
    """Where in a document a passage begins, and what else its row says."""
    offset = document.get("offset")
    said = [] if offset is None else [f"from token {offset}"]
    said += [f"{name}={str(value)[:60]}" for name, value in document["metadata"].items()]
    return f"{document['id']}: {', '.join(said)}" if said else ""


def show(answer: Answer, console: Console) -> None:
    """Print an answer for reading."""
    alone = isinstance(answer.prompt, str)
    pairs = [(answer.prompt, answer.completion)]
    if not alone:
        pairs = zip(answer.prompt, answer.completion, strict=True)
    for prompt, completion in pairs:
        said = Text(visible(str(prompt)), style="bold")
        said.append(visible(str(completion)), style="bold blue")
        console.print(said)
    if answer.against is not None:
        console.print(Text(visible(f"rather than: {answer.against}"), style="dim"))
    console.print(Text(visible(f"scores: {answer.meaning}; {answer.scores}"), style="dim"))
    for title, passages in (("proponents", answer.proponents), ("opponents", answer.opponents)):
        console.print(Text(f"\n{title}", style="underline"))
        for passage in passages:
            console.print(_shown(passage), soft_wrap=False)
    if answer.groups:
        console.print(Text("\nwithout each of these groups it would fall by", style="underline"))
    for group in answer.groups:
        colour = "green" if group.score > 0 else "red"
        text = Text(f"{group.score:+.4f}  ", style=f"bold {colour}")
        text.append(visible(group.name, kept=""))
        console.print(text.append(f"  {group.examples} sequences", style="dim"))
    numbers = ", ".join(f"{n.replace('_', ' ')} {v:.3g}" for n, v in answer.diagnostics.items())
    console.print(Text(visible(f"\n{answer.verdict}"), style="bold"))
    said = f"loss {answer.loss:.2f} nats; {answer.support} sequences with a score; {numbers}"
    console.print(Text(visible(said), style="dim"))


def prompts(given: str | None, console: Console) -> Iterator[str]:
    """The prompt that was given, or those typed or piped in, up to an empty line.

    Raises:
      ValueError: none was given, and the input ends before one comes.
    """
    if given is not None:
        yield given
        return
    typed, count = sys.stdin.isatty(), 0
    while True:
        try:
            prompt = console.input("[bold]prompt (empty to leave): [/bold]" if typed else "")
        except EOFError:
            if typed or count:
                return
            raise ValueError(
                "the input ended before a prompt came: give --prompt, or pipe one in"
            ) from None
        if not prompt:
            return
        count += 1
        yield as_utf8(prompt, "a prompt of the input", sys.stdin.encoding or "utf-8")


def main(words: Sequence[str]) -> int:
    """Answer one prompt, or one after the other."""
    given, _ = _parser().read(words)
    if given.against is not None and given.contrast is not None:
        raise ValueError("--contrast is another name of --against: give one of them")
    logging.set_verbosity(logging.WARNING)
    given = _as_text(given)
    out = None if given.html is None else out_file(given.html, "html", PAGES)
    workdir = local_folder(given.workdir, writable=False)
    run = open_run(workdir)
    console = Console(highlight=False)
    settings = AskSettings(
        top=given.top, seed=given.seed, sources=given.sources, question=given.question,
        tokens=given.tokens,
    )  # fmt: skip
    against = given.contrast if given.against is None else given.against
    questions = prompts(given.prompt, console)
    asked = [list(questions)] if given.together else questions
    read: list[Inquiry] = []
    keeps_asking = given.prompt is None and sys.stdin.isatty() and not given.together
    for prompt in asked:
        try:
            own = inquire(run, prompt, given.completion, against, settings)
        except ValueError as error:
            if not keeps_asking:
                raise
            console.print(Text(visible(str(error), kept=""), style="red"))
            continue
        answer = answered(run, own, settings.top)
        read.append(own)
        if given.json:
            print(json_text(without_nan(plain(answer))), flush=True)
        else:
            show(answer, console)
    if out is not None:
        told = contents.questions(run, read, contents.ReportSettings(top=given.top))
        write_text(out, page(told, f"Questions to {workdir.resolve().name}"))
    return 0
