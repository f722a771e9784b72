"""What `check` finds in models that are wrong on purpose, and no alarm about right ones."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stride_jax
from configs import bible_gpt, breast_cancer, digits_resnet
from stride_jax import Design, Examples, IndexSettings, check, from_function, with_temperature
from stride_jax.check_outputs import calibration, shifted_labels
from stride_jax.cli import main as command
from stride_jax.cli.check import check_run
from stride_jax.observed import Observed
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import run_settings

pytestmark = pytest.mark.filterwarnings(r"ignore:\d+ of \d+")  # examples with copies
CALM = ("ok", "note")
SMALL = IndexSettings(design=Design(num_subsets=40, degree=4, kind="hash"))


def of(trained, change):
    """The report of the trained model, changed: `(logits, inputs) -> logits`."""
    own = trained.tapped

    def run(p, x):
        logits, taps = own.forward(p, x)
        return change(logits, x), taps

    return check(from_function(run), trained.params, trained.train, SMALL)


def levels(report):
    return {one.name: one.level for one in report.findings if one.level not in CALM}


# ── what it finds ────────────────────────────────────────────────────────────────────────────────


def dropout(logits, x):
    return logits * jax.random.bernoulli(jax.random.key(0), 0.5, logits.shape)


def batch_norm(logits, x):
    return (logits - logits.mean(axis=0, keepdims=True)) / logits.std(axis=0, keepdims=True)


BROKEN = {
    "dropout": (dropout, "place in the batch", "dropout"),
    "batch norm": (batch_norm, "rest of the batch", "batch norm"),
    "probabilities": (lambda o, x: jax.nn.softmax(o), "logits", "give logits"),
    "not finite": (lambda o, x: o + jnp.inf, "finite", "float32"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_finds_what_fit_refuses(trained, name):
    change, finding, remedy = BROKEN[name]
    report = of(trained, change)
    assert report.level == "error"
    assert report[finding].level == "error"
    assert remedy in report[finding].remedy
    own = from_function(lambda p, x: (change(trained.tapped(p, x)[0], x), {"input": x}))
    with pytest.raises(ValueError, match=r"logits|outputs"):
        stride_jax.fit(own, trained.params, trained.train.inputs, trained.train.labels, SMALL)


def test_constant_output(trained):
    report = of(trained, lambda o, x: 0 * o + jnp.arange(10.0)[None])
    assert levels(report)["tells apart"] == "warning"
    assert "checkpoint" in report["tells apart"].remedy


def test_answers_that_vary_from_call_to_call(trained):
    count = iter(range(100))

    def noisy(p, x):
        logits, taps = trained.tapped.forward(p, x)
        noise = jax.pure_callback(
            lambda: np.float32(next(count)), jax.ShapeDtypeStruct((), jnp.float32)
        )
        return logits * (1 + noise), taps

    report = check(from_function(noisy), trained.params, trained.train)
    assert report["deterministic"].level == "error"


def careless(p, x):
    """A softmax without its shift, in the parameters' precision: 88.3 is 88.5 in bfloat16."""
    h = (x.reshape(len(x), -1) @ p["w"]).astype(p["w"].dtype)
    e = jnp.exp(h)
    return jnp.log(e) - jnp.log(e.sum(axis=-1, keepdims=True)), {"input": x}


def test_overflow_in_bfloat16():
    y = np.arange(40) % 3
    x = np.hstack([np.eye(3)[y], np.ones((40, 1))]).astype(np.float32)
    # Exact in bfloat16, but for the sums with the last row.
    h = 88 * np.eye(3) + 87 * np.roll(np.eye(3), 1, axis=1) + 80 * np.roll(np.eye(3), 2, axis=1)
    params = {"w": jnp.asarray(np.vstack([h, np.full((1, 3), 0.3)]), jnp.float32)}
    kept = check(from_function(careless), params, Examples(x, y))
    assert kept["finite"].level == "ok"
    assert kept["precision"].level == "note"
    assert "bfloat16 its logits are not finite" in kept["precision"].measured
    lower = {"w": params["w"].astype(jnp.bfloat16)}
    report = check(from_function(careless), lower, Examples(x.astype(jnp.bfloat16), y))
    assert report["finite"].level == "error"
    assert report["precision"].level == "error"
    assert "in float32 they are: it overflows" in report["precision"].measured


def test_rounding_in_half_precision(trained):
    """Small differences on a large offset: lost in bfloat16, which float32 keeps."""
    low = jax.tree.map(lambda v: v.astype(jnp.bfloat16), trained.params)

    def run(p, x):
        x = x.astype(jax.tree.leaves(p)[0].dtype)
        return trained.module.apply({"params": p}, x)[0] / 100 + 100, {"input": x}

    report = check(from_function(run), low, trained.train)
    assert report["precision"].level == "warning"
    assert "float32" in report["precision"].remedy


# ── labels ───────────────────────────────────────────────────────────────────────────────────────


def language(shift):
    """A model that knows its cyclic language; labels that are off by some places."""
    rng = np.random.default_rng(0)
    text = (rng.integers(0, 31, (90, 1)) + np.arange(20)[None] * 3) % 31
    inputs = text[:, 4:12].astype(np.int32)
    labels = text[:, 5 + shift : 13 + shift].astype(np.int32)
    params = 5 * np.eye(31, dtype=np.float32)[(np.arange(31) + 3) % 31]
    tapped = from_function(
        lambda p, x: (jnp.take(p, x, axis=0), {"one": jax.nn.one_hot(x, 31, dtype=jnp.float32)})
    )
    few = IndexSettings(design=Design(num_subsets=10, degree=4))
    return tapped, jnp.asarray(params), Examples(inputs, labels), few


def test_labels_in_place():
    report = check(*language(0))
    assert report["shift of the labels"].level == "ok"
    assert not levels(report)


@pytest.mark.parametrize(("shift", "way"), [(-1, "inputs[:, 1:]"), (1, "labels[:, 1:]")])
def test_labels_off_by_one(shift, way):
    report = check(*language(shift))
    assert report.level == "error"
    assert report["shift of the labels"].level == "error"
    assert way in report["shift of the labels"].remedy
    assert report["loss"].level == "warning"


def test_labels_that_are_the_inputs_of_a_model_that_learnt_nothing():
    tapped, params, *others = language(-1)
    report = check(tapped, 0.01 * params, *others)
    assert report["shift of the labels"].level == "warning"
    assert "input at their place" in report["shift of the labels"].measured


def test_shift_skips_what_does_not_count():
    """Only places where both labels count are compared, by a loop over them."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 6, 5)).astype(np.float32)
    labels = rng.integers(0, 5, (4, 6))
    weights = rng.integers(0, 2, (4, 6)).astype(np.float32)
    own = Observed({}, *(jnp.asarray(v) for v in (logits, labels, weights)))
    (one,) = shifted_labels(own, np.zeros((4, 6, 2)))
    log_p = np.asarray(jax.nn.log_softmax(logits.astype(np.float64)))
    falls = []
    for places in (1, -1):
        pairs = [
            (-log_p[i, t, labels[i, t]], -log_p[i, t, labels[i, t + places]])
            for i in range(4) for t in range(6)
            if 0 <= t + places < 6 and weights[i, t] and weights[i, t + places]
        ]  # fmt: skip
        falls.append(np.mean(pairs, axis=0))
    given, other = max(falls, key=lambda v: v[0] - v[1])
    assert f"{given:.3f} nats, {other:.3f} with" in one.measured


def test_labels_of_another_order(trained):
    train = Examples(trained.train.inputs, (trained.train.labels + 1) % 10)
    report = check(trained.tapped, trained.params, train)
    assert levels(report)["loss"] == "warning"


def test_a_model_that_was_stopped_early(trained):
    """One whose examples still agree on what to learn: here three labels of five are new to it."""
    y = np.asarray(trained.train.labels)
    half = Examples(trained.train.inputs, np.where(np.arange(len(y)) % 5 < 3, (y + 1) % 10, y))
    report = check(trained.tapped, trained.params, half)
    assert report["training"].level == "note"
    assert "a weight decay of 25.6 and a doubt of 0.5" in report["training"].measured
    assert "training" not in levels(check(trained.tapped, trained.params, trained.train))


def test_labels_out_of_range_or_balance(trained):
    high = Examples(trained.train.inputs, trained.train.labels + 1)
    report = check(trained.tapped, trained.params, high)
    assert [one.level for one in report.findings] == ["error"]
    assert "labels run up to 10" in report["inputs and labels"].measured
    alone = check(trained.tapped, trained.params, Examples(trained.train.inputs, [3] * 400))
    assert alone["labels"].level == "warning"
    assert "1 of 10 classes" in alone["labels"].measured


# ── certainty ────────────────────────────────────────────────────────────────────────────────────


def test_saturation_and_calibration(trained, digits):
    sure = with_temperature(trained.tapped, 0.1)
    report = check(sure, trained.params, trained.train, SMALL, held_out=digits["calibration"])
    assert report["saturation"].level == "warning"
    assert report["calibration"].level == "warning"
    said = float(report["calibration"].remedy.split("by ")[1].split(":")[0])
    again = check(
        with_temperature(sure, said), trained.params, trained.train, SMALL,
        held_out=digits["calibration"],
    )  # fmt: skip
    assert not levels(again)


def test_calibration_error_by_hand():
    """Four predictions of .8, three of them right; six of .5 over two classes, three right."""
    p = np.array([[0.8, 0.2]] * 4 + [[0.5001, 0.4999]] * 6)
    labels = np.array([0, 0, 0, 1, 0, 0, 0, 1, 1, 1])
    one = calibration(np.log(p), labels, held_out=True)
    assert f"calibration error {(4 * 0.05 + 6 * 0.0001) / 10:.3f}" in one.measured


# ── the index, and the report ────────────────────────────────────────────────────────────────────


def test_taps_and_cost(trained):
    report = check(trained.tapped, trained.params, trained.train, SMALL)
    index = stride_jax.fit(
        trained.tapped, trained.params, trained.train.inputs, trained.train.labels, SMALL
    )
    assert f"read: {index.settings.taps[0]} (" in report["taps"].measured
    stored = sum(v.nbytes for v in jax.tree.leaves((index.fisher, index.operators)))
    stored -= sum(v.nbytes for v in jax.tree.leaves(index.operators["dense0+logit"].basis))
    assert f"index of {stored / 2**20:.0f} MiB" in report["cost"].measured
    named = dataclasses.replace(SMALL, taps=("nothing",))
    report = check(trained.tapped, trained.params, trained.train, named)
    assert report["taps"].level == "error"
    assert "unknown tap 'nothing'" in report["taps"].measured


def test_design_too_large(trained):
    """400 examples leave some of 1,000 subsets empty, which `fit` refuses too."""
    report = check(trained.tapped, trained.params, trained.train)
    assert levels(report) == {"design": "error"}
    assert "num_subsets <= 400" in report["design"].remedy


def test_no_taps(trained):
    own = from_function(lambda p, x: (trained.tapped(p, x)[0], {}))
    report = check(own, trained.params, trained.train)
    assert report["taps"].level == "error"


def test_report_says_the_same_in_words_and_in_json(trained):
    report = of(trained, dropout)
    told = json.loads(json.dumps(report.to_dict()))
    assert told["level"] == "error"
    assert [one["name"] for one in told["findings"]] == [one.name for one in report.findings]
    text = " ".join(str(report).split())
    for one in told["findings"]:
        assert " ".join(one["measured"].split()) in text
    with pytest.raises(KeyError, match="nothing"):
        report["nothing"]


# ── no false alarm ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(breast_cancer, marks=pytest.mark.slow),  # test_command reads it too
        pytest.param(digits_resnet, marks=pytest.mark.slow),
        pytest.param(bible_gpt, marks=pytest.mark.slow),
    ],
)
def test_no_false_alarm_on_configs(config, tmp_path):
    settings = run_settings(config.get_config("runlocal").to_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # duplicates among real digits
        report = check_run(Run(settings, tmp_path))
    assert not levels(report), str(report)
    assert {"finite", "calibration", "taps", "cost"} <= {one.name for one in report.findings}


def test_command(tmp_path, capsys):
    words = ["--config=configs/breast_cancer.py:runlocal", f"--workdir={tmp_path}"]
    assert command.main(["check", *words]) == 0
    assert "moves the logits most" in " ".join(capsys.readouterr().out.split())
    assert (
        command.main(["check", *words, "--json", "--config.index.taps=('nothing',)", "--reuse"])
        == 2
    )
    told = json.loads(capsys.readouterr().out)
    assert told["level"] == "error"
