"""Data → base model → operators → measurements → recovery → attribution → evaluation.

Stages run when something needs them, and their products stay in files; several processes run them
together, and what a stage has done so far survives a kill.
"""

import dataclasses
import functools
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.sharding import Mesh, NamedSharding

from stride_jax import attribution, evaluation, models, stride, taps
from stride_jax import design as designs
from stride_jax import index as indices
from stride_jax import operators as ops
from stride_jax.adapters import from_model
from stride_jax.baselines import gradients, simple
from stride_jax.baselines.model import Model
from stride_jax.corpus import Corpus, choose_taps
from stride_jax.data import (
    Examples,
    TextSplits,
    load_splits,
    load_text,
    load_verses,
    map_splits,
    plant,
    planted_facts,
    write_splits,
)
from stride_jax.index import StrideSettings
from stride_jax.measure import MeasureSettings
from stride_jax.recovery import lasso
from stride_jax.recovery.result import joined
from stride_jax.run.planning import model_speed, with_speed
from stride_jax.run.products import Arrays, Products
from stride_jax.run.settings import RunSettings
from stride_jax.runtime import checkpoint, durable, processes
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.files import plain, read_arrays, write_arrays
from stride_jax.runtime.progress import Progress, silent

# Queries that are recovered, and written, together.
_BLOCK = 1024


class Run:
    """A run's stages; each is a property that is read from disk or computed once."""

    def __init__(
        self,
        settings: RunSettings,
        workdir: str | os.PathLike[str],
        progress: Progress = silent,
        stop: durable.StopRequest | None = None,
        report: durable.Report | None = None,
    ) -> None:
        self.settings = settings
        self.workdir = pathlib.Path(workdir)
        self.progress = progress if processes.leads() else silent
        self.stop = durable.StopRequest() if stop is None else stop
        self.report = report if processes.leads() else None
        self.products = Products(workdir, self._inputs())

    def _inputs(self) -> dict[str, tuple[Any, tuple[str, ...]]]:
        """Of each stage: its settings, and the stages before it."""
        s = self.settings
        return {
            "data": ((s.verses or s.text, s.facts) if self.is_text else s.data, ()),
            "model": ((s.model, s.train, s.num_checkpoints), ("data",)),
            "operators": (
                dataclasses.replace(
                    s.stride, measure=MeasureSettings(), prior=0.0, lasso=lasso.LassoSettings()
                ),
                ("model",),
            ),
            "measurements": (s.stride.measure, ("operators",)),
            "recovery": ((s.stride.prior, s.stride.lasso), ("measurements",)),
            "random": ((), ("data",)),
            "feature-cosine": ((), ("model",)),
            "grad-dot": ((), ("model",)),
        }

    def _keep(self, stage: str) -> durable.Kept:
        return durable.Kept(
            self.products.partial(stage), self.mesh, time.monotonic, self.settings.keep, self.stop,
            self._report(stage),
        )  # fmt: skip

    def _report(self, stage: str) -> durable.Report | None:
        """The report of a stage's loops, with what their speed means."""
        if self.report is None or (stage, self.settings.stride.fit) == ("operators", "joint"):
            return self.report
        steps = self.settings.train.batch_size if stage == "model" else None
        return with_speed(self.report, model_speed(self.module, self.train, steps))

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices of all processes."""
        return meshes.mesh_for(self.settings.stride.design.num_subsets, self.settings.mesh)

    # ── data and base model ──────────────────────────────────────────────────────────────────────

    @property
    def is_text(self) -> bool:
        """Whether the run is of a language model."""
        return self.settings.text is not None or self.settings.verses is not None

    @functools.cached_property
    def text(self) -> TextSplits:
        """Sequences and tokenizer of a language model's run, and what retrieval should find."""
        s = self.settings
        if s.verses is not None:
            splits = load_verses(s.verses, self.workdir)
        else:
            assert s.text is not None, "this run is not of text"
            splits = load_text(s.text, self.workdir)
        return plant(splits, planted_facts(seed=0, count=s.facts)) if s.facts else splits

    @functools.cached_property
    def _data(self) -> tuple[dict[str, Examples], int]:
        began = time.monotonic()
        with processes.leader_first("data"):
            data = self._read_data()
        self.products.seconds["data"] = time.monotonic() - began
        return data

    def _read_data(self) -> tuple[dict[str, Examples], int]:
        """In memory; for several processes, memory-mapped files that the first of them writes."""
        if processes.count() == 1:
            return self._load_data()
        folder = self.workdir / "data" / f"arrays-{self.products.key('data')}"
        if processes.leads():
            write_splits(folder, *self._load_data())
        return map_splits(folder)

    def _load_data(self) -> tuple[dict[str, Examples], int]:
        if not self.is_text:
            return load_splits(self.settings.data, self.workdir / "data")
        roles = ("train", "calibration", "query")
        splits = {role: getattr(self.text, role).examples for role in roles}
        return splits, self.text.tokenizer.vocab_size

    @property
    def train(self) -> Examples:
        """The training split."""
        return self._data[0]["train"]

    @property
    def query(self) -> Examples:
        """The query split."""
        return self._data[0]["query"]

    @functools.cached_property
    def module(self) -> Any:
        """The linen module."""
        return models.make_model(self.settings.model, self._data[1])

    @property
    def model(self) -> tuple[Any, float]:
        """The base model's parameters and its temperature."""
        base = self.base_model
        return base.params, base.temperature

    @functools.cached_property
    def base_model(self) -> Model:
        """The base model with its checkpoints and temperature, from disk or trained."""
        folder = self.products.path("model")
        if checkpoint.latest(folder) is not None:
            x = jnp.asarray(self.train.inputs[:1])
            fresh = functools.partial(models.initial_params, self.module, inputs=x)
            like = jax.eval_shape(fresh, jax.random.key(0))
            like = jax.tree.map(self._on_every_device, [like] * self.settings.num_checkpoints)
            params, config = checkpoint.restore(folder, like)
            params = jax.tree.map(lambda v: jnp.asarray(meshes.fetch(v)), params)
            self.products.tidy("model")
        else:
            params, config = self._train_base()
            checkpoint.save(folder, meshes.everywhere(params, self.mesh), config)
            self.products.forget("model")
        self.products.seconds["model"] = config["seconds"]
        return Model(
            self.module, tuple(params), tuple(config["learning_rates"]), config["temperature"]
        )

    def _on_every_device(self, v: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=meshes.replicated(self.mesh))

    def another(self, i: int) -> "Run":
        """The same run with a base model of another seed, the i-th."""
        train = dataclasses.replace(self.settings.train, seed=self.settings.train.seed + i)
        settings = dataclasses.replace(self.settings, train=train)
        return Run(settings, self.workdir, self.progress, self.stop, self.report)

    def _train_base(self) -> tuple[list[Any], dict[str, Any]]:
        began = time.monotonic()
        s, held_out = self.settings, self._data[0]["calibration"]
        checkpoints, rates = models.pretrain(
            self.module, self.train.inputs, self.train.labels, s.train, s.num_checkpoints,
            progress=self.progress, keep=self._keep("model"),
        )  # fmt: skip
        forward = jax.jit(lambda params, x: self.module.apply({"params": params}, x)[0])
        logits = np.asarray(forward(checkpoints[-1], jnp.asarray(held_out.inputs)))
        logits = logits.reshape(-1, logits.shape[-1])
        temperature = models.fit_temperature(logits, np.asarray(held_out.labels).reshape(-1))
        config = {
            "model": s.model,
            "train": s.train,
            "temperature": temperature,
            "learning_rates": rates,
            "seconds": time.monotonic() - began,
        }
        return checkpoints, config

    # ── STRIDE ───────────────────────────────────────────────────────────────────────────────────

    @functools.cached_property
    def tapped(self) -> taps.TappedModel:
        """The calibrated base model with its taps: what every method sees."""
        return taps.with_temperature(from_model(self.module), self.model[1])

    @functools.cached_property
    def stride_settings(self) -> StrideSettings:
        """The method's settings, taps chosen."""
        return choose_taps(self._corpus(self.train), self.settings.stride)

    def _corpus(self, examples: Examples) -> Corpus:
        """Examples as the calibrated base model sees them."""
        return Corpus(
            self.tapped, self._laid_out_params, examples.inputs, examples.labels, mesh=self.mesh,
            progress=self.progress,
        )  # fmt: skip

    @functools.cached_property
    def _laid_out_params(self) -> Any:
        params = self.model[0]
        if self.settings.mesh.parameters == "replicated":
            return params
        return meshes.place(params, meshes.sharded_parameters(params, self.mesh))

    @functools.cached_property
    def operators(self) -> tuple[dict[str, ops.Operators], np.ndarray]:
        """The index: basis and K steering matrices by site, and `||e_i||` of the examples.

        Its K matrices live where their subsets do, in memory and on disk.
        """
        folder = self.products.path("operators")
        if checkpoint.latest(folder) is None:
            settings, began = self.stride_settings, time.monotonic()
            subsets = designs.membership(settings.design, self.train.ids)
            made, _, residual_N = stride.make_operators(
                settings, subsets, self._corpus(self.train), keep=self._keep("operators")
            )
            arrays = indices.to_arrays(made) | {"residual_N": residual_N}
            note = {"seconds": time.monotonic() - began}
            placed = {name: meshes.place(v, self._where(name)) for name, v in arrays.items()}
            checkpoint.save(folder, placed, note)
            processes.wait("operators written")
        self.products.tidy("operators")
        like = {name: self._like(name, v) for name, v in checkpoint.shapes(folder).items()}
        arrays, note = checkpoint.restore(folder, like)
        self.products.seconds["operators"] = note["seconds"]
        residual_N = meshes.fetch(arrays.pop("residual_N"))
        return indices.from_arrays(arrays), residual_N

    def _where(self, name: str) -> NamedSharding:
        split = indices.by_subset(name)
        return meshes.over_subsets(self.mesh) if split else meshes.replicated(self.mesh)

    def _like(self, name: str, v: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=self._where(name))

    @functools.cached_property
    def measurements(self) -> np.ndarray:
        """`y_QxK`, nats."""

        def compute() -> Arrays:
            corpus, keep = self._corpus(self.query), self._keep("measurements")
            return {
                "y": stride.measure_all(self.stride_settings, self.operators[0], corpus, keep=keep)
            }

        return self.products.arrays("measurements", compute, lambda: self.operators)["y"]

    @functools.cached_property
    def recovery(self) -> lasso.Recovery:
        """Influences with their certificates; processes share out the queries."""

        def compute() -> Arrays:
            y_QxK = self.measurements
            # Another number of processes shares the queries out differently.
            folder = self.products.partial("recovery") / f"of-{processes.count()}"
            state = stride.lasso_state(
                self.settings.stride, self.train.ids, self.operators[1], mesh=meshes.local_mesh()
            )
            rows = processes.share(len(y_QxK))
            progress = self.stop.between(self.progress)
            for first in progress(range(0, len(rows), _BLOCK), desc="recovery"):
                block = rows[first : first + _BLOCK]
                path = folder / f"{block[0]:09d}-{block[-1]:09d}.npz"
                if not path.exists():
                    found = lasso.solve(state, y_QxK[block], self.settings.stride.lasso)
                    write_arrays(path, **dataclasses.asdict(found))
            processes.wait("recovery done")
            parts = [read_arrays(path) for path in sorted(folder.glob("*.npz"))]
            return dataclasses.asdict(joined([lasso.Recovery(**part) for part in parts]))  # pyright: ignore[reportArgumentType]

        found = self.products.arrays("recovery", compute, lambda: self.measurements)
        return lasso.Recovery(**found)  # pyright: ignore[reportArgumentType]

    @property
    def influences(self) -> scipy.sparse.csr_array:
        """`[Q, N]` scores in compressed rows."""
        return stride.by_query(self.recovery, len(self.query))

    # ── evaluation ───────────────────────────────────────────────────────────────────────────────

    @functools.cached_property
    def bank(self) -> evaluation.Bank:
        """Models retrained on random subsets."""
        recipe = (
            self.module, self.train, self.query, self.settings.train, self.settings.bank,
            self.workdir / "bank",
        )  # fmt: skip
        evaluation.fill_bank(
            *recipe, worker=(processes.index(), processes.count()),
            progress=self.stop.between(self.progress), clock=time.monotonic,
        )  # fmt: skip
        processes.wait("bank done")
        bank = evaluation.read_bank(*recipe)
        self.products.seconds["bank"] = bank.seconds
        return bank

    def baseline(self, name: str) -> np.ndarray:
        """Scores of a baseline, `[Q, N]`."""

        def compute() -> Arrays:
            both = self.base_model, self.train
            if name == "random":
                scores = simple.score_random(None, *both, self.query, simple.RandomSettings())
            elif name == "feature-cosine":
                settings = simple.CosineSettings()
                state = simple.fit_cosine(*both, settings)
                scores = simple.score_cosine(state, *both, self.query, settings)
            else:
                settings = gradients.GradientSettings()
                scores = gradients.score(None, *both, self.query, settings)
            return {"scores": scores}

        return self.products.arrays(name, compute, lambda: self.model, together=False)["scores"]

    def attribution(self) -> attribution.Attribution:
        """STRIDE's scores with ids and settings."""
        return attribution.Attribution(
            self.query.ids, self.train.ids, self.influences, plain(self.resolved)
        )

    @property
    def resolved(self) -> RunSettings:
        """The settings, taps chosen."""
        return dataclasses.replace(self.settings, stride=self.stride_settings)
