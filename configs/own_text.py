"""Your own text: a small GPT of what `stride-jax prepare` tokenised, and STRIDE over it.

    stride-jax prepare --source=corpus/ --out=tokens --vocab_size=4096 --length=128
    python -m experiments.run --config=configs/own_text.py --workdir=runs/own
    python -m experiments.ask --workdir=runs/own --prompt="Once upon a time"

`--config.shards.folder=…` names another folder. Nothing is measured here: it depends on the text.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = ConfigDict(
        {
            "shards": {"folder": "tokens", "num_query": 50, "num_calibration": 50, "max_train": 0},
            "model": {"kind": "gpt", "gpt": {"depth": 4, "width": 128, "sequence_len": 128}},
            "train": {"epochs": 4, "batch_size": 32, "optimizer": "adamw", "learning_rate": 3e-3},
            "num_checkpoints": 1,
            "index": {
                "design": common.design(1000, "hash"), "basis": {"rank": 256},
                "taps": ("embedding", "final"), "output_rank": 256, "kept": 0,
            },
            "read": {"lasso": {"relative_gap": 1e-2}, "exact": common.exact(500, rounds=1)},
        }
    )  # fmt: skip
    if not common.is_small(arg):
        return config
    return common.changed(
        config,
        **{
            "shards.num_query": 8,
            "shards.num_calibration": 8,
            "shards.max_train": 400,
            "model.gpt.depth": 1,
            "model.gpt.width": 32,
            "train.epochs": 1,
            "index.design.num_subsets": 48,
            "index.basis.rank": 16,
            "index.output_rank": 32,
            "read.exact.budget": 50,
        },
    )
