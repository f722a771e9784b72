"""A small run of texts that hold every kind of escape sequence, and what its commands print."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np

from benchmarks.escapes import KINDS
from benchmarks.house import ROOT
from stride_jax.runtime import checkpoint

# What a path can't hold, or a workdir is refused for.
_IN_NAMES = "".join(text for text in KINDS.values() if not set(text) & set("\0/[]*?\\"))
# The commands are many, their programs few.
_COMPILED = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / "runs/compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
EVERY = " ".join(KINDS.values()).replace("\0", "")


def finished(home: pathlib.Path) -> None:
    """A small run of the Bible and a checkpoint, made once."""
    if not (home / "text/summary.json").exists():
        words = ["run", "--config=configs/bible_gpt.py:runlocal", f"--workdir={home / 'text'}"]
        _said(words, check=True)
    if not (home / "model").exists():
        # In a child: the inputs' children are forked before JAX has threads.
        code = "import sys; from benchmarks.hostile_texts import saved; saved(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, str(home / "model")], cwd=ROOT, check=True)


def saved(folder: str) -> None:
    """A checkpoint of one small array."""
    checkpoint.save(folder, {"w": np.arange(6, dtype=np.float32)}, {"a": 1})


def corpus(folder: pathlib.Path) -> pathlib.Path:
    """Documents whose texts, ids, columns and file's name hold sequences of every kind."""
    path = folder / f"own{_IN_NAMES}.jsonl"
    rows = [
        {"text": f"In the {text} beginning {name} was the word {text} and it was good. " * 4,
         "id": f"{text}{i}", f"book{EVERY}": f"{name}{text}"}
        for i, (name, text) in enumerate(KINDS.items())
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(home: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """The settings of a small run of them, with groups of that column."""
    told = json.loads((home / "text/settings.json").read_text())
    del told["digest"]
    told["text"] |= {
        "name": "files", "path": str(path), "translations": [], "books": [], "vocab_size": 300,
        "num_query": 4, "num_calibration": 4, "length": 128,
    }  # fmt: skip
    told["model"]["gpt"]["sequence_len"] = 128
    told["train"]["epochs"], told["num_checkpoints"] = 2, 2
    told |= {"groups": f"book{EVERY}", "unit": None, "bank": None}
    own = home / "texts.json"
    own.write_text(json.dumps(told))
    return own


def outputs(home: pathlib.Path) -> dict[str, str]:
    """What each command prints on both streams, by a name of it."""
    texts = home / "texts"
    shutil.rmtree(texts, ignore_errors=True)
    texts.mkdir()
    own = config(home, corpus(texts))
    work = texts / f"run{_IN_NAMES}"
    at, with_config = f"--workdir={work}", f"--config={own}"
    broken, bug = texts / f"broken{_IN_NAMES}.py", texts / f"bug{_IN_NAMES}.py"
    broken.write_text(f"raise KeyError({EVERY!r})")
    # A bug behind the config: an error of no line, a warning and a log record.
    bug.write_text(
        "import logging, warnings\nfrom stride_jax.cli import check\n"
        f"def fails(*_): \n  warnings.warn({EVERY!r}); logging.error({EVERY!r})\n"
        f"  logging.getLogger('x').warning('%s', {EVERY!r}); raise KeyError({EVERY!r})\n"
        "check.check_workdir = fails\ndef get_config(): return {}\n"
    )
    pieces = EVERY.replace("\r", "")
    lines = "".join(f"In the {pieces[i : i + 24]}\n" for i in range(0, len(pieces), 24))
    some = f"begin {EVERY[:24]}"
    given = ["launch", with_config, at, "--dry_run"]
    said = {
        "run": _said(["run", with_config, at], check=True),
        "run again": _said(["run", with_config, at], check=True),
        "run of other settings": _said(["run", with_config, at, f"--config.groups={EVERY}"]),
        "ask": _said(["ask", at, "--completion=was"], check=True, typed=lines),
        "ask, JSON": _said(
            ["ask", at, "--json", "--completion=was", "--top=20"], check=True, typed=lines
        ),
        "ask, completions": _said(
            ["ask", at, "--prompt=In the", f"--completion={some}", f"--against={some}x"], check=True
        ),
        "ask, too much": _said(["ask", at, f"--prompt=In the {EVERY}"]),
        "ask, its own words": _said(["ask", at, "--prompt=In the", "--top=50"], check=True),
        "ask, bad bytes": _said(["ask", at, "--prompt=\udcff\udcfe"]),
        "verify": _said(["verify", at], check=True),
        "verify, JSON": _said(["verify", at, "--json"], check=True),
        "verify against": _said(["verify", at, f"--against={work}"], check=True),
        "check": _said(["check", with_config, at], check=True),
        "check, JSON": _said(["check", with_config, at, "--json"], check=True),
        "plan": _said(["plan", f"--config.groups={EVERY}", with_config], check=True),
        "launch": _said([*given, f"--name={EVERY}"], check=True),
        "launch, processes": _said([*given, "--processes=2"], check=True),
        "launch, sweep": _said([*given, "--sweep"]),
        "launch here": _said(["launch", with_config, at], check=True),
        "config with an error": _said(["run", f"--config={broken}", at]),
        "bug": _said(["check", f"--config={bug}", at]),
    }  # fmt: skip
    for damage in (work / "summary.json", work / "attribution.parquet"):
        damage.write_bytes(EVERY.encode())
    for path in work.glob("*/*.npz"):
        path.write_bytes(EVERY.encode())
    said["verify of damage"] = _said(["verify", at])
    said["run of damage"] = _said(["run", with_config, at])
    said["verify, redo"] = _said(["verify", at, "--redo"])
    return said | arguments()


def arguments() -> dict[str, str]:
    """Mistakes in a command line, of each kind of sequence, all in one process."""
    kinds = {name: text.replace("\0", "") for name, text in KINDS.items()}
    code = f"""
from stride_jax.cli.main import main
for text in {list(kinds.values())!r}:
    for words in ([text], ["run", "--" + text], ["run", text], ["run", "--config=" + text],
                  ["run", "--config=configs/mnist5k.py", "--workdir=x", "--config." + text + "=1"],
                  ["run", "--config=configs/mnist5k.py", "--workdir=x", "--config.top_k=" + text],
                  ["run", "--config=configs/mnist5k.py", "--workdir=x", "--until=" + text],
                  ["run", "--config=configs/mnist5k.py", "--workdir=" + text + "?"],
                  ["ask", "--workdir=" + text], ["verify", "--workdir=" + text],
                  ["plan", "--config=configs/mnist5k.py", "--mesh=" + text]):
        assert main(words) == 2, words
"""
    return {"mistakes in arguments": _python(["-c", code])}


def _said(words: list[str], check: bool = False, typed: str = "") -> str:
    return _python(["-m", "stride_jax", *words], check, typed)


def _python(words: list[str], check: bool = False, typed: str = "") -> str:
    done = subprocess.run(
        [os.fsencode(word) for word in (sys.executable, *words)], cwd=ROOT, check=check,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, input=typed.encode(),
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"} | _COMPILED,
    )  # fmt: skip
    return done.stdout.decode("utf-8", "surrogateescape")
