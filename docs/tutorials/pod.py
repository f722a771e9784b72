# %% [markdown]
# # A TPU pod, from plan to launch
#
# Before a pod is paid for: what will a run cost, does it fit, and what exactly will be started?
# Both answers come from the config alone, on a laptop. No pod is used on this page.

# %%
import os
import pathlib
import subprocess
import sys
import tempfile

os.chdir(tempfile.mkdtemp())


def shell(command):
    """Run a line as in a terminal, and show what it prints."""
    own = command.replace("stride-jax", f"{sys.executable} -m stride_jax", 1)
    done = subprocess.run(own, shell=True, text=True, stdout=subprocess.PIPE)
    print(done.stdout)
    assert done.returncode == 0


# %% [markdown]
# ## A config
#
# A GPT of depth 4 on a tokenised corpus of 100,000 sequences, 300 operators. `plan` holds the
# numbers that a plan needs of a corpus that is not there yet.

# %%
pathlib.Path("pod.py").write_text("""
def get_config():
    return {
        "shards": {"folder": "tokens", "num_query": 64, "num_calibration": 64},
        "model": {"kind": "gpt", "gpt": {"depth": 4, "width": 256, "sequence_len": 256}},
        "train": {"epochs": 1, "batch_size": 64, "optimizer": "adamw", "learning_rate": 3e-3},
        "num_checkpoints": 1,
        "index": {
            "design": {"num_subsets": 304, "degree": 8, "kind": "hash"},
            "taps": ("final",), "output_rank": 256, "kept": 0,
        },
        "plan": {
            "num_train": 100_000, "num_queries": 64, "input_shape": (256,), "num_classes": 4096,
        },
    }
""")

# %% [markdown]
# ## The plan
#
# The programs that the run would call are compiled for eight devices, and their memory and
# arithmetic read off. A plan that does not fit the chip ends with code 1 and names the setting to
# change. With the extra `tpu`, `--topology=v5e:16x16` compiles for real chips ([plan](../plan.md)).

# %%
shell("stride-jax plan --config=pod.py --mesh=2,4 --chip=v5e")

# %% [markdown]
# ## The launch
#
# `--dry_run` prints every command that would be run, and runs none: the code that goes along, the
# environment on the workers, the buckets that are mounted, one process per worker, and how to watch
# and stop it.

# %%
shell(
    "stride-jax launch --config=pod.py --workdir=shared --target=slurm --nodes=2 "
    "--gpus_per_node=4 --python=/opt/jax/bin/python --dry_run"
)

# %% [markdown]
# The same command without `--dry_run` starts the job; stopped or preempted, the same command
# resumes it. `--target=gcloud-tpu` and `--target=xpk` do so on Google's TPUs ([pod](../pod.md)).
