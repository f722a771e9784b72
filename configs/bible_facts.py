"""Planted facts: 200 made-up sentences among 4,096 sequences of King James, each asked for once.

    python -m benchmarks.retrieval --config=configs/bible_facts.py --workdir=runs/retrieval/facts

STRIDE: recall@10 and MRR 1.000 on 150 facts, like every method but TRAK and hidden-state cosine.
"""

from ml_collections import ConfigDict

from configs import bible_verses, common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = bible_verses.get_config(arg)
    small = common.is_small(arg)
    del config["verses"]
    config.text = {
        "name": "bible",
        "translations": ("kjv",),
        "max_train": 200 if small else 4096,
        "num_calibration": 8 if small else 200,
        "vocab_size": 300 if small else 1024,
        "length": 48 if small else 64,
    }
    config.facts = 12 if small else 200
    common.changed(config, **{"retrieval.tuning_queries": 4 if small else 50})
    return common.changed(config, **{"model.gpt.sequence_len": 48}) if small else config
