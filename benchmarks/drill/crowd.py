"""Start several runs at once in one folder: one runs, the others are told by whom."""

import pathlib
import shutil
from typing import Any

from benchmarks.drill.kills import undisturbed
from benchmarks.drill.runs import CHANGES, DISK, commands, compared, left_behind, products, start
from benchmarks.house import Row, record
from benchmarks.program import Asked
from stride_jax.cli.doors import USAGE
from stride_jax.run.config_file import changed
from stride_jax.run.settings import run_settings
from stride_jax.runtime.files import write_json

_CROWDS = (2, 5)


def crowd(config: str, home: pathlib.Path, count: int) -> dict[str, Any]:
    """Start so many runs, and see how each ended."""
    workdir = home / f"crowd-{count}"
    shutil.rmtree(workdir, ignore_errors=True)
    logs = [home / f"crowd-{count}.{i}.log" for i in range(count)]
    for log in logs:
        log.unlink(missing_ok=True)
    running = [start(commands(config, workdir, 1), home, log.stem)[0] for log in logs]
    codes = [p.wait() for p in running]
    ran = [p.pid for p, code in zip(running, codes, strict=True) if not code]
    told = [
        code == USAGE
        and (said := log.read_text(encoding="utf-8").splitlines())
        and len(said) == 1
        and f"process {ran[0]} on " in said[0]
        and "began" in said[0]
        for code, log in zip(codes, logs, strict=True)
        if code and ran
    ]
    return {"codes": codes, "ran": len(ran), "told": sum(map(bool, told)), "of": len(told)}


def main(asked: Asked) -> None:
    """A crowd of each size; rows."""
    config, home = asked.flags.config, asked.workdir
    home.mkdir(parents=True, exist_ok=True)
    settings = run_settings(changed(asked.config, CHANGES))
    undisturbed(config, home, 1)
    wanted, rows, all_found = products(home / "whole-1", settings), [], []
    for count in _CROWDS:
        found, workdir = crowd(config, home, count), home / f"crowd-{count}"
        found |= compared(products(workdir, settings), wanted)
        found["left_behind"] = left_behind(workdir, home / "whole-1")
        all_found.append(found)
        print(f"{count} at once: {found}")
        whole = all(found["same_bytes"].values()) and not found["left_behind"]
        rows += [
            Row(f"{count} runs at once: that ran", found["ran"], "higher", asked=1.0),
            Row(f"{count} runs at once: told host, process and start", found["told"], "higher",
                asked=count - 1.0),
            Row(f"{count} runs at once: same bytes, no litter", float(whole), "higher", asked=1.0),
        ]  # fmt: skip
    write_json(home / "crowd.json", all_found)
    record(rows, path=DISK)
