"""Your own text: a small GPT of what `stride-jax prepare` tokenised, and STRIDE over it.

    stride-jax prepare --source=corpus/ --out=tokens --vocab_size=4096 --length=128
    python -m experiments.run --config=configs/own_text.py:tokens --workdir=runs/own
    python -m experiments.ask --workdir=runs/own --prompt="Once upon a time"

The argument is the folder of the tokens. Nothing is measured here: it depends on the text.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "tokens") -> ConfigDict:
    """The run."""
    return ConfigDict(
        {
            "shards": {"folder": arg},
            "model": {"kind": "gpt", "gpt": {"depth": 4, "width": 128, "sequence_len": 128}},
            "train": {"epochs": 4, "batch_size": 32, "optimizer": "adamw", "learning_rate": 3e-3},
            "num_checkpoints": 1,
            "index": {"taps": ("embedding", "final"), "output_rank": 256, "kept": 0},
        }
    )
