"""The text of a job for each target: pure functions of the settings."""

import shlex

from stride_jax.run.launching import cloud
from stride_jax.run.launching.settings import SAVING_SECONDS, LaunchSettings
from stride_jax.run.launching.shell import quoted, wrapped

_HEAD = 4  # words before the flags: python -m stride_jax run


def local_commands(settings: LaunchSettings, port: int) -> list[list[str]]:
    """One command per process; several meet on the loopback at `port`."""
    if settings.processes == 1:
        return [settings.command()]
    return [
        settings.command(
            *("--multihost", f"--coordinator=127.0.0.1:{port}"),
            *(f"--num_processes={settings.processes}", f"--process_id={i}"),
        )
        for i in range(settings.processes)
    ]


def render(settings: LaunchSettings, *others: LaunchSettings) -> str:
    """The job as a bash script: what is run or submitted, and what `--dry_run` prints.

    Args:
      settings: settings of the job.
      *others: jobs that follow it on the same TPU (`gcloud-tpu` alone).
    """
    if settings.target == "local":
        return _local(settings) if settings.processes > 1 else _local_single(settings)
    if settings.target == "slurm":
        return _slurm(settings)
    if settings.target == "gcloud-tpu":
        return cloud.gcloud(settings, *others)
    return cloud.xpk(settings)


def following(settings: LaunchSettings) -> str:
    """How to watch a job that was submitted, and how to stop it: a comment of a few lines."""
    if settings.target == "local":
        return f"# watch: tail -F {quoted(settings.workdir)}/logs/process-*.log\n# stop: Ctrl-C"
    if settings.target != "slurm":
        return cloud.following(settings)
    name, logs = quoted(settings.job_name), f"{settings.workdir}/logs"
    return (
        f"# watch: squeue --me --name={name}; tail -F {logs}/slurm-<job>.log\n"
        f"# stop: scancel --me --name={name}"
    )


def _local_single(settings: LaunchSettings) -> str:
    logs = quoted(f"{settings.workdir}/logs")
    run = wrapped(settings.command(), _HEAD, raw=[f"> >(tee -a {logs}/process-0.log) 2>&1"])
    return f"#!/usr/bin/env bash\nset -euo pipefail\nmkdir -p {logs}\nexec {run}\n"


def _local(settings: LaunchSettings) -> str:
    logs = quoted(f"{settings.workdir}/logs")
    meeting = [
        *("--multihost", '--coordinator="127.0.0.1:$PORT"'),
        *(f"--num_processes={settings.processes}", '--process_id="$i"'),
        '> >(if [ "$i" -eq 0 ]; then tee -a "$log"; else cat >>"$log"; fi) 2>&1 &',
    ]
    free_port = 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'
    return f"""\
#!/usr/bin/env bash
# What --target=local does; it also kills what does not stop in time.
set -euo pipefail
mkdir -p {logs}
PORT=$({shlex.join([settings.interpreter, "-c", free_port])})
pids=() result=0
stop() {{ kill -TERM "${{pids[@]}}" 2>/dev/null || true; }}
trap stop TERM INT HUP
for i in {" ".join(map(str, range(settings.processes)))}; do
  log={logs}/process-$i.log
  {wrapped(settings.command(), _HEAD, "  ", meeting)}
  pids+=("$!")
done
# The first that ends badly stops the others, and gives its code. By their ids: `wait -n` loses a
# process that ends before it is called.
while [ "${{#pids[@]}}" -gt 0 ]; do
  alive=()
  for pid in "${{pids[@]}}"; do
    if kill -0 "$pid" 2>/dev/null; then
      alive+=("$pid")
      continue
    fi
    code=0
    wait "$pid" || code=$?
    if [ "$code" -ne 0 ] && [ "$result" -eq 0 ]; then
      result=$code
      stop
    fi
  done
  pids=("${{alive[@]}}")
  sleep 0.2
done
exit "$result"
"""


def _slurm(settings: LaunchSettings) -> str:
    slurm, tasks = settings.slurm, max(settings.slurm.gpus_per_node, 1)
    options = [
        f"--job-name={settings.job_name}",
        f"--output={settings.workdir}/logs/slurm-%j.log",
        "--open-mode=append",
        *([f"--partition={slurm.partition}"] if slurm.partition else []),
        f"--time={slurm.time}",
        f"--nodes={slurm.nodes}",
        f"--ntasks-per-node={tasks}",
        *([f"--gpus-per-node={slurm.gpus_per_node}"] if slurm.gpus_per_node else []),
        f"--cpus-per-task={slurm.cpus_per_task}",
        "--requeue",
        f"--signal=TERM@{SAVING_SECONDS}",
    ]
    # srun has not taken --cpus-per-task from the job since Slurm 22.05.
    steps = ["srun", "--label", "--kill-on-bad-exit=0", "--wait=60"]
    steps.append(f"--cpus-per-task={slurm.cpus_per_task}")
    words = settings.command("--multihost")
    run = wrapped(words, words.index("run") + 1)
    header = "\n".join(f"#SBATCH {option}" for option in options)
    return f"""\
#!/usr/bin/env bash
# One process per GPU, as JAX expects of Slurm. The signal goes to the processes, which save and
# exit with 75; as B:TERM it would reach this shell alone, and srun hands a SIGTERM on as SIGKILL.
{header}
set -euo pipefail
{_code_on_slurm(settings)}\
# While the first process out leaves, the others may still be saving: they have 60 s, no kill.
code=0
{shlex.join(steps)} \\
  {run} || code=$?
if [ "$code" -eq 75 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {settings.max_restarts} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def _code_on_slurm(settings: LaunchSettings) -> str:
    """Where configs import each other from; the environment was made before the job was queued."""
    if settings.parcel is None:
        return ""
    return (
        f"# Commit {settings.parcel.commit}; {quoted(settings.place)}/install.sh made its "
        f"environment.\nexport PYTHONPATH={quoted(settings.place)}\n"
    )
