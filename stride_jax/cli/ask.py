"""Ask a language model's run why it goes on like this.

python -m experiments.ask --workdir=runs/bible_gpt --prompt="And God said, Let there be"
"""

import json
import pathlib
from collections.abc import Sequence

import jax
from absl import app, flags, logging
from rich.console import Console
from rich.text import Text

from stride_jax.applications.answer import Answer, AskSettings, Passage, ask
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import RunSettings
from stride_jax.runtime.files import plain
from stride_jax.runtime.settings import build

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a text run.", required=True)
_PROMPT = flags.DEFINE_string("prompt", None, "What the model goes on from; none: ask for it.")
_COMPLETION = flags.DEFINE_string(
    "completion", None, "What to explain; the model's own by default."
)
_CONTRAST = flags.DEFINE_string("contrast", None, "Explain the completion rather than this one.")
_TOP = flags.DEFINE_integer("top", 3, "Proponents, and as many opponents.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the continuation.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON.")


def open_run(workdir: pathlib.Path) -> Run:
    """The run that wrote a folder.

    Raises:
      ValueError: no run of text was made there.
    """
    path = workdir / "settings.json"
    if not path.exists():
        raise ValueError(
            f"{workdir} holds no run: make one with python -m experiments.run --config=… "
            f"--workdir={workdir}"
        )
    settings = build(RunSettings, json.loads(path.read_text()))
    run = Run(settings, workdir)
    if not run.is_text:
        raise ValueError(f"the run in {workdir} is not of text: there is nothing to ask it")
    return run


def _shown(passage: Passage) -> Text:
    """A passage in one paragraph, its tokens the bolder the more they agree with the question."""
    colour = "green" if passage.score > 0 else "red"
    text = Text(f"{passage.score:+.4f}  ", style=f"bold {colour}")
    text.append(f"{'; '.join(passage.references)}  [{passage.id}]\n", style="dim")
    sign = 1 if passage.score > 0 else -1
    for piece, share in zip(passage.pieces, passage.shares, strict=True):
        strength = sign * share
        style = f"bold {colour}" if strength > 0.3 else colour if strength > 0.1 else ""
        text.append(piece, style=style)
    return text


def show(answer: Answer, console: Console) -> None:
    """Print an answer for reading."""
    said = Text(answer.prompt, style="bold")
    said.append(answer.completion, style="bold blue")
    console.print(said)
    if answer.contrast is not None:
        console.print(Text(f"rather than: {answer.contrast}", style="dim"))
    for title, passages in (("proponents", answer.proponents), ("opponents", answer.opponents)):
        console.print(Text(f"\n{title}", style="underline"))
        for passage in passages:
            console.print(_shown(passage), soft_wrap=False)
    console.print(
        Text(
            f"\nloss {answer.loss:.2f} nats; {answer.support} sequences with a score; held-out R² "
            f"{answer.held_out_r2:.2f}; gap {answer.relative_gap:.1e}; signal in "
            f"{answer.signal:.0%} of the token groups",
            style="dim",
        )
    )


def main(argv: Sequence[str]) -> None:
    """Answer one prompt, or one after the other."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    workdir = pathlib.Path(_WORKDIR.value)
    # The second call finds its programs compiled.
    jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    console = Console(highlight=False)
    settings = AskSettings(top=_TOP.value, seed=_SEED.value)

    def respond(prompt: str) -> None:
        answer = ask(run, prompt, _COMPLETION.value, _CONTRAST.value, settings)
        if _JSON.value:
            print(json.dumps(plain(answer), ensure_ascii=False))
        else:
            show(answer, console)

    try:
        run = open_run(workdir)
        if _PROMPT.value is not None:
            respond(_PROMPT.value)
            return
    except ValueError as error:
        raise SystemExit(f"ask: {error}") from error
    while prompt := console.input("[bold]prompt (empty to leave): [/bold]"):
        try:
            respond(prompt)
        except ValueError as error:
            console.print(Text(str(error), style="red"))


if __name__ == "__main__":
    app.run(main)
