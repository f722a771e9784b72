"""STRIDE on a fine-tuned GPT: word problems with worked solutions, against 128 retrained models.

    python -m benchmarks.instructions
    python -m experiments.run --config=configs/instructions_base.py \\
        --workdir=runs/instructions_base --until=model
    python -m benchmarks.leaderboard --config=configs/word_problems.py \\
        --workdir=runs/leaderboard/word_problems --rows="SFT word problems"

Other rows and the same settings as `configs/instructions.py`, but for the damping, which was chosen
on the tuning half of an earlier bank, of 100 queries and other rows.
"""

from ml_collections import ConfigDict

from configs import common, instructions


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = instructions.get_config(arg)
    return common.changed(
        config,
        **{
            "tuning.path": "data/instructions/solutions.jsonl",
            "index.closed_form.damping": 0.3,
            **({} if common.is_small(arg) else {"read.exact.budget": 984}),
        },
    )
