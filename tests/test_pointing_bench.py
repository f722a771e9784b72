"""What the benchmarks of pointing answers count, against values by hand."""

import numpy as np
import pytest

from benchmarks import pointing
from benchmarks.pointing_figures import found, hits, ratio_interval
from benchmarks.pointing_figures import sums_agreement as agreement
from benchmarks.pointing_lists import COPIES, ORIGINALS, leaked


def test_found_and_hits_count_the_front_of_an_answer():
    true = np.array([[5.0, 4.0, 3.0, -9.0], [1.0, 2.0, 3.0, 4.0]])
    scores = np.array([[4.0, 3.0, 5.0, 9.0], [1.0, 2.0, 4.0, 3.0]])
    assert found(scores, true, 1).tolist() == [0, 0]
    assert found(scores, true, 2).tolist() == [0, 1]
    assert found(scores, true, 3).tolist() == [pytest.approx(2 / 3), 1]
    group = np.array([0, -1, 0, 1])
    assert hits(scores, group, 1).tolist() == [0, 0]
    assert hits(scores, group, 2).tolist() == [1, 1]


def test_sums_agree_as_far_as_scores_do():
    rng = np.random.default_rng(1)
    true = rng.normal(size=(3, 400))
    noise = rng.normal(size=(3, 400))
    np.testing.assert_allclose(agreement(2 * true, true), 1)
    np.testing.assert_allclose(agreement(-true, true), -1)
    # The correlation of sums is about that of the scores, here 1/√2.
    assert abs(agreement(true + noise, true, 2000).mean() - 0.5**0.5) < 0.05
    constant = np.ones((1, 400))  # all subsets have one size, so one sum
    assert agreement(constant, true[:1]).tolist() == [0]


def test_a_ratio_has_the_interval_of_its_queries():
    assert ratio_interval(0.5 * np.arange(1.0, 9), np.arange(1.0, 9)) == pytest.approx((0.5, 0.5))


def test_every_query_has_its_copies():
    group = leaked(22_000)
    assert (np.bincount(group[group >= 0]) == COPIES).all()
    assert group.max() == ORIGINALS - 1


def test_an_unknown_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--configs has 'mnist'.*mnist5k"):
        pointing.main(["unit", f"--workdir={tmp_path}", "--configs=mnist"])
