"""Examples as a frozen model sees them, a chunk at a time.

Nothing of all examples is ever held: a chunk's activations and logits live while it is used. A
small corpus is one chunk.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from stride_jax import operators as ops
from stride_jax import taps
from stride_jax.index import StrideSettings
from stride_jax.observed import (
    Observed,
    check_examples,
    forward_all,
    forward_and_pull,
    forward_batch,
)
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.progress import Progress, silent


@dataclasses.dataclass(frozen=True)
class Seen:
    """A frozen model's view of a chunk of examples, ready for any site.

    Attributes:
      observed: taps, logits and labels.
      sites: `{site: (where operators act, what it needs of these examples)}`.
    """

    observed: Observed
    sites: dict[str, tuple[ops.Site, ops.Context]]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Examples and the frozen model that looks at them.

    Attributes:
      tapped, params: the model.
      inputs: `[N, ...]`.
      labels: `[N]` classes, or `[N, T]` next tokens.
      weights: token weights omega like `labels`; ones for None.
      mesh: devices; all of this process for None.
      progress: wraps long loops.
    """

    tapped: taps.TappedModel
    params: Any
    inputs: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None
    mesh: Mesh | None = None
    progress: Progress = silent

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: Any) -> "Corpus":
        """Some of the examples."""
        weights = None if self.weights is None else np.asarray(self.weights)[rows]
        inputs, labels = np.asarray(self.inputs)[rows], np.asarray(self.labels)[rows]
        return dataclasses.replace(self, inputs=inputs, labels=labels, weights=weights)

    def sample(self, tokens: int) -> "Corpus":
        """Evenly spaced examples of about so many tokens altogether; all if there are fewer.

        One device looks at them, so that a basis does not depend on how many there are; unless the
        model is split over all of them.
        """
        each = int(np.prod(np.shape(self.labels)[1:]))
        count = min(len(self), -(-tokens // each))
        few = self.part(np.unique(np.linspace(0, len(self) - 1, count).astype(int)))
        return dataclasses.replace(few, mesh=meshes.mesh_of(self.params) or meshes.single_mesh())

    def chunk(self, settings: StrideSettings) -> int:
        """Examples a chunk, so that what the model says about them fits `chunk_bytes`."""
        wanted = taps.only(self.tapped, named_taps(settings))
        one = np.asarray(self.inputs[:1])
        shapes = jax.eval_shape(wanted.forward, self.params, one)
        each = 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes))
        most = max(1, settings.chunk_bytes // each)
        # Equal chunks, so that one program serves them all.
        return -(-len(self) // -(-len(self) // most))

    def view(
        self, settings: StrideSettings, signs_C: jax.Array | None = None, *, training: bool = False
    ) -> tuple[ops.View, dict[str, np.ndarray], dict[str, ops.Site]]:
        """What a pass over these examples needs: a view, its data, and the sites.

        Args:
          settings: taps and sites, all named.
          signs_C: of the logit site's folding.
          training: whether they are seen as `ops.as_training` gives them.

        Raises:
          ValueError: labels that the model has no class for.
        """
        wanted = taps.only(self.tapped, named_taps(settings))
        inputs, labels = np.asarray(self.inputs), np.asarray(self.labels)
        weights = np.ones(labels.shape, np.float32) if self.weights is None else self.weights
        data = {"inputs": inputs, "labels": labels, "weights": np.asarray(weights)}
        check_examples(wanted, self.params, **data)
        shapes = jax.eval_shape(
            functools.partial(forward_batch, wanted),
            self.params,
            **{n: v[:1] for n, v in data.items()},
        )
        # The programs that take the view take the parameters too: they should not hold them twice.
        sites = {
            name: dataclasses.replace(self._site(settings, shapes, name, signs_C), params=None)
            for name in settings.sites
        }
        return _view(wanted, settings.closed_form if training else None), data, sites

    def signs(self, settings: StrideSettings) -> jax.Array | None:
        """Signs that fold the vocabulary, where `output_rank` is below its size."""
        shape = jax.eval_shape(self.tapped.forward, self.params, self.inputs[:1])[0].shape
        if "logit" not in settings.sites or not 0 < settings.output_rank < shape[-1]:
            return None
        return ops.draw_signs(shape[-1], settings.design.seed)

    def _site(
        self,
        settings: StrideSettings,
        observed: Observed,
        name: str,
        signs_C: jax.Array | None,
    ) -> ops.Site:
        if name == "logit":
            return ops.logit_site(observed, signs_C, settings.output_rank)
        return ops.residual_site(self.tapped, self.params, observed, self.inputs[:1], name)

    def look(
        self,
        settings: StrideSettings,
        signs_C: jax.Array | None = None,
        progress: Progress | None = None,
    ) -> Seen:
        """One forward pass over these examples, keeping what the settings' taps and sites need.

        Args:
          settings: taps and sites, all named.
          signs_C: of the logit site's folding.
          progress: wraps the batches; the corpus' own by default.
        """
        observed = forward_all(
            taps.only(self.tapped, named_taps(settings)), self.params, self.inputs, self.labels,
            self.weights, mesh=self.mesh, progress=self.progress if progress is None else progress,
        )  # fmt: skip
        sites = {}
        for name in settings.sites:
            site = self._site(settings, observed, name, signs_C)
            sites[name] = site, ops.context(site, observed, self.inputs)
        return Seen(observed, sites)

    def chunks(
        self, settings: StrideSettings, signs_C: jax.Array | None = None, desc: str = "forward"
    ) -> Iterator[tuple[slice, Seen]]:
        """`look` at one chunk after the other, with the rows of each."""
        size = self.chunk(settings)
        if size == len(self):
            yield slice(0, size), self.look(settings, signs_C)
            return
        for start in self.progress(range(0, len(self), size), desc=desc):
            rows = slice(start, min(start + size, len(self)))
            yield rows, self.part(rows).look(settings, signs_C, silent)


@functools.lru_cache(maxsize=64)
def _view(tapped: taps.TappedModel, how: ops.ClosedFormSettings | None) -> ops.View:
    """How the model sees examples; kept, so that asking again costs no compilation."""

    def view(
        params: Any, site: ops.Site, batch: dict[str, jax.Array]
    ) -> tuple[Observed, ops.Context]:
        if site.tap is None:
            observed, pull_back = forward_batch(tapped, params, **batch), None
        else:
            observed, pull_back = forward_and_pull(tapped, params, **batch, tap=site.tap)
        seen = observed if how is None else ops.as_training(observed, how)
        context = ops.context(site, observed, batch["inputs"])
        if pull_back is not None:
            context["errors"] = pull_back(ops.logit_errors(seen))
        return seen, context

    return view


def named_taps(settings: StrideSettings) -> tuple[str, ...]:
    """Taps that the basis or a site needs, each once."""
    residual = [site for site in settings.sites if site != "logit"]
    return tuple(dict.fromkeys([*settings.taps, *residual]))


def choose_taps(corpus: Corpus, settings: StrideSettings, *, sample: int = 1024) -> StrideSettings:
    """Settings with their taps named: chosen from evenly spaced training examples if none are.

    Raises:
      ValueError: a tap or site that the model does not have.
    """
    tapped = corpus.tapped
    few = corpus.sample(sample)
    names = list(jax.eval_shape(tapped.forward, corpus.params, few.inputs[:1])[1])
    taps.select(dict.fromkeys(names), named_taps(settings))
    if settings.taps:
        return settings
    if tapped.suffix is None:
        return dataclasses.replace(settings, taps=tuple(sorted(names)))
    seen = forward_all(tapped, corpus.params, few.inputs, few.labels, mesh=few.mesh)
    chosen = ops.choose_tap(ops.tap_energies(tapped, corpus.params, seen, few.inputs))
    return dataclasses.replace(settings, taps=(chosen,))
