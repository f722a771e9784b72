# %% [markdown]
# # Your own language model, with your own text
#
# From a folder of text files to a small language model that says which passages made it write what
# it writes. The same commands serve a corpus of any size. Here the text is three books of a Bible
# that a Python package carries (`stride-jax[text]`), so that nothing is downloaded; a folder of
# your own text files does as well.

# %%
import os
import pathlib
import subprocess
import sys
import tempfile

from stride_jax.data.bible import packaged_verses

os.chdir(tempfile.mkdtemp())
pathlib.Path("corpus").mkdir()
for book in ("Ruth", "Jonah", "Mark"):
    verses = [verse for verse in packaged_verses("kjv") if verse.book == book]
    pathlib.Path(f"corpus/{book}.txt").write_text("\n".join(verse.text for verse in verses))
print({path.name: path.stat().st_size for path in sorted(pathlib.Path("corpus").iterdir())})

# %% [markdown]
# ## Tokenise
#
# `stride-jax prepare` reads text, JSON lines, Parquet and array_record, trains a tokenizer unless
# it is given one, and writes a folder that any number of runs read.


# %%


def shell(command):
    """Run a line as in a terminal, and show what it prints."""
    own = command.replace("stride-jax", f"{sys.executable} -m stride_jax", 1)
    done = subprocess.run(own, shell=True, text=True, stdout=subprocess.PIPE)
    print(done.stdout)
    assert done.returncode == 0


shell("stride-jax prepare --source=corpus --out=tokens --vocab_size=512 --length=32")

# %% [markdown]
# ## A config
#
# A config is a Python file with `get_config()`: the data, the model, how it is trained, and what
# the index keeps. Everything that it does not mention has a default; `stride-jax run --help` lists
# all of it.

# %%
pathlib.Path("own.py").write_text("""
def get_config():
    return {
        "shards": {"folder": "tokens", "num_query": 20, "num_calibration": 20},
        "model": {"kind": "gpt", "gpt": {"depth": 2, "width": 64, "sequence_len": 32}},
        "train": {"epochs": 12, "batch_size": 16, "optimizer": "adamw", "learning_rate": 4e-3},
        "num_checkpoints": 1,
        "index": {
            "design": {"num_subsets": 200, "degree": 10},
            "taps": ("embedding", "final"),
            "output_rank": 128,
        },
    }
""")

# %% [markdown]
# ## Train, and make the index
#
# Each stage is a file in the workdir: stopped at any point, the same command goes on.

# %%
shell("stride-jax run --config=own.py --workdir=runs/own")

# %% [markdown]
# ## Ask
#
# The model goes on from a prompt, and the passages are found that made it do so. Scores are of the
# completion alone. The certificate at the end says what the answer is worth.

# %%
shell('stride-jax ask --workdir=runs/own --prompt="And Jesus said unto" --completion=" him"')

# %% [markdown]
# Why this and not that? `--against` explains the difference between two completions.

# %%
shell(
    'stride-jax ask --workdir=runs/own --prompt="And Jesus said unto" --completion=" him" '
    '--against=" them" --top=2'
)

# %% [markdown]
# ## Look at it
#
# `stride-jax report` writes one HTML file with all queries, their proponents and opponents and each
# token's share; `stride-jax serve --workdir=…` opens the same page with a box for new prompts.

# %%
shell("stride-jax report --workdir=runs/own")

# %% [markdown]
# ## Every answer is also data
#
# `--json` prints it in a line; a Python program asks the run itself.

# %%
from stride_jax.applications.answer import ask
from stride_jax.run.opened import open_run

answer = ask(open_run(pathlib.Path("runs/own")), "And Jesus said unto", " him")
for passage in answer.proponents:
    print(f"{passage.score:+.4f}  {''.join(passage.pieces)!r}")
print(answer.verdict)

# %% [markdown]
# Next: [a text of any size](../own_text.md), [weights that exist already](../own_model.md),
# [fine-tuning](../fine_tuning.md).
