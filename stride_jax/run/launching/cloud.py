"""Jobs on a Cloud TPU and on xpk: the code is sent, buckets are folders, the job runs detached.

Each worker gets a folder with the code, the environment and the job's own script. A bucket is
mounted, as a run locks, renames and maps its files, which an address can't.
"""

from stride_jax.run.launching.buckets import mounting
from stride_jax.run.launching.settings import SAVING_SECONDS, LaunchSettings
from stride_jax.run.launching.shell import quoted, quoted_flag, wrapped

_START = "#!/usr/bin/env bash\nset -euo pipefail\n"


def gcloud(settings: LaunchSettings, *others: LaunchSettings) -> str:
    """Send the code and start the job on every worker; its argument is the folder to send.

    Args:
      settings: settings of the job.
      *others: jobs that follow it, as a TPU takes one at a time.
    """
    name, checkout = f"{settings.job_name}.sh", settings.tpu_vm.checkout
    send = ['"$folder"'] if settings.parcel else [f'"$folder"/{quoted(name)}']
    to = f"{settings.tpu_vm.tpu_name}:{checkout}/"
    steps = [
        _tpu(settings, "ssh", settings.tpu_vm.tpu_name, f"--command=mkdir -p {quoted(checkout)}"),
        _tpu(settings, "scp", *(["--recurse"] if settings.parcel else []), to, send=send),
        _tpu(
            settings, "ssh", settings.tpu_vm.tpu_name,
            f"--command=cd {quoted(settings.place)} && bash {quoted(name)}",
        ),
    ]  # fmt: skip
    return _with_job(settings, _detached(settings, *others), "\n".join(steps))


def xpk(settings: LaunchSettings) -> str:
    """Hand the job to xpk, which adds the folder of its argument to the image."""
    own = settings.xpk
    words = [
        *("xpk", "workload", "create", f"--workload={settings.job_name}"),
        *settings.xpk.where,
        *(f"--tpu-type={own.tpu_type}", f"--num-slices={own.num_slices}"),
        *([f"--storage={own.storage}"] if own.storage else []),
        # xpk restarts after its own list of exit codes; 75 is not on it.
        *(f"--max-restarts={settings.max_restarts}", "--restart-on-exit-codes=75"),
        f"--termination-grace-period-seconds={SAVING_SECONDS}",
    ]
    # xpk signals the shell it starts this in: exec makes that shell the process.
    if settings.parcel is None:
        remote = " ".join(map(quoted_flag, settings.command("--multihost")))
        mounted = "".join(f"mountpoint {quoted(f)} && " for f in settings.buckets().values())
        words += [f"--docker-image={own.docker_image}", f"--command={mounted}exec {remote}"]
        return f"#!/usr/bin/env bash\n{wrapped(words, 3)}\n"
    words += [
        f"--base-docker-image={own.base_docker_image}",
        f"--command=exec bash {quoted(settings.job_name)}.sh",
    ]
    return _with_job(
        settings, _contained(settings), wrapped(words, 3, raw=['--script-dir="$folder"'])
    )


def following(settings: LaunchSettings) -> str:
    """How to watch a job and how to stop it."""
    if settings.target == "xpk":
        name = settings.job_name
        first = f"jobset-name={name},jobset.sigs.k8s.io/job-index=0"
        watch = [
            *("kubectl", "logs", "--follow", "--tail=100", "--selector"),
            f"jobset.sigs.k8s.io/{first},batch.kubernetes.io/job-completion-index=0",
        ]
        stop = ["xpk", "workload", "delete", f"--workload={name}", *settings.xpk.where]
        return f"# watch: {' '.join(map(quoted, watch))}\n# stop: {' '.join(map(quoted, stop))}"
    files = f"{settings.place}/logs/{settings.job_name}"
    first, all_ = (
        ["gcloud", "compute", "tpus", "tpu-vm", "ssh", settings.tpu_vm.tpu_name,
         *settings.tpu_vm.where, f"--worker={which}"]
        for which in ("0", "all")
    )  # fmt: skip
    watch = [*first, f"--command=tail -n 100 -F {quoted(files)}.log"]
    stop = [*all_, f'--command=kill -TERM -- "-$(cat {quoted(files)}.pid)"']
    return (
        f"# watch: {' '.join(map(quoted_flag, watch))}\n# stop: {' '.join(map(quoted_flag, stop))}"
    )


def _with_job(settings: LaunchSettings, job: str, steps: str) -> str:
    """A script that writes the job's own script into the folder, and goes on with it there."""
    what = "holds the job alone; the code is there already"
    if settings.parcel:
        what = f"is {settings.parcel.name}: {settings.parcel.contents}"
    return f"""\
{_START}# The folder {what}.
folder=${{1:?the folder that is sent}}
cat >"$folder"/{quoted(settings.job_name)}.sh <<'END OF JOB'
{job}END OF JOB
{steps}
"""


def _detached(settings: LaunchSettings, *others: LaunchSettings) -> str:
    """A worker's script: prepares it, then starts itself again, away from the terminal."""
    name, install = quoted(settings.job_name), "bash install.sh\n" if settings.parcel else ""
    folders = {k: v for job in (settings, *others) for k, v in job.buckets().items()}
    runs = "".join(
        f"  # {quoted(job.workdir)}\n"
        f'  [ "$code" -ne 0 ] || {wrapped(words, words.index("run") + 1, "  ")} || code=$?\n'
        for job in (settings, *others)
        for words in [job.command("--multihost")]
    )
    return f"""\
{_START}cd "$(dirname "$0")"
if [ "${{1:-}}" = run ]; then
  trap : TERM # all of the group get it: this shell waits while the process saves
  code=0
{runs}  rm -f logs/{name}.pid
  echo "ended with code $code"
  exit "$code"
fi
if [ -e logs/{name}.pid ] && kill -0 "$(cat logs/{name}.pid)" 2>/dev/null; then
  echo "$(hostname): {name} is at work here: stop it first" >&2
  exit 1
fi
{install}{mounting(folders)}mkdir -p logs
nohup setsid bash {name}.sh run >>logs/{name}.log 2>&1 </dev/null &
echo "$!" >logs/{name}.pid
echo "$(hostname): {name} has started"
"""


def _contained(settings: LaunchSettings) -> str:
    """The script of a container, whose storages are mounted by the cluster."""
    checks = "".join(
        f"mountpoint -q {quoted(folder)} || {{\n"
        f'  echo "gs://{bucket} is not at {quoted(folder)}: xpk storage attach it there" >&2\n'
        "  exit 2\n}\n"
        for bucket, folder in settings.buckets().items()
    )
    words = settings.command("--multihost")
    run = wrapped(words, words.index("run") + 1)
    return f'{_START}cd "$(dirname "$0")"\n{checks}bash install.sh\nexec {run}\n'


def _tpu(settings: LaunchSettings, verb: str, *words: str, send: list[str] | None = None) -> str:
    tpu = settings.tpu_vm
    head = ["gcloud", "compute", "tpus", "tpu-vm", verb]
    flags = [word for word in words if word.startswith("--")]
    names = [word for word in words if not word.startswith("--")]
    lines = [
        " ".join([*head, *(send or []), *map(quoted, names)]),
        *tpu.where,
        *("--worker=all", *map(quoted_flag, flags)),
    ]
    return " \\\n  ".join(lines)
