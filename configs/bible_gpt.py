"""STRIDE on the King James Bible with a small GPT, against retrained language models.

KJV, byte-level BPE of 1,024 tokens, sequences of 64 tokens, 200 held-out ones as queries.

    python -m experiments.run --config=configs/bible_gpt.py --workdir=runs/bible_gpt
    python -m benchmarks.leaderboard --config=configs/bible_gpt.py \\
        --workdir=runs/leaderboard/bible_gpt
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    if arg not in ("", "runlocal"):
        raise ValueError(f"unknown config argument {arg!r}: use 'runlocal' or nothing")
    config = ConfigDict(
        {
            "text": {"name": "bible", "translations": ("kjv",), "max_train": 4096},
            "model": {
                "kind": "gpt",
                "gpt": {
                    "depth": 3,
                    "width": 64,
                    "num_heads": 4,
                    "num_kv_heads": 4,
                    "smear": False,
                    "backout": False,
                    "value_embeddings": True,
                    # One learning rate serves all parameters here: nanochat's 0.8 learns slowly.
                    "embedding_std": 0.05,
                },
            },
            "train": {
                "epochs": 4,
                "batch_size": 16,
                "optimizer": "adamw",
                "learning_rate": 8e-3,
                "warmup": 0.05,
                "seed": 0,
            },
            "stride": {
                "design": {"num_subsets": 1000, "degree": 10, "seed": 0},
                "basis": {"rank": 192},
                "taps": ("embedding", "previous", "final"),
                "output_rank": 256,
                "closed_form": {
                    "fisher": "kronecker",
                    "damping": 0.01,
                    "output_damping": 0.5,
                    "doubt": 0.0,
                },
                "measure": {"form": "first_order", "group": 4},
                "prior": 0.0,
                "lasso": {"lambda_fraction": 0.2, "relative_gap": 1e-2},
            },
            "bank": {"num_subsets": 100, "alpha": 0.5, "num_seeds": 2, "models_at_once": 1},
            "mesh": {"data": -1, "subset": 0, "parameters": "replicated"},
            "keep": {"seconds": 300.0},
            "leaderboard": {
                "num_subsets": 100,
                "repeats": 2,
                # Joint training holds every token's logits at once; the temperature is .97 here.
                "methods": (
                    "stride",
                    "stride-whole",
                    "stride-full",
                    "stride-residual",
                    "stride-k300",
                    "stride-direct",
                    "random",
                    "feature-cosine",
                    "grad-dot",
                    "grad-cos",
                    "trak",
                    "logra",
                    "ekfac",
                    "tf-idf",
                    "bm25",
                ),
                "uncalibrated": False,
                "ensemble": 0,
                "removal_queries": 0,
                "removal_top_k": (50,),
            },
        }
    )
    if arg == "runlocal":
        config.update_from_flattened_dict(
            {
                "text.max_train": 200,
                "text.num_query": 8,
                "text.num_calibration": 8,
                "text.books": ("Genesis",),
                "text.vocab_size": 300,
                "text.length": 16,
                "model.gpt.depth": 1,
                "model.gpt.width": 16,
                "model.gpt.num_heads": 2,
                "model.gpt.num_kv_heads": 2,
                "model.gpt.sequence_len": 16,
                "train.epochs": 1,
                "stride.design.num_subsets": 48,
                "stride.basis.rank": 16,
                "leaderboard.num_subsets": 4,
                "leaderboard.repeats": 1,
                "bank.num_subsets": 4,
                "bank.models_at_once": 4,
            }
        )
    return config
