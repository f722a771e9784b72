"""The launcher: the text of what it submits, its refusals, its supervision of processes."""

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

import pytest

from stride_jax.run.launching import jobs as launching
from stride_jax.run.launching import supervise, sweeps
from stride_jax.run.launching.jobs import local_commands, render, submission
from stride_jax.run.launching.settings import LaunchSettings, Slurm, TpuVm, Xpk
from stride_jax.run.launching.sweeps import expand

ROOT = pathlib.Path(__file__).parents[1]
BASE = LaunchSettings(
    str(ROOT / "configs/mnist5k.py"), "/mnt/runs/x", overrides=(("index.sites", ("logit",)),)
)
TPU = TpuVm("my-tpu", "us-central2-b", "my-project")
XPK = Xpk("my-cluster", "v5litepod-16", 2, "gcr.io/my-project/stride:1", "my-bucket")
GOLDEN = {
    "launch_local.sh": {"processes": 2, "workdir": "runs/x"},
    "launch_slurm.sbatch": {
        "target": "slurm",
        "workdir": "runs/x",
        "slurm": Slurm(partition="gpu", nodes=2, gpus_per_node=4),
    },
    "launch_gcloud.sh": {"target": "gcloud-tpu", "tpu_vm": TPU, "python": ".venv/bin/python"},
    "launch_xpk.sh": {"target": "xpk", "xpk": XPK},
}


@pytest.fixture(autouse=True)
def _from_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def golden_settings(name):
    return dataclasses.replace(BASE, config="configs/mnist5k.py:runlocal", **GOLDEN[name])


@pytest.mark.parametrize("name", GOLDEN)
def test_a_job_is_letter_by_letter_the_reviewed_one(name):
    path = ROOT / "tests/golden" / name
    assert render(golden_settings(name)) == path.read_text(), f"if meant, write it to {path}"
    shellcheck = shutil.which("shellcheck") or pathlib.Path(sys.executable).with_name("shellcheck")
    checked = subprocess.run([shellcheck, path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", ["launch_gcloud.sh", "launch_xpk.sh"])
def test_quoting_survives_both_shells(name):
    settings = golden_settings(name)
    program, *words = submission(settings)
    echo = program + """() { printf '%s\\0' "$@"; }\n"""
    received = subprocess.run(
        ["bash", "-c", echo + render(settings)], capture_output=True, text=True
    )
    assert received.stdout.split("\0")[:-1] == words
    there = shlex.split(words[-1].removeprefix("--command="))
    run = there[there.index(settings.python) :]
    assert run == launching.command(settings, "--multihost")
    assert "--config.index.sites=('logit',)" in run


def test_one_process_needs_no_meeting_point():
    (words,) = local_commands(BASE, 1234)
    assert words == launching.command(BASE)
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
    assert "--config.index.design.seed=2" in launching.command(first)


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
    limit = time.monotonic() + 20
    while not all(path.exists() and words in path.read_text() for path in paths):
        assert time.monotonic() < limit, "the processes did not start"
        time.sleep(0.02)
    return paths


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
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as job:
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
    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, env=env) as job:
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


@pytest.mark.parametrize("module", [launching, supervise, sweeps])
def test_examples_in_docstrings(module):
    results = doctest.testmod(module)
    assert (results.failed, results.attempted > 0) == (0, True)
