"""The odd places of `benchmarks.odd_places` in groups, and the runs they are compared with."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence

from benchmarks.house import ROOT

_PROMPT = "Gød 日"
_WORDS = (
    "Gød", "sagte", "daß", "日本", "привет", "naïve", "¡olé!", "👩\u200d🔬", "می\u200cخواهم", "the",
    "and", "of", "water", "light",
)  # fmt: skip
_CONFIG = f"{ROOT}/configs/breast_cancer.py:runlocal"
_TEXT = f"{ROOT}/configs/bible_gpt.py:runlocal"
# Root may do anything; without its capabilities it is a user like others.
_USER = 'setpriv --bounding-set=-all --inh-caps=-all "$@"' if os.geteuid() == 0 else '"$@"'
_PLAIN_PYTHON = "PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield


@dataclasses.dataclass(frozen=True)
class Place:
    """A command in an odd place.

    Attributes:
      what: the place in words.
      words: the command and its flags.
      shell: line of shell that starts it, as `"$@"`, in a process of its own; None: in this one.
      works: whether it must work, must be refused, or may do either (None).
      named: what a refusal must name.
      codes: exit codes of success.
      same: whether the output, or what was written, is that of elsewhere.
      set_up: context in which it runs.
      encoding: of the output.
    """

    what: str
    words: Sequence[str]
    shell: str | None = None
    works: bool | None = True
    named: str = ""
    codes: tuple[int, ...] = (0,)
    same: Callable[[str], bool] | None = None
    set_up: Callable[[], contextlib.AbstractContextManager[None]] = _nothing
    encoding: str = "utf-8"


@dataclasses.dataclass(frozen=True)
class Homes:
    """Folders of the benchmark.

    Attributes:
      home: all of them are in it.
    """

    home: pathlib.Path

    @property
    def near(self) -> pathlib.Path:
        """Folder that commands are started from, and that odd names are in."""
        return self.home / "near"

    @property
    def table(self) -> pathlib.Path:
        """A finished run of a classifier."""
        return self.home / "table"

    @property
    def text(self) -> pathlib.Path:
        """A finished run of texts."""
        return self.home / "text"

    @property
    def answer(self) -> pathlib.Path:
        """What that run answers."""
        return self.home / "answer.json"

    @property
    def environment(self) -> dict[str, str]:
        """Of all commands: compiled programs are kept."""
        return {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.home / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def hidden(self, text: str) -> str:
        """Text without the names of this machine's folders."""
        return text.replace(str(self.home), "…").replace(str(ROOT), "…")

    def clear(self) -> None:
        """Remove what places left."""
        if self.near.exists():
            _writable(self.near)
            shutil.rmtree(self.near)

    def write_texts(self) -> None:
        """Documents whose names, ids and words are not ASCII."""
        rng, folder = random.Random(0), self.home / "texts"
        folder.mkdir(exist_ok=True)
        with open(folder / "ä 日本.jsonl", "w", encoding="utf-8") as file:
            for i in range(80):
                text = " ".join(rng.choice(_WORDS) for _ in range(40))
                file.write(json.dumps({"id": f"ü{i}", "text": text}, ensure_ascii=False) + "\n")

    def run_words(self, workdir: str | os.PathLike[str]) -> list[str]:
        """The classifier's run."""
        return ["run", f"--config={_CONFIG}", f"--workdir={os.fspath(workdir)}"]

    def text_words(self, workdir: str | os.PathLike[str]) -> list[str]:
        """The run of texts."""
        return [
            "run", f"--config={_TEXT}", f"--workdir={os.fspath(workdir)}", "--config.bank=None",
            "--config.unit=None", "--config.text.name=files", "--config.text.books=()",
            f"--config.text.path={self.home / 'texts'}", "--config.text.vocab_size=320",
        ]  # fmt: skip

    def run(self, what: str, workdir: str | os.PathLike[str], **details: object) -> Place:
        """The classifier's run in a place."""
        wanted = (self.table / "attribution.parquet").read_bytes()
        file = self.near / workdir / "attribution.parquet"
        return _place(what, self.run_words(workdir), details, lambda _: file.read_bytes() == wanted)

    def run_text(self, what: str, workdir: str | os.PathLike[str], **details: object) -> Place:
        """The run of texts in a place."""
        wanted = (self.text / "attribution.parquet").read_bytes()
        file = self.near / workdir / "attribution.parquet"
        words = self.text_words(workdir)
        return _place(what, words, details, lambda _: file.read_bytes() == wanted)

    def ask(self, workdir: str | os.PathLike[str], what: str = "", **details: object) -> Place:
        """A question to the run of texts; `"$@"` of a shell that pipes the prompt has none."""
        words = ["ask", f"--workdir={os.fspath(workdir)}", "--json", "--completion= daß"]
        if "echo" not in str(details.get("shell")):
            words.append(f"--prompt={_PROMPT}")
        shell = {"shell": '"$@"'} | details
        return _place(what, words, shell, lambda out: out == self.answer.read_text("utf-8"))

    def verify(self, what: str, workdir: str | os.PathLike[str], **details: object) -> Place:
        """The files of a run in a place."""
        words = ["verify", f"--workdir={os.fspath(workdir)}"]
        return _place(what, words, details, lambda out: "error" not in out and "ok " in out)


def _place(
    what: str, words: Sequence[str], details: dict[str, object], same: Callable[[str], bool]
) -> Place:
    return Place(what, words, **{"same": same, **details})  # pyright: ignore[reportArgumentType]


def _writable(folder: pathlib.Path) -> None:
    for home, _, _ in os.walk(folder):
        os.chmod(home, 0o755)


# ── names ────────────────────────────────────────────────────────────────────────────────────────

_NAMES = (
    "a b", " ", "'\"`", "-dash", "--config", "%s{0}", "%2e%2e", "#;&|", "new\nline", "$(x)", "${A}",
    "na\u0308", "n\u00e4", "日本", "👩\u200d🔬",
)  # fmt: skip
_MORE_NAMES = (
    "\u202eabc", "dot.", "space ", "...", "a=b,c:d", "@1", "12", "null", "incomplete.x",
    "x.orbax-checkpoint-tmp", ".h.abcdefgh.part", "{DATASET}-{SPLIT}",
    "x-00000-of-00001", "c" * 255, "d/" * 600 + "d", "../near/back",
)  # fmt: skip
_REFUSED = (
    ("", "workdir"), ("a[1]", "a[1]"), ("a*", "a*"), ("a?", "a?"), ("a\\b", "a\\\\b"),
    ("\x1b[31mred", "\\x1b[31mred"), ("l" * 300, "300 bytes"), ("d/" * 2000, "bytes"),
    ("~/runs", "~/runs"), ("./~", "~"), ("file:///tmp/run", "file:///tmp/run"), ("gs://bucket/run", "gs://bucket"),
    ("s3:", "s3:"), ("caf\udce9", "caf"), ("/dev/null", "/dev/null"), ("/dev/null/x", "/dev/null"),
    ("/proc/run", "/proc/run"), ("file", "file"), ("file/below", "near/file"),
    ("dangling", "dangling"), ("circle", "circle"), ("circle/below", "circle"),
    ("link to file", "link to file"),
)  # fmt: skip


def special(homes: Homes) -> Iterator[Place]:
    """Names with characters that shells, formats and addresses read."""
    for name in _NAMES:
        yield homes.run(f"workdir `{_short(name)}`", name)
        yield homes.verify(f"workdir `{_short(name)}`", name)


def unusual(homes: Homes) -> Iterator[Place]:
    """Names that programs take for their own, and long ones."""
    for name in _MORE_NAMES:
        yield homes.run(f"workdir `{_short(name)}`", name)
        yield homes.verify(f"workdir `{_short(name)}`", name)


def refused(homes: Homes) -> Iterator[Place]:
    """Names that can't be a workdir, most of them relative; and links."""
    (homes.near / "file").write_text("")
    for name, target in (("dangling", "nowhere"), ("circle", "circle"), ("link to file", "file")):
        (homes.near / name).symlink_to(target)
    for name, named in _REFUSED:
        shown = f"workdir `{_short(name)}`"
        yield homes.run(shown, name, works=False, named=named)
        if name != "/proc/run":
            yield homes.verify(shown, name, works=False, named=named)
    (homes.near / "target").mkdir()
    (homes.near / "link").symlink_to("target")
    yield homes.run("a link to a folder", "link")
    brackets = homes.near / "in[1]"
    brackets.mkdir()
    (homes.near / "to brackets").symlink_to("in[1]")
    yield homes.run("a link to a folder with brackets", "to brackets", works=None, named="[")
    yield homes.run("workdir below a folder with brackets", brackets / "run", works=False,
                    named="in[1]")  # fmt: skip
    yield homes.run("started in a folder with brackets", "run", works=False, named="in[1]",
                    shell=f'cd "{brackets}"; "$@"')  # fmt: skip
    yield homes.run("a name in Latin-1 bytes", "caf\udce9", shell='"$@"', works=False, named="caf")


def _short(name: str) -> str:
    return name if len(name) < 40 else f"{name[:8]}… ({len(name)} characters)"


# ── rights ───────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _mounted(home: pathlib.Path, place: pathlib.Path) -> Iterator[None]:
    """The folder once more, for reading alone."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", "-o", "ro", home, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def _locked(folder: pathlib.Path, mode: int) -> Callable[[], contextlib.AbstractContextManager]:
    @contextlib.contextmanager
    def locked() -> Iterator[None]:
        for home, _, _ in os.walk(folder):
            os.chmod(home, mode)
        try:
            yield
        finally:
            os.chmod(folder, 0o755)
            _writable(folder)

    return locked


def rights(homes: Homes) -> Iterator[Place]:
    """Folders that can't be written to, or not be read."""
    begun = homes.near / "begun"
    stopped = ["--until=operators"]
    yield Place("a run that ends early", [*homes.run_words(begun), *stopped])
    for kind in ("mounted for reading alone", "without the right to write"):
        yield from _read_only(homes, begun, stopped, kind)
    shut = _locked(homes.table, 0o000)
    for make in (homes.run, homes.verify):
        yield make("a finished run, without the right to read", homes.table, works=False,
                   named="table", shell=_USER, set_up=shut)  # fmt: skip
    model = homes.near / "model shut"
    (model / "model").mkdir(parents=True)
    shut = _locked(model / "model", 0o555)
    yield homes.run("one folder in it without the right to write", model, works=False,
                    named="model shut", shell=_USER, set_up=shut)  # fmt: skip


def _read_only(homes: Homes, begun: pathlib.Path, stopped: list[str], kind: str) -> Iterator[Place]:
    """Finished runs are shown, unfinished ones refused."""
    mounted = kind.startswith("mounted")
    if mounted and os.geteuid():
        return
    mount = homes.near / "mount"

    def at(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, object]]:
        if mounted:
            return mount, {"shell": '"$@"', "set_up": lambda: _mounted(folder, mount)}
        return folder, {"shell": _USER, "set_up": _locked(folder, 0o555)}

    (table, how), (text, how_text), (part, how_part) = map(at, (homes.table, homes.text, begun))
    shown = {"same": lambda out: "stride" in out and "nothing was written" in out}
    yield homes.run(f"a finished run, {kind}", table, **how, **shown)
    yield homes.verify(f"a finished run, {kind}", table, **how)
    yield homes.ask(text, f"a finished run, {kind}", **how_text)
    other = [*homes.run_words(table), "--config.top_k=3"]
    yield Place(f"a run of other settings, {kind}", other, works=False, named="top_k", **how)  # pyright: ignore[reportArgumentType]
    yield homes.run(f"an unfinished run, {kind}", part, works=False, named=part.name, **how_part)
    until = [*homes.run_words(part), *stopped]
    yield Place(f"a run that ended with --until, {kind}", until, **how_part)  # pyright: ignore[reportArgumentType]
    yield homes.run(f"a new folder below one {kind}", table / "new", works=False,
                    named=table.name, **how)  # fmt: skip
    check = ["check", f"--config={_CONFIG}", f"--workdir={table}"]
    yield Place(f"a finished run, {kind}", check, works=False, named=table.name, **how)  # pyright: ignore[reportArgumentType]


# ── locales, environment, streams ────────────────────────────────────────────────────────────────


def locales(homes: Homes) -> Iterator[Place]:
    """Locales and encodings that are not UTF-8, with names, ids, texts and prompts that are."""
    latin = homes.home / "locales"
    latin.mkdir(exist_ok=True)
    subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", latin / "de_DE.ISO-8859-1"], check=True
    )
    settings = {
        "LC_ALL=C": ("ascii", f"LC_ALL=C {_PLAIN_PYTHON}"),
        "LC_ALL=POSIX": ("ascii", f"LC_ALL=POSIX {_PLAIN_PYTHON}"),
        "LC_ALL=de_DE.ISO-8859-1": (
            "latin-1",
            f"LOCPATH={latin} LC_ALL=de_DE.ISO-8859-1 {_PLAIN_PYTHON}",
        ),
        "PYTHONIOENCODING=ascii": ("ascii", "PYTHONIOENCODING=ascii"),
    }
    for i, (name, (encoding, words)) in enumerate(settings.items()):
        env = f'env {words} "$@"'
        yield homes.run_text(f"`{name}`", f"locale {i}", shell=env, encoding=encoding)
        yield homes.verify(f"`{name}`", f"locale {i}", shell=env, encoding=encoding)
        piped = f'echo "{_PROMPT}" | env {words} "$@"'
        if encoding == "ascii":  # in Latin-1 these bytes are other characters
            yield homes.ask(f"locale {i}", f"`{name}`", shell=env)
            yield homes.ask(f"locale {i}", f"`{name}`, prompt from a pipe", shell=piped)
        if i % 2 == 0:
            works = {"works": False, "named": "UTF-8"}
            yield homes.run(f"`{name}`, workdir `ä`", "ä", shell=env, encoding=encoding, **works)
    yield homes.ask(homes.text, "prompt from a pipe, in Latin-1 bytes", works=False, named="UTF-8",
                    shell="echo | printf 'caf\\351\\n' | \"$@\"")  # fmt: skip


def environment(homes: Homes) -> Iterator[Place]:
    """Variables, masks and the current folder."""
    shut = homes.near / "shut"
    shut.mkdir()
    shells = {
        "env -u HOME": True,
        "env HOME=/nonexistent": True,
        "env -u HOME -u USER -u LOGNAME -u TMPDIR": True,
        "env TMPDIR=/nonexistent": True,
        "env XDG_CACHE_HOME=/nonexistent XDG_CONFIG_HOME=/dev/null": True,
        "env TZ=Pacific/Kiritimati": True,
        "env TZ=No/Where": True,
        "env -u TERM COLUMNS=1 NO_COLOR=1": True,
        "env TERM=dumb LINES=0 COLUMNS=x": True,
    }
    for i, shell in enumerate(shells):
        yield homes.run(f"`{shell}`", f"environment {i}", shell=f'{shell} "$@"')
    locked = {"shell": f"env HOME={shut} TMPDIR={shut} {_USER}", "set_up": _locked(shut, 0o555)}
    yield homes.run("`HOME` and `TMPDIR` that can't be written to", "environment home", **locked)
    yield homes.run("`umask 077`", "environment mask", shell='umask 077; "$@"')
    yield homes.ask(homes.text, "`COLUMNS=1 TERM=dumb`", shell='env COLUMNS=1 TERM=dumb "$@"')
    yield homes.ask(homes.text, "`HOME=/nonexistent`", shell='env HOME=/nonexistent "$@"')
    shapes = {"num_train": 427, "num_queries": 100, "input_shape": "(30,)", "num_classes": 2}
    changes = [f"--config.plan.{name}={value}" for name, value in shapes.items()]
    plan = ["plan", f"--config={_CONFIG}", *changes]
    bare = 'env -i PATH="$PATH" PYTHONPATH="$PYTHONPATH" "$@"'
    yield Place("`env -i`", plan, shell=bare, same=lambda out: "operators" in out or "pass" in out)
    gone = 'mkdir gone; cd gone; rmdir ../gone; "$@"'
    for words in (homes.run_words("x"), homes.run_words(homes.near / "y"), plan):
        yield Place("a current folder that was removed", words, shell=gone, works=False,
                    named="current folder")  # fmt: skip

    yield homes.ask(homes.text, "a current folder that was removed", shell=gone, works=False,
                    named="current folder")  # fmt: skip


def streams(homes: Homes) -> Iterator[Place]:
    """Standard streams that are closed, full, or read by nobody."""
    for i, shell in enumerate(("<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full")):
        yield homes.run(f"`{shell}`", f"streams {i}", shell=f'"$@" {shell}')
    full = {"works": False, "named": "output"}
    yield homes.run("`>/dev/full`", "streams full", shell='"$@" >/dev/full', **full)
    yield homes.run("`| true`", "streams pipe", shell='"$@" | true', codes=(0, 141))
    yield homes.verify("`| head -1`", homes.table, shell='"$@" | head -1', codes=(0, 141))
    asked = {"what": "`>/dev/full`", "shell": '"$@" >/dev/full', **full}
    yield homes.ask(homes.text, **asked)
    yield homes.ask(homes.text, "no prompt, `<&-`", shell=': echo; "$@" <&-', works=False,
                    named="--prompt")  # fmt: skip
    for words in (["--help"], ["run", "--help"], ["--version"]):
        name = " ".join(words)
        yield Place(f"`{name} >/dev/full`", words, shell='"$@" >/dev/full', **full)  # pyright: ignore[reportArgumentType]
        yield Place(f"`{name} | true`", words, shell='"$@" | (exec true)', codes=(0, 141))


GROUPS: dict[str, Callable[[Homes], Iterator[Place]]] = {
    "refused": refused,
    "special": special,
    "unusual": unusual,
    "rights": rights,
    "locales": locales,
    "environment": environment,
    "streams": streams,
}
