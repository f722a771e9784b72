"""Data → base model → operators → measurements → recovery → attribution → evaluation.

Each stage's product is a file named by a hash of its settings and of the stages before it, so it
is reused exactly when its inputs have not changed. Stages run when something needs them.
"""

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from stride_jax import attribution, evaluation, models, stride, taps
from stride_jax import design as designs
from stride_jax import index as indices
from stride_jax import operators as ops
from stride_jax.baselines import gradients, simple
from stride_jax.baselines.model import Model
from stride_jax.corpus import Corpus, choose_taps
from stride_jax.data import (
    DataSettings,
    Examples,
    TextSettings,
    TextSplits,
    VerseSettings,
    load_splits,
    load_text,
    load_verses,
    plant,
    planted_facts,
)
from stride_jax.evaluation import BankSettings
from stride_jax.index import StrideSettings
from stride_jax.measure import MeasureSettings
from stride_jax.models import ModelSettings, TrainSettings
from stride_jax.models.train import cross_entropy
from stride_jax.recovery import lasso
from stride_jax.runtime import checkpoint
from stride_jax.runtime.files import fingerprint, plain, read_arrays, write_arrays, write_json
from stride_jax.runtime.progress import Progress, silent
from stride_jax.version import __version__

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """One run, from data to summary.

    Attributes:
      data: dataset and splits.
      text: in place of `data`, for language models.
      verses: in place of `text`, for verse retrieval.
      facts: made-up sentences planted in the text, each asked for in place of the queries.
      model: architecture.
      train: recipe of the base model and of the bank's models.
      num_checkpoints: of the base model along its training, the last one the model itself.
      stride: the method.
      bank: ground truth.
      top_k: proponents and opponents stored a query; 0 stores every non-zero score.
    """

    data: DataSettings = DataSettings()
    text: TextSettings | None = None
    verses: VerseSettings | None = None
    facts: int = 0
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    num_checkpoints: int = 5
    stride: StrideSettings = StrideSettings()
    bank: BankSettings = BankSettings()
    top_k: int = 100


class Run:
    """A run's stages; each is a property that is read from disk or computed once."""

    def __init__(
        self, settings: RunSettings, workdir: str | os.PathLike[str], progress: Progress = silent
    ) -> None:
        self.settings = settings
        self.workdir = pathlib.Path(workdir)
        self.progress = progress
        self.seconds: dict[str, float] = {}
        s = settings
        self._inputs: dict[str, tuple[Any, tuple[str, ...]]] = {
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

    def key(self, stage: str) -> str:
        """Hash of a stage's settings and of everything before it."""
        settings, needs = self._inputs[stage]
        return fingerprint(__version__, stage, settings, [self.key(need) for need in needs])

    def _stage(self, name: str, needs: Sequence[str], compute: Callable[[], Arrays]) -> Arrays:
        """A stage's arrays, from its file if it is there; `needs` are brought in before timing."""
        path = self.workdir / name / f"{self.key(name)}.npz"
        if path.exists():
            arrays = read_arrays(path)
        else:
            for need in needs:
                getattr(self, need)
            began = time.monotonic()
            arrays = compute()
            arrays["seconds"] = np.array(time.monotonic() - began)
            write_arrays(path, **arrays)
        self.seconds[name] = float(arrays.pop("seconds"))
        return arrays

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
        if not self.is_text:
            data = load_splits(self.settings.data, self.workdir / "data")
        else:
            roles = ("train", "calibration", "query")
            splits = {role: getattr(self.text, role).examples for role in roles}
            data = splits, self.text.tokenizer.vocab_size
        self.seconds["data"] = time.monotonic() - began
        return data

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
        folder = self.workdir / "model" / self.key("model")
        fresh = functools.partial(
            models.initial_params, self.module, inputs=jnp.asarray(self.train.inputs)
        )
        init_key, order_key = jax.random.split(jax.random.key(self.settings.train.seed))
        if folder.exists():
            like = [jax.eval_shape(fresh, init_key)] * self.settings.num_checkpoints
            params, config = checkpoint.restore(folder, like)
        else:
            params, config = self._train_base(fresh(init_key), order_key)
            checkpoint.save(folder, params, config)
        self.seconds["model"] = config["seconds"]
        return Model(
            self.module, tuple(params), tuple(config["learning_rates"]), config["temperature"]
        )

    def another(self, i: int) -> "Run":
        """The same run with a base model of another seed, the i-th."""
        train = dataclasses.replace(self.settings.train, seed=self.settings.train.seed + i)
        return Run(dataclasses.replace(self.settings, train=train), self.workdir, self.progress)

    def _train_base(self, params: Any, key: jax.Array) -> tuple[list[Any], dict[str, Any]]:
        began = time.monotonic()
        held_out = self._data[0]["calibration"]

        @jax.jit
        def forward(params: Any, x: jax.Array) -> jax.Array:
            return self.module.apply({"params": params}, x)[0]

        fit = functools.partial(
            models.trajectory,
            forward,
            settings=self.settings.train,
            num_checkpoints=self.settings.num_checkpoints,
        )
        path = jax.jit(fit)(
            params, self.train.inputs, self.train.labels, jnp.arange(len(self.train)), key=key
        )
        checkpoints = [params for params, _ in path]
        logits = np.asarray(forward(checkpoints[-1], jnp.asarray(held_out.inputs)))
        logits = logits.reshape(-1, logits.shape[-1])
        temperature = models.fit_temperature(logits, held_out.labels.reshape(-1))
        config = {
            "model": self.settings.model,
            "train": self.settings.train,
            "temperature": temperature,
            "learning_rates": [float(rate) for _, rate in path],
            "seconds": time.monotonic() - began,
        }
        return checkpoints, config

    # ── STRIDE ───────────────────────────────────────────────────────────────────────────────────

    @functools.cached_property
    def tapped(self) -> taps.TappedModel:
        """The calibrated base model with its taps: what every method sees."""
        return taps.with_temperature(taps.from_model(self.module), self.model[1])

    @functools.cached_property
    def stride_settings(self) -> StrideSettings:
        """The method's settings, taps chosen."""
        return choose_taps(self._corpus(self.train), self.settings.stride)

    def _corpus(self, examples: Examples) -> Corpus:
        """Examples as the calibrated base model sees them."""
        return Corpus(
            self.tapped, self.model[0], examples.inputs, examples.labels, progress=self.progress
        )

    @functools.cached_property
    def operators(self) -> tuple[dict[str, ops.Operators], np.ndarray]:
        """The index: basis and K steering matrices by site, and `||e_i||` of the examples."""

        def compute() -> Arrays:
            settings = self.stride_settings
            subsets = designs.membership(settings.design, self.train.ids)
            made, _, residual_N = stride.make_operators(settings, subsets, self._corpus(self.train))
            return indices.to_arrays(made) | {"residual_N": residual_N}

        arrays = self._stage("operators", ["stride_settings"], compute)
        residual_N = arrays.pop("residual_N")
        return indices.from_arrays(arrays), residual_N

    @functools.cached_property
    def measurements(self) -> np.ndarray:
        """`y_QxK`, nats."""

        def compute() -> Arrays:
            corpus = self._corpus(self.query)
            return {"y": stride.measure_all(self.stride_settings, self.operators[0], corpus)}

        return self._stage("measurements", ["operators"], compute)["y"]

    @functools.cached_property
    def recovery(self) -> lasso.Recovery:
        """Influences with their certificates."""

        def compute() -> Arrays:
            found = stride.recover(
                self.settings.stride, self.train.ids, self.operators[1], self.measurements,
                progress=self.progress,
            )  # fmt: skip
            return dataclasses.asdict(found)

        return lasso.Recovery(**self._stage("recovery", ["measurements"], compute))  # pyright: ignore[reportArgumentType]

    @property
    def influences(self) -> scipy.sparse.csr_array:
        """`[Q, N]` scores in compressed rows."""
        return stride.by_query(self.recovery, len(self.query))

    # ── evaluation ───────────────────────────────────────────────────────────────────────────────

    @functools.cached_property
    def bank(self) -> evaluation.Bank:
        """Models retrained on random subsets."""
        bank = evaluation.build_bank(
            self.module, self.train, self.query, self.settings.train, self.settings.bank,
            self.workdir / "bank", progress=self.progress, clock=time.monotonic,
        )  # fmt: skip
        self.seconds["bank"] = bank.seconds
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

        return self._stage(name, ["model"], compute)["scores"]

    def attribution(self) -> attribution.Attribution:
        """STRIDE's scores with ids and settings."""
        return attribution.Attribution(
            self.query.ids, self.train.ids, self.influences, plain(self._resolved)
        )

    @property
    def _resolved(self) -> RunSettings:
        return dataclasses.replace(self.settings, stride=self.stride_settings)

    def evaluate(self) -> dict[str, Any]:
        """Run everything and return what `summary.json` holds."""
        scores = {"stride": self.influences.toarray()}
        scores |= {name: self.baseline(name) for name in ("grad-dot", "feature-cosine", "random")}
        bank, noise = self.bank, evaluation.ceiling(self.bank)
        ours = ("operators", "measurements", "recovery")
        results = {}
        for name, values in scores.items():
            result = evaluation.lds(values, bank)
            stages = ours if name == "stride" else (name,)
            for stage in stages if name == "stride" else ():
                getattr(self, stage)  # a stage read from its file knows what it took
            results[name] = {
                "lds": result.lds,
                "lds_ci95": result.ci95,
                "seconds": sum(self.seconds[stage] for stage in stages),
            }
        return {
            "lds": results["stride"]["lds"],
            "lds_ci95": results["stride"]["lds_ci95"],
            "ceiling": noise.reliability,
            "ceiling_detail": noise,
            "methods": results,
            "stages": self.seconds,
            **self._held_out(),
            "temperature": self.model[1],
            "recovery": {
                "max_relative_gap": float(self.recovery.relative_gap_Q.max()),
                "mean_support": float(self.recovery.support_Q.mean()),
                "mean_iterations": float(self.recovery.iterations_Q.mean()),
            },
            "settings": self._resolved,
            "versions": attribution.versions(),
            "device": str(jax.devices()[0].device_kind),
            "num_train": len(self.train),
            "num_queries": len(self.query),
        }

    def _held_out(self) -> dict[str, float]:
        """The base model on the queries: share of labels it gets right, nats a label it loses."""
        logits = self.tapped(self.model[0], jnp.asarray(self.query.inputs))[0]
        labels = self.query.labels
        right = np.asarray(logits.argmax(axis=-1)) == labels
        loss = np.asarray(cross_entropy(logits, jnp.asarray(labels)))
        return {"accuracy": float(right[labels >= 0].mean()),
                "held_out_loss": float(loss[labels >= 0].mean())}  # fmt: skip

    def write(self) -> dict[str, Any]:
        """Run everything; write `attribution.parquet` and `summary.json`; return the summary.

        `settings.json`, written first, opens the run again.
        """
        write_json(self.workdir / "settings.json", plain(self.settings))
        summary = plain(self.evaluate())
        attribution.save(
            self.workdir / "attribution.parquet", self.attribution(), self.settings.top_k or None
        )
        write_json(self.workdir / "summary.json", summary)
        return summary
