"""Metrics: both files say the same, and a full disk is named."""

import errno
import json

import pytest
from tensorboardX.proto.event_pb2 import Event

from stride_jax.runtime.metrics import MetricsWriter, losses


def events(path):
    """The records of an event file: length, its checksum, the event, its checksum."""
    raw = path.read_bytes()
    while raw:
        size = int.from_bytes(raw[:8], "little")
        yield Event.FromString(raw[12 : 12 + size])
        raw = raw[16 + size :]


def test_both_files_hold_what_was_reported(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics")
    writer("training", 3, {"loss": 0.5, "per_second": 2})
    writer("bank", 1, {"models": 4})
    writer.close()
    lines = (tmp_path / "metrics/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    said = {
        (f"{row['loop']}/{name}", row["step"], float(value))
        for row in rows
        for name, value in row.items()
        if name not in ("loop", "step")
    }
    (file,) = (tmp_path / "metrics").glob("events.out.tfevents.*")
    told = {
        (value.tag, event.step, value.simple_value)
        for event in events(file)
        for value in event.summary.value
    }
    assert told == said == {
        ("training/loss", 3, 0.5), ("training/per_second", 3, 2.0), ("bank/models", 1, 4.0),
    }  # fmt: skip


def test_a_full_disk_is_named(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer._lines.close()
    writer._lines = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left") as caught:
        writer("training", 1, {"loss": 0.5})
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path)
    writer.close()


def test_losses_are_read_back_with_steps_done_again_once(tmp_path):
    for told in ([(10, 3.0), (20, 2.0), (30, 1.0), (40, 0.5)], [(20, 2.5), (30, 1.5)]):
        with MetricsWriter(tmp_path) as write:
            for step, loss in told:
                write("training", step, {"loss": loss, "per_second": 1.0})
            write("bank", 1, {"per_second": 2.0})
    with (tmp_path / "metrics.jsonl").open("a") as torn:
        torn.write('{"loop": "train')
    assert losses(tmp_path) == {"training": [(10, 3.0), (20, 2.5), (30, 1.5)]}
    assert losses(tmp_path / "nowhere") == {}
