"""The launcher: the text of what it submits, its refusals, its supervision of processes."""

import contextlib
import dataclasses
import doctest
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from stride_jax.cli import launch as cli
from stride_jax.run.launching import buckets, settings, shell, supervise, sweeps
from stride_jax.run.launching.jobs import following, local_commands, render
from stride_jax.run.launching.parcel import Parcel, install, pack, parcel_of
from stride_jax.run.launching.settings import LaunchSettings, Slurm, TpuVm, Xpk
from stride_jax.run.launching.sweeps import expand

ROOT = pathlib.Path(__file__).parents[1]
BASE = LaunchSettings(
    str(ROOT / "configs/mnist5k.py"), "/mnt/runs/x", overrides=(("index.sites", ("logit",)),)
)
TPU = TpuVm("my-tpu", "us-central2-b", "my-project")
XPK = Xpk("my-cluster", "v5litepod-16", 2, "gcr.io/my-project/stride:1", storage="my-bucket")
SENT = Parcel(
    "1a2b3c4d5", ROOT, ("configs/common.py", "configs/mnist5k.py"), "0f1e2d3c", jax_extra="tpu"
)
GOLDEN = {
    "launch_local.sh": {"processes": 2, "workdir": "runs/x"},
    "launch_slurm.sbatch": {
        "target": "slurm",
        "workdir": "runs/x",
        "slurm": Slurm(partition="gpu", nodes=2, gpus_per_node=4),
    },
    "launch_slurm_parcel.sbatch": {
        "target": "slurm",
        "workdir": "runs/x",
        "slurm": Slurm(),
        "parcel": dataclasses.replace(SENT, jax_extra="cuda12"),
    },
    "launch_gcloud.sh": {"target": "gcloud-tpu", "tpu_vm": TPU, "python": ".venv/bin/python"},
    "launch_gcloud_parcel.sh": {
        "target": "gcloud-tpu",
        "tpu_vm": TPU,
        "parcel": SENT,
        "workdir": "gs://my-bucket/runs/x",
        "overrides": (("index.sites", ("logit",)), ("shards.folder", "gs://my-text/tokens")),
    },
    "launch_xpk.sh": {"target": "xpk", "xpk": XPK},
    "launch_xpk_parcel.sh": {
        "target": "xpk",
        "xpk": dataclasses.replace(XPK, docker_image=""),
        "parcel": SENT,
        "workdir": "gs://my-bucket/runs/x",
    },
}


@pytest.fixture(autouse=True)
def _from_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def golden_settings(name):
    return dataclasses.replace(BASE, config="configs/mnist5k.py:runlocal", **GOLDEN[name])


def shellchecked(text):
    """What shellcheck says of a script, and of the job in it; nothing if all is well."""
    program = shutil.which("shellcheck") or pathlib.Path(sys.executable).with_name("shellcheck")
    jobs = [text.partition("<<'END OF JOB'\n")[2].partition("END OF JOB\n")[0]]
    for script in [text, *filter(None, jobs)]:
        words = [program, "-"]
        checked = subprocess.run(words, input=script, capture_output=True, text=True, check=False)
        if checked.returncode:
            return checked.stdout
    return ""


@pytest.mark.parametrize("name", GOLDEN)
def test_a_job_is_letter_by_letter_the_reviewed_one(name):
    path = ROOT / "tests/golden" / name
    job = golden_settings(name)
    text = f"{render(job)}\n{following(job)}\n"
    assert text == path.read_text(), f"if meant, write it to {path}"
    assert not shellchecked(text)


def test_the_script_that_makes_an_environment_is_the_reviewed_one():
    path = ROOT / "tests/golden/launch_install.sh"
    assert install(SENT) == path.read_text(), f"if meant, write it to {path}"
    assert not shellchecked(install(SENT))


def test_quoting_survives_both_shells():
    job = golden_settings("launch_xpk.sh")
    received = subprocess.run(
        ["bash", "-c", """xpk() { printf '%s\\0' "$@"; }\n""" + render(job)],
        capture_output=True,
        text=True,
        check=True,
    )
    there = shlex.split(received.stdout.split("\0")[-2].removeprefix("--command="))
    run = there[there.index(job.interpreter) :]
    assert run == job.command("--multihost")
    assert "--config.index.sites=('logit',)" in run


def test_one_process_needs_no_meeting_point():
    (words,) = local_commands(BASE, 1234)
    assert words == BASE.command()
    assert "multihost" not in render(BASE)
    assert local_commands(dataclasses.replace(BASE, processes=2), 1234)[1][-4:] == [
        *("--multihost", "--coordinator=127.0.0.1:1234", "--num_processes=2", "--process_id=1")
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "lsf"}, r"target='lsf' is not one of local, slurm"),
        ({"config": "configs/mnist.py:runlocal"}, r"config='configs/mnist.py' is not a file"),
        ({"workdir": "gs://bucket/x"}, r"workdir='gs://bucket/x' is not a folder.*mount"),
        ({"workdir": ""}, r"workdir='' is not a folder: give one"),
        (
            {"target": "slurm", "overrides": (("text.path", "gs://bucket/x"),)},
            r"text.path='gs://bucket/x' is not a folder: mount",
        ),
        (
            {"target": "gcloud-tpu", "workdir": "s3://bucket/x"},
            r"workdir='s3://bucket/x' is no address in a bucket of Google Cloud",
        ),
        (
            {"target": "gcloud-tpu", "tpu_vm": TPU, "parcel": SENT, "workdir": "runs/x"},
            r"workdir='runs/x' would be a folder of its own on every worker",
        ),
        (
            {
                "target": "xpk",
                "xpk": dataclasses.replace(XPK, storage=""),
                "workdir": "gs://bucket/x",
            },
            r"give --storage, once attached by xpk storage attach bucket --type=gcsfuse",
        ),
        ({"processes": 0}, r"processes=0 must be at least 1"),
        (
            {"processes": 2, "target": "slurm"},
            r"processes=2 is for target=local: slurm takes nodes",
        ),
        ({"target": "slurm", "slurm": Slurm(time="4h")}, r"time='4h' is no time limit: give 04:00"),
        ({"target": "slurm", "slurm": Slurm(nodes=0)}, r"nodes=0 must be at least 1"),
        ({"target": "slurm", "workdir": "my runs/x"}, r"workdir='my runs/x' can't stand in"),
        ({"target": "gcloud-tpu"}, r"target=gcloud-tpu needs --tpu_name"),
        ({"target": "gcloud-tpu", "tpu_vm": TpuVm("t")}, r"target=gcloud-tpu needs --zone"),
        (
            {"target": "gcloud-tpu", "tpu_vm": TPU, "name": "a/b"},
            r"name='a/b' can't name the job's files",
        ),
        ({"target": "xpk", "xpk": Xpk("c")}, r"target=xpk needs --docker_image"),
        ({"target": "xpk", "xpk": XPK, "name": "My_run"}, r"name='My_run' is no name.*--name"),
        ({"target": "xpk", "xpk": XPK, "name": "a" * 41}, r"is no name of a workload"),
        ({"target": "xpk", "xpk": XPK, "workdir": "runs/x"}, r"workdir='runs/x' would be lost"),
    ],
)
def test_what_would_fail_later_is_refused_now(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **changes)


def swept(tmp_path, body):
    path = tmp_path / "swept.py"
    path.write_text(
        "def get_config(arg=''):\n"
        "    return {'train': {'seed': 0}, 'index': {'design': {'num_subsets': 50}}}\n" + body
    )
    overrides = (("train.learning_rate", "1.0"),)
    return dataclasses.replace(BASE, config=f"{path}:small", overrides=overrides)


def test_a_sweep_is_a_job_for_each_variant(tmp_path):
    body = (
        "def sweep(add):\n"
        "    add(**{'train.seed': 1, 'index.design.seed': 2})\n"
        "    add(**{'train.learning_rate': 2, 'index.design.seed': 0})\n"
    )
    first, second = expand(swept(tmp_path, body))
    assert second.overrides == (("train.learning_rate", 2), ("index.design.seed", 0)), (
        "a variant has the last word"
    )
    assert first.overrides == (
        ("train.learning_rate", "1.0"),
        ("train.seed", 1),
        ("index.design.seed", 2),
    )
    assert first.workdir == "/mnt/runs/x/train.seed=1,design.seed=2"
    assert second.workdir == "/mnt/runs/x/learning_rate=2,design.seed=0"
    assert (first.job_name, second.job_name) == ("swept-small-0", "swept-small-1")
    assert "--config.index.design.seed=2" in first.command()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", r"has no sweep\(add\)"),
        ("def sweep(add): pass", r"never calls add"),
        ("def sweep(add): add(**{'train.sed': 1})", r"no setting 'sed': did you mean 'seed'"),
        ("def sweep(add): add(**{'train': {}})", r"names 'train', a section"),
        ("def sweep(add): add(**{'train.seed': 'a'})", r"train.seed='a' must be of type int"),
        (
            "def sweep(add): add(**{'index.design.degree': 60})",
            r"degree=60 exceeds num_subsets=50",
        ),
        ("def sweep(add): [add(**{'train.seed': 1}) for _ in '12']", r"'seed=1' twice"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused(tmp_path, body, message):
    with pytest.raises(ValueError, match=message):
        expand(swept(tmp_path, body))


def launch(*words, path=None):
    return subprocess.run(
        [sys.executable, "-m", "experiments.launch", "--config=configs/mnist5k.py", *words],
        env=os.environ | ({"PATH": str(path)} if path else {}),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_sweep_reaches_sbatch_script_by_script(tmp_path):
    words = [f"--workdir={tmp_path}/runs", "--target=slurm", "--sweep", "--python=python"]
    missing = launch(*words, path=tmp_path / "nothing")
    assert missing.returncode == 2
    assert "launch: sbatch is not on this machine's PATH" in missing.stderr
    assert "--dry_run" in missing.stderr
    shown = launch(*words, "--config.top_k=7", "--dry_run")
    assert shown.returncode == 0, shown.stderr
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text('#!/bin/sh\nwhile IFS= read -r line; do printf "%s\\n" "$line"; done\n')
    sbatch.chmod(0o755)
    done = launch(*words, "--config.top_k=7", path=sbatch.parent)
    assert done.returncode == 0, done.stderr
    scripts = [path.read_text() for path in sorted(tmp_path.glob("runs/*/launch.sbatch"))]
    assert len(scripts) == 4
    for script in scripts:
        assert script in done.stdout
        assert script in shown.stdout
        assert script.count("--config.top_k=7") == script.count("--multihost") == 1
    folders = {path.name for path in (tmp_path / "runs").iterdir()}
    assert folders == {f"num_subsets={k},seed={s}" for k in (300, 1000) for s in (0, 1)}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with a config, in a repository of its own that is sent in place of this one."""
    home = tmp_path / "checkout"
    (home / "configs").mkdir(parents=True)
    (home / "stride_jax").mkdir()
    (home / "stride_jax/code.py").write_text("committed")
    (home / "constraints.txt").write_text("jax==0.10.2\n")
    (home / "configs/common.py").write_text("KINDS = 'mlp'\n")
    (home / "configs/own.py").write_text(
        "def get_config():\n    return {'model': {'init_from': 'gs://my-models/weights'}}\n"
    )
    git = ["git", "-C", home, "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "First"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    monkeypatch.chdir(home)
    monkeypatch.setattr("stride_jax.run.launching.parcel._HERE", home)

    def wheel(source, folder, build):
        said = (source / "stride_jax/code.py").read_text()
        (folder / f"stride_jax-0.1.0-{build}-py3-none-any.whl").write_text(said)

    monkeypatch.setattr("stride_jax.run.launching.parcel._wheel", wheel)
    return home


def test_what_is_sent_is_one_commit(checkout, tmp_path):
    sent = parcel_of("configs/own.py", "tpu")
    assert sent.configs == ("configs/common.py", "configs/own.py")
    (checkout / "stride_jax/more.py").write_text("forgotten")
    with pytest.raises(ValueError, match=r"1 files differ from commit .*stride_jax/more.py: comm"):
        parcel_of("configs/own.py")
    (checkout / "stride_jax/more.py").unlink()
    (checkout / "stride_jax/code.py").write_text("changed")
    with pytest.raises(ValueError, match=r"stride_jax/code.py: commit them, or .*--uncommitted"):
        parcel_of("configs/own.py")
    folder = pack(sent, tmp_path / "sent")
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {
        *(sent.wheel, "constraints.txt", "install.sh", *sent.configs)
    }
    assert (folder / sent.wheel).read_text() == "committed", "not what lies in the folder now"
    as_it_is = parcel_of("configs/own.py", "tpu", changed=True)
    assert as_it_is.name.startswith(sent.commit)
    assert as_it_is.commit.endswith(".changed")
    assert (pack(as_it_is, tmp_path / "sent") / as_it_is.wheel).read_text() == "changed"
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True)
    assert status.stdout == " M stride_jax/code.py\n", "git's own index is not touched"
    with pytest.raises(ValueError, match=r"lies outside of this folder"):
        parcel_of(str(tmp_path / "else.py"))
    (checkout / "configs/common.py").write_text("KINDS = 'gpt'\n")
    assert parcel_of("configs/own.py", "tpu", changed=True).name != as_it_is.name


@pytest.mark.slow
def test_the_wheel_of_this_checkout_says_its_commit(tmp_path):
    sent = parcel_of("configs/mnist5k.py", changed=True)
    assert {"configs/common.py", "configs/mnist5k.py"} < set(sent.configs)
    with zipfile.ZipFile(pack(sent, tmp_path) / sent.wheel) as wheel:
        (name,) = [own for own in wheel.namelist() if own.endswith(".dist-info/WHEEL")]
        assert f"Build: 0g{sent.commit}\n" in wheel.read(name).decode()
        assert "stride_jax/run/launching/parcel.py" in wheel.namelist()


# What a worker has: an interpreter whose environments run a job until it is asked to stop.
TOOLS = {
    "python3.11": """
mkdir -p "$3/bin"
cat >"$3/bin/python" <<'PYTHON'
#!/bin/bash
case "$*" in
  *"pip install"*) echo "$PWD $*" >>"$HOME/installed" ;;
  *"pip freeze"*) echo jax==0.10.2 ;;
  *)
    trap 'echo saved; exit 75' TERM
    echo "$PWD $*"
    for word; do case $word in --workdir=*) workdir=${word#--workdir=} ;; esac; done
    mkdir -p "$workdir" && echo "$PYTHONPATH" >"$workdir/$(basename "$HOME")"
    case "$*" in *--config.top_k=1*) exit 0 ;; esac
    while :; do sleep 0.05; done
    ;;
esac
PYTHON
chmod +x "$3/bin/python"
""",
    "gcloud": """
for word; do
  case $word in --command=*) job=${word#*=} ;; --worker=[01]) only=${word#*=} ;; esac
done
for i in ${only:-0 1}; do
  case "$4" in
    ssh) (cd "$TOOLS/worker-$i" && HOME=$PWD bash -c "$job") || exit ;;
    scp) cp -r "$5" "$TOOLS/worker-$i/${6#*:}" ;;
  esac
done
""",
    "gcsfuse": """
rmdir "${!#}" && ln -s "$TOOLS/buckets/${*: -2:1}" "${!#}"
""",
    "mountpoint": """
[ -L "${!#}" ]
""",
    "xpk": """
printf '%s\\n' "$*" >>"$TOOLS/calls"
for word; do
  case $word in --script-dir=*) app=${word#*=} ;; --command=*) job=${word#*=} ;; esac
done
cp -r "$app" "$TOOLS/app" && cd "$TOOLS/app" || exit
HOME=$TOOLS/worker-0 bash -c "($job)" >"$TOOLS/log" 2>&1
""",
    "sbatch": """
cat >"$TOOLS/script" && srun() { shift 4; "$@"; } && HOME=$TOOLS/worker-0 && . "$TOOLS/script"
""",
}


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder of programs that stand in for the cloud's: two workers, and two buckets."""
    home = tmp_path / "tools"
    for folder in ("bin", "worker-0", "worker-1", "buckets/my-models", "buckets/my-runs"):
        (home / folder).mkdir(parents=True)
    for name, body in TOOLS.items():
        (home / "bin" / name).write_text(f"#!/bin/bash\n{body.strip()}\n")
        (home / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{home / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("TOOLS", str(home))
    return home


def until(holds):
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.02)


def test_a_tpu_gets_the_code_and_its_buckets_and_can_be_stopped(checkout, tools, tmp_path, capfd):
    words = [
        "--config=configs/own.py", "--workdir=gs://my-runs/x", "--target=gcloud-tpu",
        "--tpu_name=t", "--zone=z", f"--mounts={tmp_path}/gcs",
    ]  # fmt: skip
    assert cli.main(words) == 0
    told = capfd.readouterr().out
    assert told.count("own has started") == 2
    commands = {
        key: shlex.split(line.partition(": ")[2])
        for line in told.splitlines()
        if (key := line.partition(":")[0]) in ("# watch", "# stop")
    }
    name = parcel_of("configs/own.py", "tpu").name
    places = [tools / f"worker-{i}/stride_jax/{name}" for i in range(2)]
    until(lambda: all((tools / f"buckets/my-runs/x/worker-{i}").exists() for i in range(2)))
    for place in places:
        log = (place / "logs/own.log").read_text()
        assert f"{place} -m stride_jax run --config=configs/own.py" in log
        assert f"--config.model.init_from={tmp_path}/gcs/my-models/weights" in log
        installed = (place.parents[1] / "installed").read_text()
        assert installed.startswith(f"{place} -m pip install")
        assert installed.endswith(
            f"-c constraints.txt ./{parcel_of('configs/own.py', 'tpu').wheel}[run,text] jax[tpu]\n"
        )
        assert (place / "env/packages.txt").read_text() == "jax==0.10.2\n"
    assert (tools / "buckets/my-models").is_dir()
    assert cli.main(words) != 0, "one at a time"
    assert "own is at work here: stop it first" in capfd.readouterr().err
    assert subprocess.run(commands["# stop"], check=False).returncode == 0
    until(lambda: all("ended with code 75" in (p / "logs/own.log").read_text() for p in places))
    assert all("saved\n" in (place / "logs/own.log").read_text() for place in places)
    assert cli.main([*words, "--config.top_k=1"]) == 0, "the same again continues it"
    until(lambda: all("ended with code 0" in (p / "logs/own.log").read_text() for p in places))
    assert (places[0].parents[1] / "installed").read_text().count("pip install") == 1
    assert commands["# watch"][-2:] == [
        "--worker=0",
        f"--command=tail -n 100 -F stride_jax/{name}/logs/own.log",
    ]


def test_a_sweep_on_a_tpu_is_one_job_after_the_other(checkout, tools, tmp_path, capfd):
    config = checkout / "configs/own.py"
    variants = "def sweep(add):\n    add(**{'top_k': 1})\n    add(**{'top_k': 1, 'facts': 0})\n"
    config.write_text(config.read_text() + variants)
    words = [
        "--config=configs/own.py", "--workdir=gs://my-runs/x", "--target=gcloud-tpu", "--sweep",
        "--tpu_name=t", "--zone=z", f"--mounts={tmp_path}/gcs", "--uncommitted",
    ]  # fmt: skip
    assert cli.main(words) == 0
    assert capfd.readouterr().out.count("# own-1: gs://my-runs/x/top_k=1,facts=0") == 1
    place = next((tools / "worker-1/stride_jax").iterdir())
    until(lambda: "ended with code 0" in (place / "logs/own-0.log").read_text())
    said = (place / "logs/own-0.log").read_text()
    assert said.index("x/top_k=1 --multihost") < said.index("x/top_k=1,facts=0 --multihost")


def test_xpk_gets_an_image_with_the_code(checkout, tools, tmp_path, capfd):
    words = [
        "--config=configs/own.py", "--workdir=gs://my-runs/x", "--target=xpk", "--cluster=c",
        "--storage=my-runs", f"--mounts={tmp_path}/gcs", "--config.top_k=1",
    ]  # fmt: skip
    assert cli.main(words) == 2, "a bucket is not attached"
    assert "xpk storage attach it there" in (tools / "log").read_text()
    shutil.rmtree(tools / "app")
    (tmp_path / "gcs").mkdir()
    for bucket in ("my-runs", "my-models"):
        (tmp_path / "gcs" / bucket).symlink_to(tools / "buckets" / bucket)
    assert cli.main(words) == 0
    assert f"{tools}/app -m stride_jax run --config=configs/own.py" in (tools / "log").read_text()
    assert (tools / "buckets/my-runs/x/worker-0").exists()
    assert "# stop: xpk workload delete --workload=own --cluster=c" in capfd.readouterr().out
    call = (tools / "calls").read_text().splitlines()[-1]
    assert "--base-docker-image=python:3.11" in call
    assert call.split("--script-dir=")[1].endswith(parcel_of("configs/own.py", "tpu").name)


def test_slurm_runs_the_code_of_the_workdir(checkout, tools, capfd):
    (checkout / "configs/own.py").write_text("def get_config():\n    return {}\n")
    words = ["--config=configs/own.py", "--workdir=runs/x", "--target=slurm", "--config.top_k=1"]
    with pytest.raises(ValueError, match=r"1 files differ from commit .*configs/own.py"):
        cli.main(words)
    words.append("--uncommitted")
    assert cli.main(words) == 0
    told = capfd.readouterr().out
    name = parcel_of("configs/own.py", "cuda12", changed=True).name
    assert f"{checkout} -P -m stride_jax run --config=runs/x/code/{name}/configs/own.py" in told
    assert (checkout / "runs/x/worker-0").read_text() == f"runs/x/code/{name}\n"
    assert "# watch: squeue --me --name=own; tail -F runs/x/logs/slurm-<job>.log" in told
    assert "# stop: scancel --me --name=own" in told


DRIVER = """
import pathlib, signal, sys
from stride_jax.run.launching.supervise import Grace, supervise
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where pytest runs in background
commands = [[sys.executable, "-c", code] for code in sys.argv[2:]]
sys.exit(supervise(commands, pathlib.Path(sys.argv[1]), Grace(saving=20, failing=0.3)))
"""
SAVES = """
import signal, sys
def save(*_):
    print("saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("ready")
while True:
    signal.pause()
"""


def until_both_say(words, logs):
    paths = [logs / f"process-{i}.log" for i in range(2)]
    until(lambda: all(path.exists() and words in path.read_text() for path in paths))
    return paths


@contextlib.contextmanager
def begun(words, **options):
    """A job that ends with the test, also where that fails."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, **options) as job:
        try:
            yield job
        finally:
            if job.poll() is None:
                job.terminate()


def test_one_failure_ends_the_job_with_its_code(tmp_path):
    stubborn = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\n"
        "time.sleep(60)\n"
    )
    fails = (
        "import pathlib, sys, time\n"
        f"while 'deaf' not in pathlib.Path({str(tmp_path / 'process-0.log')!r}).read_text():\n"
        "    time.sleep(0.02)\n"
        "print('out of memory')\n"
        "sys.exit(3)\n"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, tmp_path, stubborn, fails],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert time.monotonic() - start < 20, "the other one was killed, not waited for"
    assert done.stdout.startswith("deaf\nprocess 1 ended with code 3"), "of process 0, all is shown"
    assert (tmp_path / "process-1.log").read_text() == "out of memory\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_every_process_save(tmp_path, number):
    words = [sys.executable, "-c", DRIVER, tmp_path, SAVES, SAVES]
    with begun(words, text=True) as job:
        paths = until_both_say("ready", tmp_path)
        job.send_signal(number)
        job.communicate(timeout=20)
    assert job.returncode == 75
    assert [path.read_text() for path in paths] == ["ready\nsaved\n"] * 2


def test_a_preempted_run_names_the_command_that_resumes_it(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$*"\nexit 75\n')
    python.chmod(0o755)
    done = launch(f"--workdir={tmp_path}/runs", f"--python={python}", "--processes=2")
    assert done.returncode == 75
    assert "preempted, run the same command again to continue" in done.stdout
    first = (tmp_path / "runs/logs/process-0.log").read_text()
    assert first.startswith("-m stride_jax run --config=configs/mnist5k.py")
    assert first.endswith("--num_processes=2 --process_id=0\n")
    assert first in done.stdout


@pytest.mark.parametrize(("second", "code"), [("exit 3", 3), ("true", 75)])
def test_the_printed_local_script_behaves_like_the_launcher(tmp_path, second, code):
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text(
        "#!/bin/sh\n"
        f'case "$*" in -c*) echo 1234; exit ;; *--process_id=1*) {second} ;; esac\n'
        "trap 'echo saved; exit 75' TERM\n"
        'echo "ready $*"\n'
        "while :; do sleep 0.05; done\n"
    )
    python.chmod(0o755)
    script = render(dataclasses.replace(BASE, processes=2, workdir=f"{tmp_path}/my run"))
    env = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    with begun(["bash", "-c", script], env=env) as job:
        if code == 75:
            paths = until_both_say("ready", tmp_path / "my run/logs")
            job.terminate()
        job.communicate(timeout=20)
    assert job.returncode == code
    if code == 75:
        assert all(path.read_text().endswith("saved\n") for path in paths)
        assert "--config.index.sites=('logit',)" in paths[1].read_text()
        assert "--coordinator=127.0.0.1:1234 --num_processes=2 --process_id=1" in (
            paths[1].read_text()
        )


@pytest.mark.parametrize("module", [buckets, settings, shell, supervise, sweeps])
def test_examples_in_docstrings(module):
    results = doctest.testmod(module)
    assert (results.failed, results.attempted > 0) == (0, True)
