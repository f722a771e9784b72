# %% [markdown]
# # Did the benchmark leak?
#
# A model that has seen the test does well on it. Here a small language model is fine-tuned on rows
# into which four problems of a benchmark leaked, two of them in twelve copies; the audit says which
# ones, which rows they are, and whether the model learnt from them or merely had them among its
# data.

# %%
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from stride_jax.data.bible import packaged_verses

os.chdir(tempfile.mkdtemp())


def shell(command):
    """Run a line as in a terminal, and show what it prints."""
    own = command.replace("stride-jax", f"{sys.executable} -m stride_jax", 1)
    done = subprocess.run(own, shell=True, text=True, stdout=subprocess.PIPE)
    print(done.stdout)
    assert done.returncode == 0


# %% [markdown]
# ## A training set with leaks
#
# Rows are prompts with completions: the beginning of a psalm's verse, and how it goes on. Sixteen
# of them are the benchmark; four of these leak.

# %%
rows = []
for verse in packaged_verses("kjv"):
    words = verse.text.split()
    if verse.book == "Psalms" and len(words) >= 12:
        prompt, completion = " ".join(words[:6]), " " + " ".join(words[6:12])
        name = f"{verse.chapter}:{verse.verse}"
        rows.append({"id": name, "prompt": prompt, "completion": completion})
leaked = [
    row | {"id": f"leak {i}, copy {copy}"}
    for i, row in enumerate(rows[:4])
    for copy in range(12 if i % 2 else 1)
]
files = {"train": rows[100:260] + leaked, "benchmark": rows[:16], "clean": rows[40:90]}
for name, own in files.items():
    pathlib.Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
print(f"{len(files['train'])} training rows, {len(leaked)} of them from the benchmark")

# %% [markdown]
# ## The model
#
# A config of [fine-tuning](../fine_tuning.md). Usually it starts from weights (`model.init_from`);
# this one learns from nothing, in seconds.

# %%
pathlib.Path("tune.py").write_text("""
def get_config():
    return {
        "tuning": {
            "path": "train.jsonl", "length": 48, "vocab_size": 400, "num_query": 2,
            "num_calibration": 2,
        },
        "model": {"kind": "gpt", "gpt": {"depth": 1, "width": 64, "sequence_len": 48}},
        "train": {"epochs": 12, "batch_size": 8, "optimizer": "adamw", "learning_rate": 5e-3},
        "num_checkpoints": 1,
        "index": {"taps": ("final",), "design": {"num_subsets": 60}, "output_rank": 64},
        "read": {"exact": {"budget": 100}},
    }
""")
shell("stride-jax run --config=tune.py --workdir=runs/tuned --until=operators")

# %% [markdown]
# ## The audit
#
# Clean problems, which can't have leaked, say what chance does: the stated rate is how often one of
# them would be flagged.

# %%
shell(
    "stride-jax audit --workdir=runs/tuned --benchmark=benchmark.jsonl --clean=clean.jsonl "
    "--rate=.02 --out=audit.html"
)

# %% [markdown]
# The page `audit.html` is for reading; beside it lies `audit.json`, with every problem and the rows
# that were found for it.

# %%
told = json.loads(pathlib.Path("audit.json").read_text())
for problem in told["problems"]:
    if problem["verdict"] != "clean":
        copies = sum(group["copies"] for group in problem["replicas"])
        name, verdict = problem["id"], problem["verdict"]
        print(f"{name:>6}  {verdict:8} p {problem['p']:.3f}  rows found: {copies}")
flagged = {problem["id"] for problem in told["problems"] if problem["verdict"] != "clean"}
assert {row["id"] for row in rows[:4]} <= flagged, "all four leaks are found"
assert len(flagged) <= 6

# %% [markdown]
# Next: [how an audit decides](../audit.md), and [what was measured](../applications.md).
