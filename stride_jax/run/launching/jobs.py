"""The text of a job for each target: pure functions of the settings."""

import shlex
from collections.abc import Sequence

from stride_jax.run.launching.settings import LaunchSettings
from stride_jax.runtime.screen import visible

# A preempted process has this long to save, on every target.
SAVING_SECONDS = 120
_HEAD = 4  # words before the flags: python -m stride_jax run


def command(settings: LaunchSettings, *more: str) -> list[str]:
    """The command that runs the config, the same for every target.

    >>> from stride_jax.run.launching.settings import LaunchSettings
    >>> command(LaunchSettings("configs/mnist5k.py", "runs/x", overrides=(("top_k", 5),)))[4:]
    ['--config=configs/mnist5k.py', '--config.top_k=5', '--workdir=runs/x']
    """
    return [
        *(settings.python, "-m", "stride_jax", "run", f"--config={settings.config}"),
        *(f"--config.{key}={value}" for key, value in settings.overrides),
        *(f"--workdir={settings.workdir}", *more),
    ]


def local_commands(settings: LaunchSettings, port: int) -> list[list[str]]:
    """One command per process; several meet on the loopback at `port`."""
    if settings.processes == 1:
        return [command(settings)]
    return [
        command(
            settings,
            *("--multihost", f"--coordinator=127.0.0.1:{port}"),
            *(f"--num_processes={settings.processes}", f"--process_id={i}"),
        )
        for i in range(settings.processes)
    ]


def submission(settings: LaunchSettings) -> list[str]:
    """The program that takes the job and its arguments; sbatch reads the script from its input."""
    if settings.target == "slurm":
        return ["sbatch"]
    return _gcloud(settings) if settings.target == "gcloud-tpu" else _xpk(settings)


def render(settings: LaunchSettings) -> str:
    """The job as a bash script: what `--dry_run` prints."""
    if settings.target == "local":
        return _local(settings) if settings.processes > 1 else _local_single(settings)
    if settings.target == "slurm":
        return _slurm(settings)
    words = submission(settings)
    head = next(i for i, word in enumerate(words) if word.startswith("--"))
    return f"#!/usr/bin/env bash\n{_wrapped(words, head)}\n"


def _wrapped(words: Sequence[str], head: int, indent: str = "", raw: Sequence[str] = ()) -> str:
    """A command with its first words on one line, and each other word on a line of its own.

    Args:
      words: words of the command, quoted here where the shell needs it.
      head: number of words on the first line.
      indent: indent of the lines that follow.
      raw: more lines, already quoted.
    """
    lines = [" ".join(map(quoted, words[:head])), *map(_quoted, words[head:]), *raw]
    return f" \\\n{indent}  ".join(lines)


def _quoted(word: str) -> str:
    """As `shlex.quote`, but for people.

    >>> print(_quoted("--command=a b"), _quoted("--taps=('input',)"))
    --command='a b' --taps="('input',)"
    """
    key, equals, value = word.partition("=")
    plain = "'" in value and not set('"$`\\!') & set(value) and visible(value) == value
    inner = f'"{value}"' if plain else quoted(value)
    return f"{quoted(key)}={inner}" if equals else quoted(word)


def quoted(word: str) -> str:
    """As `shlex.quote`; a word with characters that no screen should get is spelled in bytes.

    >>> print(quoted("a b"), quoted("a\\x1b[2J"))
    'a b' $'a\\x1b[2J'
    """
    if visible(word) == word:
        return shlex.quote(word)
    raw = word.encode("utf-8", "surrogateescape")
    plain = (chr(b) if 0x20 <= b < 0x7F and b not in b"'\\" else f"\\x{b:02x}" for b in raw)
    return f"$'{''.join(plain)}'"


def _local_single(settings: LaunchSettings) -> str:
    logs = quoted(f"{settings.workdir}/logs")
    run = _wrapped(command(settings), _HEAD, raw=[f"> >(tee -a {logs}/process-0.log) 2>&1"])
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
PORT=$({shlex.join([settings.python, "-c", free_port])})
pids=() result=0
stop() {{ kill -TERM "${{pids[@]}}" 2>/dev/null || true; }}
trap stop TERM INT HUP
for i in {" ".join(map(str, range(settings.processes)))}; do
  log={logs}/process-$i.log
  {_wrapped(command(settings), _HEAD, "  ", meeting)}
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
    run = _wrapped(command(settings, "--multihost"), _HEAD)
    header = "\n".join(f"#SBATCH {option}" for option in options)
    return f"""\
#!/usr/bin/env bash
# One process per GPU, as JAX expects of Slurm. The signal goes to the processes, which save and
# exit with 75; as B:TERM it would reach this shell alone, and srun hands a SIGTERM on as SIGKILL.
{header}
set -euo pipefail
# While the first process out leaves, the others may still be saving: they have 60 s, no kill.
code=0
{shlex.join(steps)} \\
  {run} || code=$?
if [ "$code" -eq 75 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {settings.max_restarts} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def _gcloud(settings: LaunchSettings) -> list[str]:
    tpu = settings.tpu_vm
    remote = " ".join(map(_quoted, command(settings, "--multihost")))
    return [
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", tpu.tpu_name),
        *_place(tpu.zone, tpu.project),
        "--worker=all",
        f"--command=cd {quoted(tpu.checkout)} && {remote}",
    ]


def _xpk(settings: LaunchSettings) -> list[str]:
    xpk = settings.xpk
    remote = " ".join(map(_quoted, command(settings, "--multihost")))
    return [
        *("xpk", "workload", "create", f"--workload={settings.job_name}"),
        *(f"--cluster={xpk.cluster}", *_place(xpk.zone, xpk.project)),
        *(f"--tpu-type={xpk.tpu_type}", f"--num-slices={xpk.num_slices}"),
        f"--docker-image={xpk.docker_image}",
        *([f"--storage={xpk.storage}"] if xpk.storage else []),
        # xpk restarts after its own list of exit codes; 75 is not on it.
        *(f"--max-restarts={settings.max_restarts}", "--restart-on-exit-codes=75"),
        f"--termination-grace-period-seconds={SAVING_SECONDS}",
        # xpk signals the shell it starts this in: exec makes that shell the process.
        f"--command=exec {remote}",
    ]


def _place(zone: str, project: str) -> list[str]:
    return [*([f"--zone={zone}"] if zone else []), *([f"--project={project}"] if project else [])]
