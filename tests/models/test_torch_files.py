"""The reader of PyTorch's checkpoints on what it reads: files put together opcode by opcode, and PyTorch's own."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from imbal_jax.models.torch_files import read_torch_file
from tests.torch_pickles import NUMBERS, Call, refused, tensor, write


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.bin"


# ---- What is read.


def test_reads_the_stored_hubert(shared_path):
    expected = load_file(shared_path("fixtures/hubert_tiny/legacy/model.safetensors"))
    arrays = read_torch_file(shared_path("fixtures/hubert_tiny/legacy/pytorch_model.bin"))
    assert arrays.keys() == expected.keys() and len(arrays) == 47
    for key, array in arrays.items():
        assert array.dtype == expected[key].dtype
        np.testing.assert_array_equal(array, expected[key], strict=True)


@pytest.mark.parametrize(
    ("storage", "dtype"),
    [
        ("Double", np.float64),
        ("Float", np.float32),
        ("Half", np.float16),
        ("BFloat16", ml_dtypes.bfloat16),
        ("Long", np.int64),
        ("Int", np.int32),
        ("Short", np.int16),
        ("Char", np.int8),
        ("Byte", np.uint8),
        ("Bool", np.bool_),
    ],
)
def test_reads_every_type(path, storage, dtype):
    values = np.array([1, 0, 1, 3, -2, 100]).astype(dtype)
    array = read_torch_file(write(path, {"a": tensor(storage=storage)}, {"0": values}))["a"]
    np.testing.assert_array_equal(array, values.reshape(2, 3), strict=True)
    assert not array.flags.writeable


def test_reads_views_of_one_storage(path):
    content = {
        "whole": tensor(),
        "transposed": tensor(shape=(3, 2), strides=(1, 3)),
        "part": tensor(shape=(2,), strides=(2,), offset=1),
        "last": tensor(shape=(), strides=(), offset=5),
        "expanded": tensor(shape=(4, 2), strides=(0, 1), offset=4),
        "one": tensor(shape=(1, 1), strides=(10**30, 7), offset=2),
        "empty": tensor(shape=(0, 3), strides=(3, 1), offset=6),
    }
    arrays = read_torch_file(write(path, content))
    whole = NUMBERS.reshape(2, 3)
    expected = {
        "whole": whole,
        "transposed": whole.T,
        "part": NUMBERS[[1, 3]],
        "last": NUMBERS[5].reshape(()),
        "expanded": np.tile(NUMBERS[4:], (4, 1)),
        "one": NUMBERS[2].reshape(1, 1),
        "empty": np.zeros((0, 3), np.float32),
    }
    assert list(arrays) == list(expected)
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, expected[key], strict=True)
    assert np.shares_memory(arrays["whole"], arrays["transposed"])


def test_reads_parameters_and_the_metadata_of_state_dicts(path):
    parameter = Call("torch._utils._rebuild_parameter", tensor(), True, Call("collections.OrderedDict"))
    state = {"_metadata": Call("collections.OrderedDict", items=[("", {"version": 1})])}
    content = Call("collections.OrderedDict", items=[("a", parameter)], state=state)
    np.testing.assert_array_equal(read_torch_file(write(path, content))["a"], NUMBERS.reshape(2, 3))


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_reads_the_dict_of_tensors_of_a_training_checkpoint(path, key):
    # Momentum lies in storage 1, which is missing: what is not wanted is not read.
    optimiser = {"state": {0: {"momentum": tensor("1")}}, "betas": (0, 1)}
    arrays = read_torch_file(write(path, {"epoch": 3, key: {"a": tensor()}, "optimizer": optimiser}))
    assert list(arrays) == ["a"]


@pytest.mark.parametrize("byteorder", [None, b"little"])
def test_byte_order_is_little_unless_said_otherwise(path, byteorder):
    assert read_torch_file(write(path, {"a": tensor()}, byteorder=byteorder))["a"][1, 2] == 5
    refused(write(path, {"a": tensor()}, byteorder=b"big"), "byteorder: expected little, got b'big'")


# ---- Files of PyTorch itself.


def torch_state():
    """Tensors of all kinds, and as NumPy reads them."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 5))
    state = {
        "weight": weight,
        "tied": weight,
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(3, 2).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64),
        "steps": torch.tensor(2**40),
        "byte": torch.tensor([0, 255], dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "strided": torch.arange(24).reshape(2, 3, 4).transpose(0, 2)[1:, ::2],
        "expanded": torch.randn(3).expand(2, 3),
        "empty": torch.zeros(0, 3),
    }
    bits = {"bfloat16": torch.int16}
    expected = {key: value.detach().view(bits.get(key, value.dtype)).numpy() for key, value in state.items()}
    expected["bfloat16"] = expected["bfloat16"].view(ml_dtypes.bfloat16)
    return torch, state, expected


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_torch_saves(path, protocol):
    torch, state, expected = torch_state()
    torch.save(state, path, pickle_protocol=protocol)
    arrays = read_torch_file(path)
    assert list(arrays) == list(expected)
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, expected[key], strict=True)
    assert np.shares_memory(arrays["weight"], arrays["tied"])


def test_reads_a_torch_training_checkpoint(path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 5), torch.nn.BatchNorm1d(3))
    groups = [{"params": [parameter]} for parameter in model.parameters()]  # they share the tuple of betas
    optimiser = torch.optim.AdamW(groups)
    model(torch.randn(2, 2, 9)).square().sum().backward()
    optimiser.step()
    torch.save({"state_dict": model.state_dict(), "optimizer": optimiser.state_dict(), "loss": 0.5}, path)
    arrays = read_torch_file(path)
    assert list(arrays) == list(model.state_dict())
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(arrays[key], value.numpy(), strict=True)


def test_old_files_of_torch_are_refused(path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    refused(path, "expected a zip file as torch.save writes it since PyTorch 1.6")


@pytest.mark.parametrize("content", ["module", "complex", "sparse", "float8"])
def test_other_content_of_torch_is_refused(path, content):
    torch = pytest.importorskip("torch")
    made = {
        "module": lambda: torch.nn.Linear(2, 3),
        "complex": lambda: torch.ones(2, dtype=torch.complex64),
        "sparse": lambda: torch.ones(2, 2).to_sparse(),
        "float8": lambda: torch.ones(2).to(torch.float8_e4m3fn),
    }
    torch.save({"a": made[content]()}, path)
    refused(path, "expected only tensors and containers, got a use of 'torch")


def test_a_negated_view_of_torch_is_refused(path):
    torch = pytest.importorskip("torch")
    negated = torch.complex(torch.ones(2), torch.ones(2)).conj().imag
    torch.save({"a": negated}, path)  # the numbers stored are the positive ones
    refused(path, "expected plain tensors, got one marked as conjugate or negative")
