"""What a piece of work cost: seconds without compilation, compilation apart, memory."""

import dataclasses
import threading
import time
from typing import Any

import jax

from stride_jax.index import Index
from stride_jax.runtime.metrics import resident_bytes

_COMPILING = {
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
}
_compiled = 0.0


def _listen(event: str, duration_secs: float, **kwargs: Any) -> None:
    global _compiled  # jax.monitoring offers callbacks alone
    # Tracing is left in the seconds: its events nest, so that their sum counts twice.
    if event in _COMPILING:
        _compiled += duration_secs


jax.monitoring.register_event_duration_secs_listener(_listen)


@dataclasses.dataclass
class Cost:
    """Filled when the `Meter` block ends.

    Attributes:
      seconds: wall time less compilation.
      compile_seconds: lowering and XLA compilation, as JAX reports them.
      peak_bytes: largest growth of the process' resident memory, sampled every 10 ms.
    """

    seconds: float = 0.0
    compile_seconds: float = 0.0
    peak_bytes: int = 0


class Meter:
    """Measures its block.

    >>> with Meter() as cost:
    ...     _ = sum(range(1000))
    >>> cost.seconds >= 0 and cost.peak_bytes >= 0
    True
    """

    def __enter__(self) -> Cost:
        self.cost, self.stop = Cost(), threading.Event()
        self.start_bytes, self.start_compiled = resident_bytes(), _compiled
        self.sampler = threading.Thread(target=self._sample, daemon=True)
        self.sampler.start()
        self.began = time.monotonic()
        return self.cost

    def _sample(self) -> None:
        while not self.stop.wait(0.01):
            self.cost.peak_bytes = max(self.cost.peak_bytes, resident_bytes() - self.start_bytes)

    def __exit__(self, *_: object) -> None:
        wall = time.monotonic() - self.began
        self.stop.set()
        self.sampler.join()
        self.cost.compile_seconds = _compiled - self.start_compiled
        self.cost.seconds = max(0.0, wall - self.cost.compile_seconds)


def index_bytes(state: Any) -> int:
    """Bytes of the arrays that scoring reads; example ids aside, which every method has."""
    if isinstance(state, Index):
        return state.nbytes
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Index))
    if any(isinstance(leaf, Index) for leaf in leaves):
        return sum(index_bytes(leaf) for leaf in leaves)
    sparse = [getattr(leaf, "data", leaf) for leaf in leaves]
    return sum(leaf.nbytes for leaf in sparse if hasattr(leaf, "nbytes"))
