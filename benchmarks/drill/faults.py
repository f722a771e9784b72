"""Damage every kind of file of finished runs, one fault at a time, and read the runs again.

A fault is one flipped bit, a file cut short, or a whole product of another run in the place of
this one's. `stride-jax verify` reads the damaged copy; of every third one, what was made after the
damaged product is removed first, and a run makes it again. What comes out is either refused by
name, or compared with what was written: the same (harmless), or not (silent).
"""

import collections
import pathlib
import random
import shutil
import warnings
from collections.abc import Callable, Iterator

import jax

from benchmarks.drill.runs import DISK
from benchmarks.house import Row, record
from benchmarks.program import Asked
from stride_jax.run import summary
from stride_jax.run.config_file import read_config
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import check_workdir, read_run_settings, run_settings
from stride_jax.run.stages import PRODUCTS
from stride_jax.run.verify import compare, verify
from stride_jax.runtime.progress import bars

_CONFIGS = {
    "classifier": "configs/breast_cancer.py:runlocal",
    "text": "configs/bible_gpt.py:runlocal",
}
# Programs and logs, which no result is read from.
_OTHERS = ("compiled", "metrics", ".running")

Damage = Callable[[pathlib.Path], None]


def finished(config: str, workdir: pathlib.Path, seed: int) -> Run:
    """A small run, made or reused."""
    values = read_config(config)
    values["train"] = {**values["train"], "seed": seed}
    settings = run_settings(values)
    workdir.mkdir(parents=True, exist_ok=True)
    check_workdir(workdir, settings)
    run = Run(settings, workdir)
    if not (workdir / "summary.json").exists():
        summary.write(run)
    return run


def files(workdir: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """A run's files by product, relative to its folder; files at its top by their own name."""
    found = collections.defaultdict(list)
    for path in sorted(p for p in workdir.rglob("*") if p.is_file()):
        inside = path.relative_to(workdir)
        if inside.parts[0] not in _OTHERS and path.suffix != ".png" and path.stat().st_size:
            found[inside.parts[0]].append(inside)
    return dict(found)


def flips(run: Run, count: int, rng: random.Random) -> Iterator[tuple[str, Damage]]:
    """Single bits, as many in each kind of product; a file is drawn by its size."""
    kinds = files(run.workdir)
    for i in range(count):
        kind = sorted(kinds)[i % len(kinds)]
        sizes = [(run.workdir / p).stat().st_size for p in kinds[kind]]
        (inside,) = rng.choices(kinds[kind], sizes)

        def damage(home: pathlib.Path, inside: pathlib.Path = inside) -> None:
            raw = bytearray((home / inside).read_bytes())
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            (home / inside).write_bytes(raw)

        yield kind, damage


def cuts(run: Run, count: int, rng: random.Random) -> Iterator[tuple[str, Damage]]:
    """Files cut short, as many in each kind of product."""
    kinds = files(run.workdir)
    for i in range(count):
        kind = sorted(kinds)[i % len(kinds)]
        inside = rng.choice(kinds[kind])

        def damage(home: pathlib.Path, inside: pathlib.Path = inside) -> None:
            raw = (home / inside).read_bytes()
            (home / inside).write_bytes(raw[: rng.randrange(len(raw))])

        yield kind, damage


def swaps(run: Run, other: Run) -> Iterator[tuple[str, Damage]]:
    """Whole products of another run under the names of this one's."""
    for stage in PRODUCTS:
        for suffix in ("", ".npz"):
            mine, theirs = (
                one.products.path(stage).with_name(one.products.path(stage).name + suffix)
                for one in (run, other)
            )
            if mine == theirs or not theirs.exists() or theirs.name == mine.name:
                continue

            def damage(
                home: pathlib.Path,
                mine: pathlib.Path = mine.relative_to(run.workdir),
                theirs: pathlib.Path = theirs,
            ) -> None:
                if theirs.is_dir():
                    shutil.rmtree(home / mine)
                    shutil.copytree(theirs, home / mine)
                else:
                    shutil.copy(theirs, home / mine)

            yield stage, damage
    yield "attribution.parquet", lambda home: _copied(other, home, "attribution.parquet")


def _copied(other: Run, home: pathlib.Path, name: str) -> None:
    shutil.copy(other.workdir / name, home / name)


def without_later(home: pathlib.Path, product: str) -> None:
    """Remove what a run made from a product, the bank aside, which names its own."""
    later = list(PRODUCTS)[list(PRODUCTS).index(product) + 1 :]
    for name in later:
        shutil.rmtree(home / name, ignore_errors=True)
    for name in ("attribution.parquet", "groups.parquet", "summary.json"):
        (home / name).unlink(missing_ok=True)


def outcome(run: Run, home: pathlib.Path, again: bool) -> str:
    """What reading a damaged copy of a run ends in.

    Args:
      run: the whole one.
      home: folder of the damaged one.
      again: whether it is run again, to make what is missing, before it is read.

    Returns:
      `named`, `harmless`, `silent`, or `crash: …` for an error without a name.
    """
    try:
        damaged = Run(read_run_settings(home), home)
        if again:
            summary.write(damaged)
        if any(one.level == "error" or "not there" in one.measured for one in verify(damaged)):
            return "named"
        fresh = Run(read_run_settings(home), home)
        same = all(one.level == "ok" for one in compare(fresh, run, 0.0))
        return "harmless" if same else "silent"
    except ValueError as error:
        return "named" if str(home) in str(error) else f"crash: {error}"
    except Exception as error:
        return f"crash: {type(error).__name__}: {error}"


def main(asked: Asked) -> None:
    """All faults of both runs; rows and a table by kind."""
    home, rng = asked.workdir, random.Random(asked.flags.seed)
    tally: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    removed = 0
    for name, config in _CONFIGS.items():
        run, other = (finished(config, home / f"{name}-{seed}", seed) for seed in (0, 1))
        share = [asked.flags.flips // len(_CONFIGS), asked.flags.cuts // len(_CONFIGS)]
        made = {
            "flip": flips(run, share[0], rng),
            "cut": cuts(run, share[1], rng),
            "swap": swaps(run, other),
        }
        for kind, several in made.items():
            for i, (product, damage) in enumerate(bars(list(several), desc=f"{name}, {kind}")):
                copy, again = home / "damaged", i % 3 == 0 and product in PRODUCTS
                shutil.copytree(run.workdir, copy)
                damage(copy)
                if again:
                    without_later(copy, product)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = outcome(run, copy, again)
                tally[kind][found.partition(":")[0]] += 1
                removed += again
                if found.startswith(("silent", "crash")):
                    print(f"{name}, {kind} of {product}: {found[:300]}", flush=True)
                shutil.rmtree(copy)
            jax.clear_caches()
    rows = []
    for kind, counts in tally.items():
        total = sum(counts.values())
        changing = counts["named"] + counts["silent"] + counts["crash"]
        rows += [
            Row(f"faults, {kind}: tried", total, "higher", asked=_ASKED.get(kind)),
            Row(f"faults, {kind}: harmless", counts["harmless"], "higher"),
            Row(f"faults, {kind}: share named of those that change a result or can't be read",
                counts["named"] / max(changing, 1), "higher", asked=1.0),
            Row(f"faults, {kind}: errors without a name", counts["crash"], "lower", asked=0.0),
        ]  # fmt: skip
        print(kind, dict(counts))
    rows.append(Row("faults: with later stages removed", removed, "higher"))
    record(rows, path=DISK)


_ASKED = {"flip": 200.0, "cut": 50.0}
