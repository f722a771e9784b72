"""A GPT of 10 M parameters on 20 million tokens of dictionaries, manuals and Bibles, and STRIDE.

    python -m benchmarks.reference_books --out=data/reference_books
    stride-jax prepare --source=data/reference_books --out=data/reference_tokens \\
        --vocab_size=11264 --length=128 --sample=32 --held_out=.005
    python -m experiments.run --config=configs/reference_books.py --workdir=runs/reference_books
    python -m experiments.ask --workdir=runs/reference_books --prompt="In the beginning"

160,000 of 209,403 sequences of 128 tokens. Eight layers of width 128, four of them with value
embeddings: lookups, so that 10.2 M parameters cost 3.0 M multiplications per token. `train.steps`
is a twelfth of an epoch and 12 minutes on two cores; one pass at the logits, K = 1000, is 50, and a
question 12 seconds. So little training leaves texts that were found by sketch alone in doubt, and
answers say so; `--sources=bm25` names better candidates (five answers in docs/lab.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = ConfigDict(
        {
            "shards": {
                "folder": "data/reference_tokens",
                "num_query": 50,
                "num_calibration": 50,
                "max_train": 160_000,
                "split": "document",
            },
            "model": {
                "kind": "gpt",
                "gpt": {
                    "depth": 8,
                    "width": 128,
                    "num_heads": 2,
                    "num_kv_heads": 2,
                    "sequence_len": 128,
                    "softcap": 0.0,
                    "smear": False,
                    "backout": False,
                    "embedding_std": 0.05,
                },
            },
            "train": {
                "epochs": 1,
                "steps": 800,
                "batch_size": 16,
                "optimizer": "adamw",
                "learning_rate": 5e-3,
                "warmup": 0.05,
            },
            "num_checkpoints": 1,
            "index": {
                "design": common.design(1000, "hash"),
                "basis": {"rank": 128},
                "taps": ("embedding", "previous", "final"),
                "output_rank": 128,
                "kept": 0,
                "closed_form": {
                    "fisher": "kronecker",
                    "damping": 0.01,
                    "output_damping": 0.5,
                    "doubt": 0.0,
                },
            },
            "read": {
                "measure": {"form": "first_order"},
                "prior": 0.0,
                "lasso": {"lambda_fraction": 0.2, "relative_gap": 1e-2},
                "exact": common.exact(500, rounds=1),
            },
            "top_k": 100,
            "execution": common.execution(seconds=120.0),
        }
    )
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
            "train.steps": 10,
            "index.design.num_subsets": 48,
            "index.basis.rank": 16,
            "index.output_rank": 32,
            "read.exact.budget": 50,
        },
    )
