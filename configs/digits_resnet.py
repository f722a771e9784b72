"""STRIDE on scikit-learn's 8x8 digits with a small ResNet-9, against retrained models.

    python -m experiments.run --config=configs/digits_resnet.py --workdir=runs/digits_resnet
    python -m benchmarks.leaderboard --config=configs/digits_resnet.py \\
        --workdir=runs/leaderboard/digits_resnet
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    if arg not in ("", "runlocal"):
        raise ValueError(f"unknown config argument {arg!r}: use 'runlocal' or nothing")
    config = ConfigDict(
        {
            "data": {"name": "digits8x8", "train": "train", "query": "query"},
            "model": {"kind": "resnet9", "width": 4},
            "train": {
                "epochs": 12,
                "batch_size": 64,
                "optimizer": "adamw",
                "learning_rate": 0.01,
                "seed": 0,
            },
            "stride": {
                "design": {"num_subsets": 1000, "degree": 10, "seed": 0},
                "basis": {"rank": 256},
                "joint": {"steps": 60, "learning_rate": 1e-3, "stability": 10.0, "linearity": 0.0},
                "closed_form": {"damping": 2.0, "doubt": 0.005},
                "prior": 0.25,
                "lasso": {"lambda_fraction": 0.02, "relative_gap": 1e-3},
            },
            "bank": {"num_subsets": 100, "alpha": 0.5, "num_seeds": 2, "models_at_once": 10},
            "mesh": {"data": -1, "subset": 0, "parameters": "replicated"},
            "keep": {"seconds": 300.0},
            "leaderboard": {
                "num_subsets": 200,
                "repeats": 5,
                "ensemble": 5,
                "removal_queries": 15,
                "removal_top_k": (20, 100),
            },
        }
    )
    if arg == "runlocal":
        config.update_from_flattened_dict(
            {
                "data.train": "train[:200]",
                "data.query": "query[:30]",
                "train.epochs": 2,
                "stride.design.num_subsets": 100,
                "stride.basis.rank": 64,
                "stride.joint.steps": 10,
                "leaderboard.num_subsets": 8,
                "leaderboard.repeats": 1,
                "leaderboard.ensemble": 2,
                "leaderboard.removal_queries": 2,
                "leaderboard.removal_top_k": (20,),
                "bank.num_subsets": 4,
                "bank.models_at_once": 4,
            }
        )
    return config
