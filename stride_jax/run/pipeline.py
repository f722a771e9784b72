"""Data → base model → operators → measurements → recovery → unit → attribution → evaluation.

Stages run when something needs them, and their products are stored in files; several processes run
them together, and the finished part of a stage survives a kill.
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
from jax.sharding import Mesh, NamedSharding

from stride_jax import asking, attribution, evaluation, fitting, models, reading, taps
from stride_jax import design as designs
from stride_jax import index as indices
from stride_jax.adapters import from_model
from stride_jax.baselines import gradients, simple
from stride_jax.baselines.model import Model
from stride_jax.data import (
    ChatTemplate,
    Examples,
    ShardSplits,
    TextSplits,
    map_splits,
    template_of,
    write_splits,
)
from stride_jax.frozen import FrozenModel, freeze, resolve
from stride_jax.operators.fisher import DECAY
from stride_jax.run import grouping, splits, stages
from stride_jax.run.base_model import doubt_of, restore_base, starting_params, train_base
from stride_jax.run.planning import model_speed, with_speed
from stride_jax.run.products import Arrays, Products
from stride_jax.run.recovering import from_arrays, read_in_blocks
from stride_jax.run.settings import SETTINGS, RunSettings, adopted, used
from stride_jax.runtime import checkpoint, durable, processes
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.digests import parameters_fingerprint
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import naming
from stride_jax.runtime.folders import local_folder
from stride_jax.runtime.progress import Progress, silent
from stride_jax.scores import Scores
from stride_jax.unit import Unit

STAGES = stages.STAGES


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
        if settings.model.init_from and settings.model.origin is None:
            settings = adopted(settings)
        self.settings = settings
        # A run that is there may be read where nothing can be written.
        there = os.path.exists(os.path.join(workdir, SETTINGS))
        self.workdir = local_folder(workdir, writable=not there)
        self.progress = progress if processes.leads() else silent
        self.stop = durable.StopRequest() if stop is None else stop
        self.report = report if processes.leads() else None
        self.products = Products(workdir, stages.inputs(settings))

    def execution(self, stage: str) -> Execution:
        """Devices, bars, memory and checkpoints of one stage's loops."""
        settings = self.settings.execution
        keep = durable.CheckpointKeep(
            self.products.partial(stage), self.mesh, time.monotonic, settings.keep, self.stop,
            self._report(stage),
        )  # fmt: skip
        return Execution(self.mesh, self.progress, keep, settings.memory, settings.batch_size)

    def _report(self, stage: str) -> durable.Report | None:
        """The report of a stage's loops, with their speed in examples, tokens and utilisation."""
        if self.report is None or (stage, self.settings.index.fit) == ("operators", "joint"):
            return self.report
        steps = self.settings.train.batch_size if stage == "model" else None
        return with_speed(self.report, model_speed(self.module, self.train, steps))

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices of all processes."""
        return meshes.mesh_for(self.settings.index.design.num_subsets, self.settings.execution.mesh)

    # ── data and base model ──────────────────────────────────────────────────────────────────────

    @functools.cached_property
    def corpus(self) -> TextSplits | ShardSplits:
        """Sequences and tokenizer of a language model's run, held in memory or not."""
        return splits.corpus_of(self.settings, self.workdir)

    @property
    def text(self) -> TextSplits:
        """The corpus where it is held in memory, with the truth of its retrieval."""
        assert isinstance(self.corpus, TextSplits), "this run is of shards"
        return self.corpus

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """How a prompt is written down for the model."""
        own = self.settings.tuning
        return ChatTemplate() if own is None else template_of(self.with_tokenizer(own))

    def with_tokenizer(self, text: splits.Tokenised) -> splits.Tokenised:
        """The text's settings with the tokenizer that came with the model, unless one is given."""
        return splits.with_tokenizer(self.settings, text, self.workdir)

    @functools.cached_property
    def data(self) -> tuple[dict[str, Examples], int]:
        """The splits by role, and the number of classes, or of numbers in a label."""
        began = time.monotonic()
        with processes.leader_first("data"):
            data = self._read_data()
        splits.refuse_labels(data[0], self.settings.train.objective, data[1])
        self.products.seconds["data"] = time.monotonic() - began
        self.products.loaded("data", *self._told(data[0]))
        return data

    def _told(self, by_role: dict[str, Examples]) -> list[np.ndarray | str]:
        """What tells one data set from another: ids, or the digest of those that are not read."""
        if self.settings.is_text and isinstance(self.corpus, ShardSplits):
            return [self.corpus.digest]
        return [own.ids for own in by_role.values()]

    def _read_data(self) -> tuple[dict[str, Examples], int]:
        """In memory; for several processes, memory-mapped files that the first of them writes.

        Of shards each process reads the rows that it asks for.
        """
        if processes.count() == 1 or self.settings.shards is not None:
            return self._load_data()
        if processes.leads():
            write_splits(self.mapped, *self._load_data())
        return map_splits(self.mapped, check=processes.leads())

    @property
    def mapped(self) -> pathlib.Path:
        """Folder of the splits that several processes map; a single one makes none."""
        return self.workdir / "data" / f"arrays-{self.products.key('data')}"

    def _load_data(self) -> tuple[dict[str, Examples], int]:
        corpus = self.corpus if self.settings.is_text else None
        return splits.examples_of(self.settings, corpus, self.workdir)

    @property
    def train(self) -> Examples:
        """The training split."""
        return self.data[0]["train"]

    @property
    def query(self) -> Examples:
        """The query split."""
        return self.data[0]["query"]

    @functools.cached_property
    def module(self) -> Any:
        """The linen module."""
        return models.make_model(self.settings.model, self.data[1])

    @functools.cached_property
    def model(self) -> Model:
        """The base model with its checkpoints and temperature, from disk or trained."""
        folder = self.products.path("model")
        if checkpoint.latest(folder) is None:
            self._refuse_unknown_taps()
            _ = self.groups  # refused before anything is trained
            params, config = train_base(
                self.module, self.data[0], self.settings, self.execution("model")
            )
            config["note"] = self.products.note("model")
            checkpoint.save(folder, meshes.everywhere(params, self.mesh), config)
            if self.settings.is_text and processes.leads():
                self.corpus.tokenizer.save(folder / "tokenizer.json")  # for runs that start from it
            processes.wait("model written")
        self.products.tidy("model")
        model, config = restore_base(
            folder, self.module, self.train.inputs[:1], self.settings, self.mesh
        )
        self.products.restored("model", config, model.checkpoints)
        return model

    def _refuse_unknown_taps(self) -> None:
        """Taps and sites by shapes alone, before anything is trained."""
        one = self.train.inputs[:1]
        fresh = functools.partial(models.initial_params, self.module, inputs=jnp.asarray(one))
        params = jax.eval_shape(fresh, jax.random.key(0))
        tapped = taps.with_objective(from_model(self.module), self.settings.train.objective)
        resolve(tapped, params, one, self.settings.index)

    def another(self, i: int) -> "Run":
        """The same run with a base model of another seed, the i-th."""
        train = dataclasses.replace(self.settings.train, seed=self.settings.train.seed + i)
        settings = dataclasses.replace(self.settings, train=train)
        return Run(settings, self.workdir, self.progress, self.stop, self.report)

    # ── STRIDE ───────────────────────────────────────────────────────────────────────────────────

    @functools.cached_property
    def tapped(self) -> taps.TappedModel:
        """The calibrated base model with its taps, which every method reads."""
        return self.model.tapped

    @functools.cached_property
    def frozen(self) -> FrozenModel:
        """The calibrated base model with taps, sites and forms of curvature decided."""
        params = self.model.params
        if self.settings.execution.mesh.parameters == "sharded":
            params = meshes.place(params, meshes.sharded_parameters(params, self.mesh))
        execution = Execution(self.mesh, self.progress, memory=self.settings.execution.memory)
        frozen = freeze(self.tapped, params, self.train, self.settings.index, execution)
        asked, own = self.settings.index.closed_form, frozen.settings.closed_form
        if asked.doubt is None and own.decay in (asked.decay, DECAY):
            # The calibration split says what to think of a model that has settled.
            doubt = doubt_of(self.model, params, self.data[0], self.mesh)
            closed_form = dataclasses.replace(own, doubt=doubt)
            settings = dataclasses.replace(frozen.settings, closed_form=closed_form)
            frozen = dataclasses.replace(frozen, settings=settings)
        return frozen

    @functools.cached_property
    def groups(self) -> grouping.Named | None:
        """Names of the groups of training examples, and the group of each; None without."""
        by = self.settings.groups
        text = self.text.train if by and self.settings.is_text else None
        return grouping.named(by, self.train, text) if by else None

    @functools.cached_property
    def index(self) -> indices.Index:
        """The index, whose K matrices are laid out by subset, in memory and on disk."""
        folder = self.products.path("operators")
        if checkpoint.latest(folder) is None:
            frozen, began = self.frozen, time.monotonic()
            subsets_Nxd = designs.known_membership(
                frozen.settings.design, self.train.ids, self.train.keys
            )
            labels = None if self.groups is None else self.groups[1]
            fitted = fitting.fit_operators(
                frozen, self.train, subsets_Nxd, self.execution("operators"), labels
            )
            made = fitting.made(fitted, self.train, frozen, "", self.groups)
            arrays = indices.to_arrays(made)
            config = {"seconds": time.monotonic() - began, "groups": grouping.note(made.groups)}
            config["note"] = self.products.note("operators")
            placed = {name: meshes.place(v, self._where(name)) for name, v in arrays.items()}
            checkpoint.save(folder, placed, config)
            processes.wait("operators written")
        self.products.tidy("operators")
        like = {
            name: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=self._where(name))
            for name, v in checkpoint.shapes(folder).items()
        }
        arrays, config = checkpoint.restore(folder, like)
        frozen, names = self.frozen, (self.train.ids, self.train.keys)
        self.products.restored("operators", config, arrays)
        arrays |= grouping.from_note(config.get("groups"))
        index = indices.from_arrays(
            arrays, names, frozen.settings, parameters_fingerprint(frozen.params)
        )
        return dataclasses.replace(index, objective=frozen.tapped.objective.name)

    def _where(self, name: str) -> NamedSharding:
        split = indices.by_subset(name)
        return meshes.over_subsets(self.mesh) if split else meshes.replicated(self.mesh)

    @functools.cached_property
    def measurements(self) -> np.ndarray:
        """`y_QxK`, nats."""

        def compute() -> Arrays:
            measure, execution = self.settings.read.measure, self.execution("measurements")
            operators = self.index.operators
            return {"y": asking.measure_all(self.frozen, operators, self.query, measure, execution)}

        return self.products.arrays("measurements", compute, lambda: self.index)["y"]

    @functools.cached_property
    def group_measurements(self) -> np.ndarray | None:
        """What each group does to each query, `y_QxG`, nats; None without groups."""
        if not self.settings.groups:
            return None

        def compute() -> Arrays:
            groups, execution = self.index.groups, self.execution("groups")
            assert groups is not None, "operators of a run with groups have them"
            measure = self.settings.read.measure
            return {"y": grouping.measured(self.frozen, groups, self.query, measure, execution)}

        return self.products.arrays("groups", compute, lambda: self.index)["y"]

    @functools.cached_property
    def reading(self) -> reading.Reading:
        """Scores of the queries: exact where they matter, else estimated; with certificates."""

        def compute() -> Arrays:
            progress = self.stop.between(self.progress)
            memory = self.settings.execution.memory
            execution = Execution(meshes.local_mesh(), progress, memory=memory)
            corpus = reading.Corpus(self.frozen, self.train)
            return read_in_blocks(
                self.index, corpus, self.query, self.measurements, self.settings.read,
                self.products.partial("recovery"), execution,
            )  # fmt: skip

        arrays = self.products.arrays("recovery", compute, lambda: self.measurements)
        path = self.products.path("recovery").with_suffix(".npz")
        with naming(path, "scores", "remove it to have the stage 'recovery' run again"):
            found, wanted = from_arrays(arrays), (len(self.query), len(self.train))
            if found.scores.shape != wanted:
                raise ValueError(f"scores of shape {found.scores.shape}, not {wanted}")
            return found

    @property
    def influences(self) -> Scores:
        """`[Q, N]` scores without their unit, dense or in compressed rows."""
        return self.reading.scores

    @functools.cached_property
    def unit(self) -> Unit | None:
        """What scores are in, from models retrained without groups; None where it was not asked."""
        if (settings := self.settings.unit) is None:
            return None

        def compute() -> Arrays:
            bank, asked = (
                self._retrained("unit", settings.bank),
                self.settings.read.measure.question,
            )
            own = evaluation.unit_of_bank(self._relative(), bank, asked)
            return {"unit": np.array([own.slope, *own.ci95])}

        own = self.products.arrays("unit", compute, lambda: self.reading)["unit"]
        path = self.products.path("unit").with_suffix(".npz")
        with naming(path, "a unit", "remove it to have the stage 'unit' run again"):
            slope, low, high = own
            return Unit(float(slope), (float(low), float(high)))

    @property
    def measured_unit(self) -> Unit | None:
        """The unit, if it was measured already: a question trains no models."""
        return self.unit if self.products.path("unit").with_suffix(".npz").exists() else None

    def _relative(self) -> attribution.Attribution:
        classes = self.query.labels.ndim == 1 and self.model.objective.classes
        return attribution.Attribution(
            self.query.ids, self.train.ids, self.influences, used(self.resolved),
            query_labels=self.query.labels if classes else None,
            train_labels=self.train.labels if classes else None,
            diagnostics=self.reading.diagnostics, exact=self.reading.exact_QxN,
            sources=self.reading.sources, train_keys=self.train.keys,
        )  # fmt: skip

    def group_attribution(self) -> attribution.Attribution | None:
        """By how much queries' losses would rise without each group, in the unit of the scores."""
        y_QxG, groups = self.group_measurements, self.index.groups
        if y_QxG is None or groups is None:
            return None
        relative = attribution.Attribution(
            self.query.ids, groups.names, y_QxG, used(self.resolved),
            query_labels=self.query.labels if self.query.labels.ndim == 1 else None,
        )  # fmt: skip
        return relative if self.unit is None else relative.in_unit(self.unit)

    def attribution(self) -> attribution.Attribution:
        """STRIDE's scores in their unit, with ids, labels and settings."""
        relative = self._relative()
        return relative if self.unit is None else relative.in_unit(self.unit)

    @property
    def resolved(self) -> RunSettings:
        """The settings, with the taps that were chosen."""
        return dataclasses.replace(self.settings, index=self.frozen.settings)

    # ── evaluation ───────────────────────────────────────────────────────────────────────────────

    @functools.cached_property
    def bank(self) -> evaluation.Bank:
        """Models retrained on random subsets.

        Raises:
          ValueError: the settings have no bank.
        """
        if self.settings.bank is None:
            raise ValueError(
                "this run has bank=None, so there is nothing to evaluate against: give it a bank"
            )
        bank = self._retrained("bank", self.settings.bank)
        self.products.seconds["bank"] = bank.seconds
        return bank

    @property
    def retraining(self) -> evaluation.Retraining:
        """What models of the bank are trained from: their seeds, or what the base model was."""
        settings, start = self.settings, None
        mesh = self.mesh if settings.execution.mesh.parameters == "sharded" else None
        if (origin := settings.model.origin) is not None:
            load = functools.partial(
                starting_params, self.module, self.train.inputs[:1], settings, mesh
            )
            start = evaluation.Start(origin.digest, load)
        return evaluation.Retraining(
            self.module, self.train, self.query, settings.train, start, mesh
        )

    def _retrained(self, stage: str, settings: evaluation.BankSettings) -> evaluation.Bank:
        """A stage's models, retrained by all processes; those that are in the folder are read."""
        setup, folder = self.retraining, self.workdir / "bank"
        together = setup.mesh is not None
        worker = (0, 1) if together else (processes.index(), processes.count())
        evaluation.fill_bank(
            setup, settings, folder, worker=worker,
            progress=self.stop.between(self.progress, together), clock=time.monotonic,
        )  # fmt: skip
        processes.wait(f"models of {stage} done")
        return evaluation.read_bank(setup, settings, folder)

    def baseline(self, name: str) -> np.ndarray:
        """Scores of a baseline, `[Q, N]`."""

        def compute() -> Arrays:
            both = self.model, self.train
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
