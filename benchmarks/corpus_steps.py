"""The first steps of a run over a corpus of any length, under a limit of addresses.

    python -m benchmarks.corpus_steps --folder=runs/corpus/sparse --steps=20 --limit=3

`benchmarks.corpus` starts it, in one process or several; the last line is JSON.
"""

import json
import pathlib
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax import fitting, models
from stride_jax.adapters import from_model
from stride_jax.cli.doors import Parser, at_least
from stride_jax.data import ShardSettings, load_shards
from stride_jax.data.prepare import FORMAT, PrepareSettings
from stride_jax.design import Design, known_membership
from stride_jax.frozen import freeze
from stride_jax.models import ModelSettings
from stride_jax.models.gpt import GPTSettings
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import file_digest, write_arrays, write_json
from stride_jax.runtime.processes import Cluster, connect
from stride_jax.settings import IndexSettings

VOCAB, LENGTH = 512, 2048


class _Enough(Exception):
    """The steps that were asked for are done."""


def stand_in(folder: pathlib.Path, sequences: int, tokenizer: pathlib.Path) -> None:
    """A corpus of so many sequences whose tokens are holes in a sparse file: all are token 0.

    Its ids are real, 8 bytes each: all hashes differ.
    """
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    write_arrays(folder / "copies.npz", row=np.zeros(0, np.int64), hash=np.zeros(0, "<u8"))
    tokens = sequences * LENGTH
    with open(parts / "00000.train.tokens", "wb") as file:
        file.truncate(2 * (tokens + 1))
    with open(parts / "00000.train.ids", "wb") as file:
        for first in range(0, sequences, 1 << 16):
            rng = np.random.default_rng(first)
            count = min(1 << 16, sequences - first)
            file.write(rng.integers(0, 2**64, count, "<u8").tobytes())
    own = {"tokens": tokens + 1, "sequences": sequences, "digest": "", "ids": ""}
    manifest = {
        "format": FORMAT, "settings": PrepareSettings("sparse", length=LENGTH),
        "tokenizer": file_digest(folder / "tokenizer.json"), "vocab_size": VOCAB,
        "bos_id": VOCAB - 1, "dtype": "<u2", "total": {"train": {"sequences": sequences}},
        "parts": [{"streams": {"train": own}, "table": ""}],
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)


def first_steps(folder: str, steps: int) -> dict[str, float]:
    """Load, freeze, fit the basis, and pass over the first batches.

    Returns:
      Seconds to the first step and of all, and this process' largest resident memory.
    """
    began, reached = time.monotonic(), []

    def some(items: Iterable[Any], desc: str = "", **_: Any) -> Iterator[Any]:
        if desc != "operators":
            yield from items
            return
        reached.clear()  # rotations come from a pass of their own, over a sample
        for i, item in enumerate(items):
            reached.append(time.monotonic() - began)
            if i >= steps:
                raise _Enough
            yield item

    train = load_shards(ShardSettings(folder)).examples()["train"]
    settings = ModelSettings(
        "gpt", gpt=GPTSettings(depth=1, width=32, num_heads=2, num_kv_heads=2, sequence_len=LENGTH)
    )
    module = models.make_model(settings, VOCAB)
    params = models.initial_params(module, jax.random.key(0), jnp.asarray(train.inputs[:1]))
    design = Design(1000, 10, kind="hash")
    mesh = meshes.mesh_for(design.num_subsets)
    execution = Execution(mesh, memory=2**27, batch_size=8)
    index = IndexSettings(design=design, taps=("final",), output_rank=16, kept=0)
    frozen = freeze(from_model(module), params, train, index, execution)
    members = known_membership(frozen.settings.design, train.ids, train.keys)
    try:
        execution = Execution(mesh, some, memory=2**27, batch_size=8)
        fitting.fit_operators(frozen, train, members, execution)
    except _Enough:
        pass
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"first": reached[0], "all": reached[-1], "steps": len(reached) - 1, "peak": peak}


def main(words: list[str]) -> None:
    """One process."""
    parser = Parser("corpus_steps", __doc__)
    parser.flag("folder", "Prepared corpus.", required=True)
    parser.flag("steps", "Batches.", type=at_least(1), default=20)
    parser.flag("limit", "GiB of addresses.", type=at_least(0), default=0)
    parser.flag("coordinator", "Of several processes.")
    parser.flag("num_processes", "Of the job.", type=at_least(1))
    parser.flag("process_id", "This one's.", type=at_least(0))
    given, _ = parser.read(words)
    if given.limit:
        resource.setrlimit(resource.RLIMIT_AS, (given.limit << 30,) * 2)
    if given.coordinator:
        connect(Cluster(given.coordinator, given.num_processes, given.process_id))
    told = first_steps(given.folder, given.steps)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
