"""Reading a run's queries in blocks, divided among processes and written one by one."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import scipy.sparse

from stride_jax.asking import Asked, asked_of
from stride_jax.candidates import Candidates
from stride_jax.estimate import estimator
from stride_jax.examples import Examples
from stride_jax.index import Index
from stride_jax.neighbours import finder, most_named
from stride_jax.reading import Corpus, Reading, joined, on_this_process, read
from stride_jax.run.products import Arrays
from stride_jax.runtime import processes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import read_arrays, write_arrays
from stride_jax.scores import Scores
from stride_jax.settings import ReadSettings

# Rows of measurements that are read, and written, together; their shortlists share a forward pass.
_BLOCK = 4096


def read_in_blocks(
    index: Index,
    corpus: Corpus,
    queries: Examples,
    y_YxK: np.ndarray,
    settings: ReadSettings,
    folder: pathlib.Path,
    execution: Execution,
    others: Sequence[Candidates] = (),
) -> Arrays:
    """Scores of all queries; blocks that are written already are read back.

    Args:
      index: what is read.
      corpus: the model and the training data.
      queries: Q of them.
      y_YxK: their measurements, nats.
      settings: how they are read.
      folder: folder of the blocks.
      execution: this process's devices; progress of the blocks.
      others: candidates of each query, besides those of the settings' sources.

    Returns:
      A `Reading` as named arrays.
    """
    # Another number of processes divides the queries differently.
    folder = folder / f"of-{processes.count()}"
    frozen, index = on_this_process(corpus.frozen, index)
    corpus = corpus._replace(frozen=frozen)
    own = estimator(index, settings, execution)
    rows, groups = processes.share(len(queries)), len(y_YxK) // len(queries)
    size = max(1, _BLOCK // groups)
    find = finder(settings.exact.sources, frozen, index, corpus.examples, execution)
    most = most_named(settings.exact, len(index.train_ids))
    for first in execution.progress(range(0, len(rows), size), desc="recovery"):
        block = rows[first : first + size]
        path = folder / f"{block[0]:09d}-{block[-1]:09d}.npz"
        if path.exists():
            continue
        y = Asked(y_YxK, None, len(queries)).rows(block)
        some = queries.take(block)
        asked = asked_of(frozen, index, some, y, settings, True, execution)
        asked = dataclasses.replace(asked, total=len(queries))
        named = [*find(some, most), *(one.of(block) for one in others)]
        reading = read(own, index, asked, corpus, named, execution)
        write_arrays(path, **to_arrays(reading))
    processes.wait("recovery done")
    return to_arrays(_whole_reading(folder, len(queries)))


def _whole_reading(folder: pathlib.Path, num_queries: int) -> Reading:
    """The blocks of all processes as one, each query once.

    Raises:
      ValueError: blocks that do not follow on each other from the first query to the last.
    """
    paths, following = sorted(folder.glob("*.npz")), 0
    for path in paths:
        first, last = (int(number) for number in path.stem.split("-"))
        if first != following:
            break
        following = last + 1
    if following != num_queries:
        raise ValueError(
            f"{folder} has no block of queries that starts with {following} of {num_queries}: all "
            "processes must share the folder; remove it to have the queries read again"
        )
    return joined([from_arrays(read_arrays(path)) for path in paths])


def to_arrays(reading: Reading) -> Arrays:
    """A reading as named arrays."""
    arrays = _parts("scores", reading.scores) | _parts("exact", reading.exact_QxN)
    arrays |= {f"diagnostics:{name}": v for name, v in reading.diagnostics.items()}
    return arrays | {"sources": np.array(reading.sources)}


def from_arrays(arrays: Arrays) -> Reading:
    """The inverse of `to_arrays`."""
    prefix = "diagnostics:"
    diagnostics = {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}
    exact = scipy.sparse.csr_array(_whole("exact", arrays))
    sources = tuple(arrays["sources"].tolist())
    return Reading(_whole("scores", arrays), exact, sources, diagnostics)


def _parts(name: str, scores: Scores) -> Arrays:
    if isinstance(scores, np.ndarray):
        return {name: scores}
    pieces = {"data": scores.data, "indices": scores.indices, "indptr": scores.indptr}
    return {f"{name}:{n}": v for n, v in pieces.items()} | {f"{name}:shape": np.array(scores.shape)}


def _whole(name: str, arrays: Arrays) -> Scores:
    if name in arrays:
        return arrays[name]
    data, indices, ends, shape = (
        arrays[f"{name}:{n}"] for n in ("data", "indices", "indptr", "shape")
    )
    whole = scipy.sparse.csr_array((data, indices, ends), shape=tuple(shape.tolist()))
    whole.check_format(full_check=True)  # SciPy's programs trust the places that they are given
    return whole
