"""STRIDE on MNIST-5k with an MLP, against 200 retrained models.

Reproduces the small supervised experiment of the paper (method.md §3, MNIST MLP) on the 5,000
digits that a package carries: MLP 784-128-64-10, K = 1000 subsets, d = 10.

    python -m experiments.run --config=configs/mnist5k.py --workdir=runs/quickstart
    python -m experiments.run --config=configs/mnist5k.py:runlocal --workdir=runs/local
    python -m experiments.launch --config=configs/mnist5k.py --workdir=runs/sweep --sweep
"""

from collections.abc import Callable

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    if arg not in ("", "runlocal"):
        raise ValueError(f"unknown config argument {arg!r}: use 'runlocal' or nothing")
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
            "stride": {
                "design": {"num_subsets": 1000, "degree": 10, "seed": 0},
                "basis": {"rank": 256},
                "taps": (),
                "sites": ("logit",),
                "fit": "closed_form",
                "joint": {"steps": 60, "learning_rate": 1e-3, "stability": 10.0, "linearity": 0.0},
                "measure": {"scale": 0.01, "max_bytes": 2**28},
                "closed_form": {"damping": 2.0, "doubt": 0.005, "batch_size": 2048},
                "prior": 0.25,
                "lasso": {"lambda_fraction": 0.02, "relative_gap": 1e-3},
            },
            "bank": {"num_subsets": 100, "alpha": 0.5, "num_seeds": 2, "models_at_once": 20},
            "mesh": {"data": -1, "subset": 0, "parameters": "replicated"},
            "keep": {"seconds": 300.0},
            "leaderboard": {
                "num_subsets": 200,
                "repeats": 5,
                "ensemble": 5,
                "removal_queries": 20,
                "removal_top_k": (50, 500, 2000),
            },
            "top_k": 100,
            "plan": {
                "num_train": 4500,
                "num_queries": 400,
                "input_shape": (28, 28, 1),
                "num_classes": 10,
            },
        }
    )
    if arg == "runlocal":
        config.update_from_flattened_dict(
            {
                "data.train": "train[:600]",
                "data.query": "query[:40]",
                "train.epochs": 4,
                "stride.design.num_subsets": 200,
                "stride.basis.rank": 64,
                "stride.joint.steps": 20,
                "leaderboard.num_subsets": 8,
                "leaderboard.repeats": 1,
                "leaderboard.ensemble": 2,
                "leaderboard.removal_queries": 2,
                "leaderboard.removal_top_k": (20,),
                "bank.num_subsets": 10,
                "bank.models_at_once": 10,
            }
        )
    return config


def sweep(add: Callable[..., None]) -> None:
    """Few subsets and many, with two designs each."""
    for num_subsets in (300, 1000):
        for seed in (0, 1):
            add(**{"stride.design.num_subsets": num_subsets, "stride.design.seed": seed})
