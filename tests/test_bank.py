"""The bank: subsets, durability, workers, and which banks may be mixed."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from stride_jax import evaluation
from stride_jax.data import Examples
from stride_jax.evaluation.retrain import model_keys
from stride_jax.models import MLP, TrainSettings, fit, initial_params
from stride_jax.objectives import margin

SETTINGS = evaluation.BankSettings(num_subsets=5, num_seeds=2, models_at_once=4)
GROUPS = evaluation.BankSettings(kind="groups", num_subsets=7, num_seeds=1, models_at_once=4)
RECIPE = TrainSettings(epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def small(digits):
    cut = lambda e, n: Examples(e.inputs[:n], e.labels[:n], e.ids[:n])  # noqa: E731
    return evaluation.Retraining(
        MLP(10, (8,)), cut(digits["train"], 60), cut(digits["query"], 20), RECIPE
    )


def built(*args):
    """The bank, trained where it is not there yet."""
    evaluation.fill_bank(*args)
    return evaluation.read_bank(*args)


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """An uninterrupted bank and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return built(small, SETTINGS, folder), folder


def same_outputs(a, b):
    np.testing.assert_array_equal(a.members_MxS, b.members_MxS)
    np.testing.assert_array_equal(a.losses_MxExQ, b.losses_MxExQ)
    np.testing.assert_array_equal(a.margins_MxExQ, b.margins_MxExQ)


# ── durability ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_bank_killed_ten_times_has_the_bytes_of_one_that_was_not(tmp_path):
    script = pathlib.Path(__file__).with_name("kill_bank.py")
    run = subprocess.run(
        [sys.executable, script, tmp_path, "10", "0"], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    counts = [int(n) for n in re.findall(r"killed with (\d+) shards", run.stdout)]
    assert len(counts) == 10
    assert counts[-1] < 160, "every kill found work to do"
    shards = {name: sorted((tmp_path / name).glob("*/models-*")) for name in ("whole", "killed")}
    assert len(shards["whole"]) == len(shards["killed"]) == 160
    for one, other in zip(*shards.values(), strict=True):
        assert one.name == other.name
        assert one.read_bytes() == other.read_bytes()


def test_a_missing_shard_is_redone_and_a_corrupt_one_named(small, whole, tmp_path):
    key = evaluation.bank_key(whole[0].origin, SETTINGS)
    evaluation.fill_bank(small, SETTINGS, tmp_path)
    shards = sorted((tmp_path / key).glob("models-*.npz"))
    assert [s.name for s in shards] == [
        f"models-0000{i}-000{min(i + 4, 10):02d}.npz" for i in (0, 4, 8)
    ]
    untouched = shards[0].stat().st_mtime_ns
    shards[1].unlink()  # killed before this one
    shards[2].write_bytes(shards[2].read_bytes()[:100])  # a torn disk
    with pytest.warns(UserWarning, match=f"corrupt shard {shards[2]} .*models-00008-00010.corrupt"):
        same_outputs(built(small, SETTINGS, tmp_path), whole[0])
    assert shards[0].stat().st_mtime_ns == untouched
    assert shards[2].with_suffix(".corrupt").exists()
    np.savez(shards[0], losses=np.zeros((4, 20)), margins=np.zeros((4, 19)), seconds=0.0)
    with (
        pytest.warns(UserWarning, match="not of 4 models and 20 queries"),
        pytest.raises(evaluation.IncompleteBankError, match="1 of 3 shards are missing"),
    ):
        evaluation.read_bank(small, SETTINGS, tmp_path)


def test_workers_by_range_equal_one_worker(small, whole, tmp_path):
    recipe = (small, SETTINGS, tmp_path)
    evaluation.fill_bank(*recipe, worker=(1, 2))
    with pytest.raises(
        evaluation.IncompleteBankError,
        match=r"1 of 3 shards are missing in .*: models-00000-00004.npz; run fill_bank",
    ):
        evaluation.read_bank(*recipe)
    evaluation.fill_bank(*recipe, worker=(0, 2))
    same_outputs(evaluation.read_bank(*recipe), whole[0])
    with pytest.raises(ValueError, match=r"worker=\(2, 2\): use \(i, n\)"):
        evaluation.fill_bank(*recipe, worker=(2, 2))


# ── contents ─────────────────────────────────────────────────────────────────────────────────────


def test_a_bank_is_keyed_by_all_that_matters(small):
    def key(settings=SETTINGS, **changes):
        return evaluation.bank_key(evaluation.bank_origin(small._replace(**changes)), settings)

    train = small.train
    flipped = Examples(train.inputs, train.labels[::-1], train.ids)
    assert key() == key(settings=dataclasses.replace(SETTINGS, models_at_once=9))
    others = [
        key(module=MLP(10, (9,))),
        key(train=flipped),
        key(training=dataclasses.replace(RECIPE, epochs=3)),
        key(settings=dataclasses.replace(SETTINGS, alpha=0.4)),
        key(settings=dataclasses.replace(SETTINGS, kind="groups")),
    ]
    assert len({key(), *others}) == 6


def test_the_bank_holds_the_outputs_of_models_trained_on_its_subsets(small, whole, tmp_path):
    bank = whole[0]
    alone = dataclasses.replace(SETTINGS, models_at_once=1)
    again = built(small, alone, tmp_path)
    np.testing.assert_allclose(bank.losses_MxExQ, again.losses_MxExQ, rtol=1e-3, atol=1e-4)
    assert (bank.losses_MxExQ[:, 0] != bank.losses_MxExQ[:, 1]).any(), "seeds differ"
    # The margin is the log odds of p = exp(−loss).
    odds = scipy.special.logit(np.exp(-bank.losses_MxExQ.astype(np.float64)))
    np.testing.assert_allclose(bank.margins_MxExQ, odds, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(bank.target_QxM, -bank.losses_MxExQ.mean(axis=1).T)
    np.testing.assert_array_equal(bank.target("margin"), bank.margins_MxExQ.mean(axis=1).T)
    with pytest.raises(ValueError, match="target='odds': use 'loss' or 'margin'"):
        bank.target("odds")


def test_margin_survives_a_certain_model():
    logits = jnp.array([[200.0, 0.0, 0.0]])
    assert float(margin(logits, jnp.array([0]))[0]) == pytest.approx(200 - np.log(2))


def test_random_subsets_extend_and_groups_partition():
    subsets = evaluation.draw_subsets(60, SETTINGS)
    assert all(len(set(row)) == 30 for row in subsets)
    more = evaluation.draw_subsets(60, dataclasses.replace(SETTINGS, num_subsets=8))
    np.testing.assert_array_equal(more[:5], subsets)
    members = evaluation.draw_subsets(60, GROUPS)  # 7 groups of 8, 4 examples always in
    assert members.shape == (7, 52)
    left_out = [set(range(60)) - set(row) for row in members]
    assert len(set.union(*left_out)) == 56, "disjoint"


def test_a_bank_of_groups_is_trained_on_everything_but_one(small, tmp_path):
    bank = built(small, GROUPS, tmp_path)
    assert bank.losses_MxExQ.shape == (7, 1, 20)
    assert bank.alpha == pytest.approx(52 / 60)
    module, train, query = small[:3]
    forward = lambda p, x: module.apply({"params": p}, x)[0]  # noqa: E731
    init_key, order_key = jax.random.split(model_keys(0, np.array([6]), np.array([0]))[0])
    params = initial_params(module, init_key, jnp.asarray(train.inputs))
    rows = bank.members_MxS[6]
    params = fit(forward, params, train.inputs, train.labels, rows, order_key, RECIPE)
    log_p = np.asarray(jax.nn.log_softmax(forward(params, jnp.asarray(query.inputs))))
    expected = -log_p[np.arange(20), query.labels]
    np.testing.assert_allclose(bank.losses_MxExQ[6, 0], expected, rtol=1e-3, atol=1e-4)


# ── mixing ───────────────────────────────────────────────────────────────────────────────────────


def test_banks_of_two_seeds_merge_and_halve(small, whole, tmp_path):
    other_seed = dataclasses.replace(SETTINGS, num_subsets=3, seed=1)
    other = built(small, other_seed, tmp_path)
    merged = evaluation.merge([whole[0], other])
    assert merged.settings.num_subsets == 8
    same_outputs(merged.take(range(5)), whole[0])
    same_outputs(merged.take([5, 6, 7]), other)
    first, second = merged.halves()
    assert len(first.members_MxS) == len(second.members_MxS) == 4
    same_outputs(evaluation.merge([first, second]), merged)
    with pytest.raises(ValueError, match=r"5 of 13 subsets are in these banks twice \(seeds \[0"):
        evaluation.merge([merged, whole[0]])
    with pytest.raises(ValueError, match="a bank of 1 subsets can't be halved"):
        other.take([0]).halves()


def test_banks_that_differ_are_not_mixed(whole):
    bank = whole[0]
    origin = bank.origin
    slower = dataclasses.replace(RECIPE, learning_rate=0.01)
    cases = {
        "alpha: 0.5 and 0.3": {"settings": dataclasses.replace(SETTINGS, alpha=0.3)},
        "num_seeds: 2 and 3": {"settings": dataclasses.replace(SETTINGS, num_seeds=3)},
        "kind: 'random' and 'groups'": {"settings": GROUPS},
        "training.learning_rate: 0.05 and 0.01": {
            "origin": dataclasses.replace(origin, training=slower)
        },
        f"train_data: '{origin.train_data}' and 'x'; query_data: '{origin.query_data}' and 'y'": {
            "origin": dataclasses.replace(origin, train_data="x", query_data="y")
        },
        "model: 'MLP": {"origin": dataclasses.replace(origin, model="other")},
    }
    for message, change in cases.items():
        other = dataclasses.replace(bank, **change)
        with pytest.raises(
            ValueError, match=re.escape("bank 0 and bank 1 can't be mixed")
        ) as error:
            evaluation.merge([bank, other])
        assert message in str(error.value)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"alpha=1.0 must lie strictly"):
        evaluation.BankSettings(alpha=1.0)
    with pytest.raises(ValueError, match="gives subsets of 0"):
        evaluation.draw_subsets(3, evaluation.BankSettings(alpha=0.1))
    with pytest.raises(ValueError, match="kind='pairs': use 'random' or 'groups'"):
        evaluation.BankSettings(kind="pairs")
    with pytest.raises(ValueError, match=r"alpha=0.3 means nothing to kind='groups'"):
        evaluation.BankSettings(kind="groups", alpha=0.3)
    with pytest.raises(ValueError, match="num_train=3 examples can't be cut into num_subsets=7"):
        evaluation.draw_subsets(3, GROUPS)
