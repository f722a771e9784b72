"""STRIDE on the Wisconsin breast cancer table with a small MLP, against retrained models.

    python -m experiments.run --config=configs/breast_cancer.py --workdir=runs/breast_cancer
    python -m benchmarks.leaderboard --config=configs/breast_cancer.py \\
        --workdir=runs/leaderboard/breast_cancer
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    if arg not in ("", "runlocal"):
        raise ValueError(f"unknown config argument {arg!r}: use 'runlocal' or nothing")
    config = ConfigDict(
        {
            "data": {"name": "breast_cancer", "train": "train", "query": "query"},
            "model": {"kind": "mlp", "widths": (64, 32)},
            "train": {
                "epochs": 30,
                "batch_size": 32,
                "optimizer": "sgd",
                "learning_rate": 0.05,
                "seed": 0,
            },
            "stride": {
                "design": {"num_subsets": 400, "degree": 10, "seed": 0},
                "basis": {"rank": 256},
                "joint": {"steps": 60, "learning_rate": 1e-3, "stability": 10.0, "linearity": 0.0},
                "closed_form": {"damping": 2.0, "doubt": 0.005},
                "prior": 0.25,
                "lasso": {"lambda_fraction": 0.02, "relative_gap": 1e-3},
            },
            "bank": {"num_subsets": 100, "alpha": 0.5, "num_seeds": 2, "models_at_once": 50},
            "mesh": {"data": -1, "subset": 0, "parameters": "replicated"},
            "keep": {"seconds": 300.0},
            "leaderboard": {
                "num_subsets": 200,
                "repeats": 5,
                "ensemble": 5,
                "removal_queries": 20,
                "removal_top_k": (10, 50),
            },
        }
    )
    if arg == "runlocal":
        config.update_from_flattened_dict(
            {
                "train.epochs": 3,
                "stride.design.num_subsets": 100,
                "stride.basis.rank": 16,
                "stride.joint.steps": 10,
                "leaderboard.num_subsets": 8,
                "leaderboard.repeats": 1,
                "leaderboard.ensemble": 2,
                "leaderboard.removal_queries": 2,
                "leaderboard.removal_top_k": (20,),
                "bank.num_subsets": 10,
                "bank.models_at_once": 20,
            }
        )
    return config
