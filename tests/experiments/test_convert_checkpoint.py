"""The command that converts PyTorch's checkpoints: what it writes, and that a refusal leaves nothing behind."""

import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from experiments import convert_checkpoint
from imbal_jax.errors import CheckpointError, InputError
from imbal_jax.main import EXIT_INPUT, guarded

NUMBERS = np.arange(6, dtype=np.float32)


def tensor(name, storage, strides):
    """The opcodes of a tensor [2, 3] in storage 0, under a name of at most 255 bytes."""
    return (
        b"X%c\x00\x00\x00%s" % (len(name), name)
        + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + b"X\x07\x00\x00\x00storagectorch\n%sStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ" % storage
        + b"K\x00K\x02K\x03\x86K%cK%c\x86\x89}tR" % strides
    )


def write(path, *tensors, code=None, numbers=NUMBERS):
    """A checkpoint of tensors, put together without PyTorch; or one with another program."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", code or b"\x80\x02}(" + b"".join(tensors) + b"u.")
        archive.writestr("archive/data/0", numbers.tobytes())
    return path


@pytest.fixture
def checkpoint(tmp_path):
    return write(tmp_path / "model.bin", tensor(b"rows", b"Float", (3, 1)), tensor(b"columns", b"Float", (1, 2)))


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_command_writes_the_tensors(tmp_path, checkpoint, capsys):
    output = tmp_path / "new" / "folder" / "model.safetensors"
    assert guarded(convert_checkpoint.run, [str(checkpoint), str(output)]) == 0
    assert capsys.readouterr().out == f"written to {output}: 2 tensors, 12 parameters\n"
    written = load_file(output)
    np.testing.assert_array_equal(written["rows"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(written["columns"], [[0, 2, 4], [1, 3, 5]])  # column by column in the file
    assert len(written) == 2 and files(output.parent) == ["model.safetensors"]
    with safe_open(output, "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_file_is_as_readable_as_any_other(tmp_path, checkpoint):
    convert_checkpoint.convert(checkpoint, tmp_path / "model.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_types_and_nans_are_kept(tmp_path):
    numbers = np.array([0, np.nan, -0.0, np.inf, 1, 2]).astype(ml_dtypes.bfloat16)
    source = write(tmp_path / "model.pt", tensor(b"a", b"BFloat16", (3, 1)), numbers=numbers)
    assert convert_checkpoint.convert(source, tmp_path / "model.safetensors") == (1, 6)
    written = load_file(tmp_path / "model.safetensors")["a"]
    assert written.dtype == ml_dtypes.bfloat16 and written.tobytes() == numbers.tobytes()


def test_converts_the_stored_hubert_exactly(tmp_path, shared_path):
    source = shared_path("fixtures/hubert_tiny/legacy/pytorch_model.bin")
    tensors, parameters = convert_checkpoint.convert(source, tmp_path / "model.safetensors")
    expected = load_file(shared_path("fixtures/hubert_tiny/legacy/model.safetensors"))
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == expected.keys() and tensors == 47
    assert parameters == sum(array.size for array in expected.values())
    for name, array in expected.items():
        np.testing.assert_array_equal(written[name], array, strict=True)


def test_torch_reads_the_same_from_both_files(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors_torch = pytest.importorskip("safetensors.torch")
    model = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 5), torch.nn.BatchNorm1d(3), torch.nn.Linear(4, 4).bfloat16())
    state = model.state_dict() | {"scalar": torch.tensor(1.5), "flags": torch.tensor([True, False])}
    state["transposed"] = torch.randn(3, 4).T
    torch.save(state, tmp_path / "model.pt")
    convert_checkpoint.convert(tmp_path / "model.pt", tmp_path / "model.safetensors")
    written = safetensors_torch.load_file(tmp_path / "model.safetensors")
    assert written.keys() == state.keys()
    for name, value in state.items():
        assert written[name].dtype == value.dtype and written[name].shape == value.shape
        assert torch.equal(written[name], value)


def test_an_existing_file_is_only_replaced_on_request(tmp_path, checkpoint, capsys):
    output = tmp_path / "model.safetensors"
    output.write_bytes(b"precious")
    assert guarded(convert_checkpoint.run, [str(checkpoint), str(output)]) == EXIT_INPUT
    assert f"OUTPUT: expected a new file, got {output}, which exists; --overwrite" in capsys.readouterr().err
    assert output.read_bytes() == b"precious"
    assert guarded(convert_checkpoint.run, [str(checkpoint), str(output), "--overwrite"]) == 0
    assert len(load_file(output)) == 2 and files(tmp_path) == ["model.bin", "model.safetensors"]


def test_hostile_files_are_told_in_one_line_and_leave_nothing(tmp_path, capsys):
    marker = tmp_path / "marker"
    code = b"cos\nsystem\n(S'touch %s'\ntR." % bytes(marker)
    source = write(tmp_path / "model.bin", code=code)
    output = tmp_path / "new" / "model.safetensors"
    assert guarded(convert_checkpoint.run, [str(source), str(output)]) == EXIT_INPUT
    error = capsys.readouterr().err
    assert error.startswith(f"error: {source}: ") and "'os.system'" in error and error.count("\n") == 1
    assert files(tmp_path) == ["model.bin"]
    pickle.loads(code)  # it would have
    assert marker.exists()


def test_a_refusal_keeps_the_file_that_was_to_be_replaced(tmp_path):
    source, output = tmp_path / "model.bin", tmp_path / "model.safetensors"
    source.write_bytes(b"no zip")
    output.write_bytes(b"precious")
    with pytest.raises(InputError, match="expected a zip file"):
        convert_checkpoint.convert(source, output, overwrite=True)
    assert output.read_bytes() == b"precious"


def test_other_endings_are_refused(tmp_path, checkpoint):
    with pytest.raises(InputError, match=r"OUTPUT: expected a name that ends in .safetensors, got .*model.bin"):
        convert_checkpoint.convert(checkpoint, checkpoint, overwrite=True)


def test_a_name_that_safetensors_reserves_is_refused(tmp_path):
    source = write(tmp_path / "model.bin", tensor(b"__metadata__", b"Float", (3, 1)))
    with pytest.raises(CheckpointError, match="OUTPUT: expected"):
        convert_checkpoint.convert(source, tmp_path / "model.safetensors")
    assert files(tmp_path) == ["model.bin"]


@pytest.mark.parametrize("fault", ["value", "type", "shape", "missing", "additional"])
def test_a_file_that_reads_back_differently_does_not_appear(tmp_path, checkpoint, monkeypatch, fault):
    def faulty(path):
        arrays = load_file(path)
        rows = arrays["rows"].copy()
        if fault == "value":
            rows[1, 2] = -0.0
        changed = {"type": rows.view(np.int32), "shape": rows.reshape(3, 2)}.get(fault, rows)
        others = {"missing": {}, "additional": {"rows": rows, "more": rows}}.get(fault, {"rows": changed})
        return {"columns": arrays["columns"]} | others

    monkeypatch.setattr(convert_checkpoint, "load_file", faulty)
    name = "more" if fault == "additional" else "rows"
    with pytest.raises(CheckpointError, match=f"OUTPUT: expected to read back what was written, got .* '{name}'"):
        convert_checkpoint.convert(checkpoint, tmp_path / "model.safetensors")
    assert files(tmp_path) == ["model.bin"]


def test_an_interrupted_write_leaves_nothing(tmp_path, checkpoint, monkeypatch):
    def interrupted(tensors, path, metadata):
        pathlib.Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint.convert(checkpoint, tmp_path / "model.safetensors")
    assert files(tmp_path) == ["model.bin"]


def test_an_unwritable_folder_is_told_in_one_line(tmp_path, checkpoint, capsys):
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "model.safetensors"
    assert guarded(convert_checkpoint.run, [str(checkpoint), str(output)]) == EXIT_INPUT
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(tmp_path / "file") in error and error.count("\n") == 1
