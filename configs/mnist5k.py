"""STRIDE on MNIST-5k with an MLP, against 200 retrained models.

Reproduces the paper's small supervised experiment (arXiv 2606.05165, MNIST MLP: LDS .417) on the
5,000 digits that a package carries: MLP 784-128-64-10, N = 4,500, 400 queries, K = 1000, d = 10.

    python -m experiments.run --config=configs/mnist5k.py --workdir=runs/quickstart
    python -m experiments.run --config=configs/mnist5k.py:runlocal --workdir=runs/local
    python -m experiments.launch --config=configs/mnist5k.py --workdir=runs/sweep --sweep
    python -m benchmarks.leaderboard --config=configs/mnist5k.py --workdir=runs/leaderboard/mnist5k

LDS .553 or .554 [.541, .565], by the CPU, on the whole bank; a perfect predictor has .86. On two
cores fit and queries take 1.6 s after compilation, the 200 models 75 s.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = ConfigDict(
        {
            "data": {
                "name": "mnist5k",
                "train": "train",
                "calibration": "calibration",
                "query": "query",
            },
            "model": {"kind": "mlp", "widths": (128, 64)},
            "train": {
                "epochs": 20,
                "batch_size": 64,
                "optimizer": "sgd",
                "learning_rate": 0.05,
                "weight_decay": 0.0,
                "seed": 0,
            },
            "index": {
                "taps": (),
                "sites": ("logit",),
                "fit": "closed_form",
                **common.classifier_index(1000),
            },
            "read": {"measure": {"scale": 0.01}, **common.classifier_read()},
            "bank": common.bank(models_at_once=20),
            "execution": common.execution(),
            "leaderboard": common.classifier_leaderboard(20, (50, 500, 2000)),
            "top_k": 100,
            "plan": {
                "num_train": 4500,
                "num_queries": 400,
                "input_shape": (28, 28, 1),
                "num_classes": 10,
            },
        }
    )
    if not common.is_small(arg):
        return config
    return common.changed(
        config,
        **common.SMALL_CONTEST,
        **{
            "data.train": "train[:600]",
            "data.query": "query[:40]",
            "train.epochs": 4,
            "index.design.num_subsets": 200,
            "index.basis.rank": 64,
            "index.joint.steps": 20,
            "bank.num_subsets": 10,
            "bank.models_at_once": 10,
        },
    )


def sweep(add: Callable[..., None]) -> None:
    """Few subsets and many, with two designs each."""
    for num_subsets in (300, 1000):
        for seed in (0, 1):
            add(**{"index.design.num_subsets": num_subsets, "index.design.seed": seed})
