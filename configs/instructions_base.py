"""A small GPT that has read Natural Instructions as text: what fine-tuning here starts from.

    python -m benchmarks.instructions
    python -m experiments.run --config=configs/instructions_base.py \\
        --workdir=runs/instructions_base --until=model

14,000 rows of the tasks with long answers, BPE of 2,048 tokens; GPT of depth 3 and width 96.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = ConfigDict(
        {
            "text": {
                "name": "files",
                "path": "data/instructions/base.jsonl",
                "vocab_size": 2048,
                "length": 96,
                "max_train": 9_030,  # all there are
                "num_query": 50,
                "num_calibration": 50,
            },
            "model": {
                "kind": "gpt",
                "gpt": {
                    "depth": 3,
                    "width": 96,
                    "num_heads": 2,
                    "num_kv_heads": 2,
                    "sequence_len": 96,
                    "softcap": 0.0,
                    "smear": False,
                    "backout": False,
                    "embedding_std": 0.05,
                },
            },
            "train": {
                "epochs": 3,
                "batch_size": 16,
                "optimizer": "adamw",
                "learning_rate": 4e-3,
                "warmup": 0.05,
            },
            "num_checkpoints": 1,
        }
    )
    if not common.is_small(arg):
        return config
    return common.changed(
        config,
        **{
            "text.max_train": 200,
            "text.num_query": 8,
            "text.num_calibration": 8,
            "model.gpt.depth": 1,
            "model.gpt.width": 16,
            "train.epochs": 1,
        },
    )
