"""Loops stopped after every step and resumed, on the same devices and on others."""

import dataclasses
import time

import jax
import numpy as np
import pytest

from stride_jax import design, fitting, models
from stride_jax import operators as ops
from stride_jax.asking import measure_all
from stride_jax.frozen import freeze
from stride_jax.measure import MeasureSettings
from stride_jax.runtime import checkpoint, durable
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.keep import KeepSettings, nowhere
from stride_jax.settings import IndexSettings

SETTINGS = IndexSettings(
    design=design.Design(16, 3, kind="hash"), taps=("hidden1",), basis=ops.BasisSettings(rank=7)
)


class StopAfter(durable.StopRequest):
    """Asks to stop at the n-th question."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def __bool__(self):
        self.left -= 1
        return self.left < 0


def kept(folder, mesh, steps=10**9):
    return durable.CheckpointKeep(folder, mesh, time.monotonic, stop=StopAfter(steps))


def through_every_stop(work, folder, steps, mesh):
    """What `work(keep)` gives when it is stopped after each of its first steps in turn."""
    for _ in range(steps):
        with pytest.raises(durable.Preempted) as stopped:
            work(kept(folder, mesh, 0), mesh)
        assert stopped.value.code == durable.EXIT_CODE
    return work(kept(folder, mesh), mesh)


@pytest.mark.parametrize(
    ("fit", "kind"),
    [
        pytest.param("closed_form", "hash", marks=pytest.mark.slow),
        ("closed_form", "clusters"),
        ("joint", "hash"),
    ],
)
def test_operators_stopped_at_every_step_have_the_same_bytes(trained, tmp_path, fit, kind):
    settings = dataclasses.replace(
        SETTINGS, fit=fit, joint=ops.JointSettings(steps=4), kept=5000,
        design=design.Design(16, 3, kind=kind),
    )  # fmt: skip
    subsets = design.known_membership(settings.design, trained.train.ids)

    def work(keep, mesh):
        frozen = freeze(trained.tapped, trained.params, trained.train, settings)
        execution = Execution(mesh, keep=keep, batch_size=80)
        made = fitting.fit_operators(frozen, trained.train, subsets, execution)
        passed = made.passed
        leaves = jax.tree.leaves((made.operators["logit"].a_KxRxO, passed.kept, passed.cluster_N))
        return [np.asarray(v) for v in (*leaves, passed.residual_N, passed.norm_N)]

    mesh = meshes.make_mesh(2, 2)
    whole = work(nowhere, mesh)
    assert len(whole) == {"joint": 3, "hash": 8, "clusters": 9}[fit if fit == "joint" else kind]
    steps = 3 if fit == "closed_form" else 4  # the last one is the end itself
    for ours, theirs in zip(through_every_stop(work, tmp_path, steps, mesh), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    if fit == "joint":
        return
    # Stopped on four devices, gone on with on two: the same up to rounding.
    with pytest.raises(durable.Preempted):
        work(kept(tmp_path / "other", mesh, 1), mesh)
    other = meshes.arranged((1, 2), jax.devices())
    for ours, theirs in zip(work(kept(tmp_path / "other", other), other), whole, strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs)


def test_measurements_and_training_are_resumed_where_they_stopped(trained, tmp_path):
    mesh = meshes.make_mesh(1, 4)
    subsets = design.membership(SETTINGS.design, trained.train.ids)
    frozen = freeze(trained.tapped, trained.params, trained.train, SETTINGS)
    operators = fitting.fit_operators(frozen, trained.train, subsets, Execution(mesh)).operators

    def measured(keep, mesh):
        first_order, small = (
            MeasureSettings("first_order"),
            Execution(mesh, keep=keep, memory=32_000),
        )
        return measure_all(frozen, operators, trained.query, first_order, small)

    whole = measured(nowhere, mesh)
    again = through_every_stop(measured, tmp_path / "measure", 2, mesh)
    np.testing.assert_array_equal(again, whole)

    recipe = models.TrainSettings(epochs=12, batch_size=32, optimizer="adamw", learning_rate=1e-3)
    examples = trained.train.inputs, trained.train.labels

    def training(keep, _):
        return models.pretrain(
            trained.module, *examples, recipe, 3, execution=Execution(keep=keep)
        )[0]

    whole = training(nowhere, mesh)
    again = through_every_stop(training, tmp_path / "training", 3, mesh)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # The same steps as the bank's own form of training takes.
    forward = lambda p, x: trained.module.apply({"params": p}, x)[0]  # noqa: E731
    init_key, order_key = jax.random.split(jax.random.key(recipe.seed))
    params = models.initial_params(trained.module, init_key, trained.train.inputs)
    last = models.fit(forward, params, *examples, np.arange(400), order_key, recipe)
    for ours, theirs in zip(jax.tree.leaves(whole[-1]), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_foreign_or_torn_checkpoint_is_named(trained, tmp_path):
    mesh = meshes.make_mesh(1, 4)
    loops = kept(tmp_path, mesh, 0)
    with pytest.raises(durable.Preempted):
        loops.step("pass", 3, lambda: {"sum": np.arange(4.0)})
    assert kept(tmp_path, mesh).resume("pass", {"sum": np.zeros(4)})[0] == 3
    with pytest.raises(
        checkpoint.CheckpointError, match=r"pass can't .*'sum'\] is \(4,\) there, \(5,"
    ):
        kept(tmp_path, mesh).resume("pass", {"sum": np.zeros(5)})
    for file in (tmp_path / "pass" / "3" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"torn")
    with pytest.raises(checkpoint.CheckpointError, match="delete the folder"):
        kept(tmp_path, mesh).resume("pass", {"sum": np.zeros(4)})
    with pytest.raises(ValueError, match="seconds=-1"):
        KeepSettings(seconds=-1)
