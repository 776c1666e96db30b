"""Records survive kills, stay strict JSON and can be read back."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.errors import InputError
from imbal_jax.reports import records
from imbal_jax.reports.records import JsonLines, plain, read, truncate_after, write_json


def _strict(text):
    """Parses JSON and refuses the NaN and Infinity that Python's parser lets pass."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_plain_converts_numpy_and_jax():
    value = {
        "float32": np.float32(0.5),
        "float64": np.float64(0.1),
        "int64": np.int64(3),
        "truth": np.bool_(True),
        "array": np.array([[1.5, np.nan], [np.inf, -np.inf]]),
        "jax": jnp.array([1, 2]),
        "bfloat16": jnp.array(0.25, jnp.bfloat16),
        "tuple": (1, None, "text"),
        3: float("nan"),
    }
    expected = {
        "float32": 0.5,
        "float64": 0.1,
        "int64": 3,
        "truth": True,
        "array": [[1.5, None], [None, None]],
        "jax": [1, 2],
        "bfloat16": 0.25,
        "tuple": [1, None, "text"],
        "3": None,
    }
    result = plain(value)
    assert result == expected
    assert type(result["float64"]) is float and type(result["truth"]) is bool and type(result["int64"]) is int


def test_plain_refuses_what_json_cannot_hold():
    with pytest.raises(InputError, match=r"^record: expected numbers, strings, lists and mappings, got a set$"):
        plain({"a": [{1, 2}]})


def test_write_json_is_strict_ordered_and_replaces(tmp_path):
    path = tmp_path / "new" / "summary.json"
    write_json(path, {"old": 1})
    write_json(path, {"z": np.nan, "a": [1.0, np.inf], "name": "Räder"})
    text = path.read_text(encoding="utf-8")
    assert _strict(text) == {"z": None, "a": [1.0, None], "name": "Räder"}
    assert list(_strict(text)) == ["z", "a", "name"]
    assert text.startswith('{\n  "z": null') and text.endswith("}\n")
    assert [file.name for file in path.parent.iterdir()] == ["summary.json"]


def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(records.os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_json(path, {"a": 2})
    assert _strict(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_lines_are_on_disk_at_once_and_read_back(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    lines = JsonLines(path)
    written = [{"step": step, "train/loss": np.float32(0.5) / step, "norms": np.ones(2)} for step in (1, 2)]
    for count, record in enumerate(written, start=1):
        lines.append(record)
        assert len(path.read_text().splitlines()) == count
    lines.append({"step": 3, "train/loss": float("nan")})
    assert [_strict(line) for line in path.read_text().splitlines()] == read(path)
    assert read(path) == [
        {"step": 1, "train/loss": 0.5, "norms": [1.0, 1.0]},
        {"step": 2, "train/loss": 0.25, "norms": [1.0, 1.0]},
        {"step": 3, "train/loss": None},
    ]


def _killed_run(path, steps=(10, 20, 30, 40)):
    """A file whose writer was killed in the middle of the last line."""
    lines = JsonLines(path)
    lines.append({"seed": 0})
    for step in steps:
        lines.append({"step": step, "train/loss": 1 / step})
    path.write_bytes(path.read_bytes()[:-7])


def test_read_leaves_out_a_half_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _killed_run(path)
    assert [record.get("step") for record in read(path)] == [None, 10, 20, 30]


def test_truncate_drops_later_records_and_the_half_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _killed_run(path)
    kept = truncate_after(path, 20)
    assert [record.get("step") for record in kept] == [None, 10, 20]
    JsonLines(path).append({"step": 30})
    assert [record.get("step") for record in read(path)] == [None, 10, 20, 30]
    assert path.read_bytes().endswith(b"\n")
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_truncated_file_has_the_bytes_of_an_uninterrupted_one(tmp_path):
    for name, steps in (("killed", (1, 2, 3)), ("whole", (1, 2))):
        lines = JsonLines(tmp_path / name)
        for step in steps:
            lines.append({"step": step, "loss": np.float32(0.1) * step})
    truncate_after(tmp_path / "killed", 2)
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_truncate_of_a_run_killed_before_its_first_record(tmp_path):
    assert truncate_after(tmp_path / "metrics.jsonl", 5) == []
    assert not list(tmp_path.iterdir())


def test_opening_repairs_a_half_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _killed_run(path)
    JsonLines(path).append({"step": 41})
    assert [record.get("step") for record in read(path)] == [None, 10, 20, 30, 41]


def test_whole_last_record_without_line_end_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    JsonLines(path).append({"step": 3})
    assert [record["step"] for record in read(path)] == [1, 2, 3]


@pytest.mark.parametrize("broken", [b"{nonsense}", b"[1, 2]", b""])
def test_read_refuses_a_broken_whole_line(tmp_path, broken):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + broken + b"\n")
    with pytest.raises(InputError, match=r"^records: expected a JSON object on line 2 of "):
        read(path)


def test_read_refuses_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="found none at"):
        read(tmp_path / "metrics.jsonl")


def _events(path):
    """The events of a file, by TFRecord's layout: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def _scalars(path):
    return [(value.tag, event.step, value.simple_value) for event in _events(path) for value in event.summary.value]


RECORD = {
    "step": 7,
    "epoch": 2,
    "train/loss": np.float32(0.25),
    "validation/loss": float("nan"),
    "validation/recall_tail": None,
    "validation/per_class_recall": [0.5, 1.0],
}


def test_tensorboard_events_hold_the_finite_scalars(tmp_path):
    writer = records.tensorboard_writer(tmp_path)
    records.write_scalars(writer, RECORD)
    writer.close()
    (file,) = tmp_path.iterdir()
    assert _scalars(file) == [("epoch", 7, 2.0), ("train/loss", 7, 0.25)]


def _write_resumed_run(directory):
    """Steps 1..5, killed, resumed from the checkpoint of step 3 with other values."""
    for resumed_step, steps, value in ((None, range(1, 6), 1.0), (3, range(4, 8), 2.0)):
        writer = records.tensorboard_writer(directory, resumed_step=resumed_step)
        for step in steps:
            records.write_scalars(writer, {"step": step, "loss": value})
        writer.close()


def test_resumed_events_ask_for_a_purge_and_keep_both_files(tmp_path):
    _write_resumed_run(tmp_path)
    first, second = sorted(tmp_path.iterdir())
    assert _scalars(first) == [("loss", step, 1.0) for step in range(1, 6)]
    assert _scalars(second) == [("loss", step, 2.0) for step in range(4, 8)]
    from tensorboardX.proto.event_pb2 import SessionLog

    starts = [event.step for event in _events(second) if event.session_log.status == SessionLog.START]
    assert starts == [4]


def test_tensorboard_hides_what_was_purged(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _write_resumed_run(tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    read_back = [(event.step, event.value) for event in events.Scalars("loss")]
    assert read_back == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0), (7, 2.0)]


def test_scalars_need_a_step():
    with pytest.raises(InputError, match=r"^record: expected a key 'step', got \['loss'\]$"):
        records.write_scalars(None, {"loss": 1.0})
