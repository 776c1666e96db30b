"""The reader of PyTorch's checkpoints: on files of PyTorch, on files put together opcode by opcode, on hostile ones."""

import argparse
import copyreg
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from imbal_jax.errors import InputError
from imbal_jax.models import torch_files
from imbal_jax.models.torch_files import read_torch_file

# ---- A writer of pickles that needs no PyTorch and shares nothing with the reader.


class Call:
    """REDUCE: a name of a module, called."""

    def __init__(self, name, *arguments, state=None, items=()):
        self.name, self.arguments, self.state, self.items = name, arguments, state, items


class Reference:
    """BINPERSID: what the tuple refers to."""

    def __init__(self, *content):
        self.content = content


class Raw(bytes):
    """Opcodes as they are."""


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def name(value):
    """GLOBAL."""
    module, _, attribute = value.rpartition(".")
    return Raw(f"c{module}\n{attribute}\n".encode())


def opcodes(value):
    """The opcodes of protocol 2 that leave a value on the stack."""
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, Call):
        code = name(value.name) + opcodes(value.arguments) + b"R"
        code += b"".join(opcodes(key) + opcodes(item) + b"s" for key, item in value.items)
        return code + (b"" if value.state is None else opcodes(value.state) + b"b")
    if isinstance(value, Reference):
        return opcodes(value.content) + b"Q"
    if isinstance(value, bool) or value is None:
        return {True: b"\x88", False: b"\x89", None: b"N"}[value]
    if isinstance(value, int):
        size = value.bit_length() // 8 + 1
        return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    assert type(value) is dict, value
    return b"}(" + b"".join(opcodes(key) + opcodes(item) for key, item in value.items()) + b"u"


def program(value):
    return b"\x80\x02" + opcodes(value) + b"."


def tensor(key="0", shape=(2, 3), strides=(3, 1), *, offset=0, numbers=6, storage="Float", hooks=None, more=()):
    """As PyTorch pickles a tensor."""
    reference = Reference("storage", name(f"torch.{storage}Storage"), key, "cpu", numbers)
    hooks = Call("collections.OrderedDict") if hooks is None else hooks
    return Call("torch._utils._rebuild_tensor_v2", reference, offset, shape, strides, False, hooks, *more)


NUMBERS = np.arange(6, dtype=np.float32)


def write(path, content, storages=None, *, members=None, byteorder=b"little", compression=zipfile.ZIP_STORED):
    """A checkpoint file; `content` is a value or a finished program, `members` come on top of the usual ones."""
    code = content if type(content) is bytes else program(content)
    files = {"archive/data.pkl": code, "archive/version": b"3\n"}
    files |= {} if byteorder is None else {"archive/byteorder": byteorder}
    storages = {"0": NUMBERS} if storages is None else storages
    files |= {f"archive/data/{key}": np.asarray(array).tobytes() for key, array in storages.items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, data in (files | (members or {})).items():
            archive.writestr(member, data)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.bin"


def refused(path, match):
    """Checks that reading fails with one line that names the file."""
    with pytest.raises(InputError, match=match) as raised:
        read_torch_file(path)
    message = str(raised.value)
    assert "\n" not in message and str(path) in message and len(message) < 400 + len(str(path))


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


# ---- Programs that do something when they are unpickled.


class Reduced:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(marker):
    """Programs that create the file `marker` when they are unpickled, and what their refusal names."""
    command = f"touch {marker}"
    opening = f"open({str(marker)!r}, 'w').close()"
    system, execution = Call("os.system", command), Call("builtins.exec", opening)
    arguments = opcodes((command,))
    attribute = Call("builtins.getattr", Call("builtins.__import__", "os"), "system")
    found = {
        "call": (program(system), "'os.system'"),
        "exec": (program(execution), "'builtins.exec'"),
        "eval": (program(Call("builtins.eval", opening)), "'builtins.eval'"),
        "subprocess": (program(Call("subprocess.getoutput", command)), "'subprocess.getoutput'"),
        "value": (program({"a": system}), "'os.system'"),
        "key": (program({system: "a"}), "'os.system'"),
        "item": (program(Call("collections.OrderedDict", items=[("a", execution)])), "'builtins.exec'"),
        "argument": (program(Call("collections.OrderedDict", (("a", system),))), "'os.system'"),
        "state": (program(Call("collections.OrderedDict", state={"_metadata": system})), "'os.system'"),
        "getattr": (b"\x80\x02" + opcodes(attribute) + arguments + b"R.", "'builtins.getattr'"),
        "inst": (b"(" + text(command) + b"ios\nsystem\n.", "'os.system'"),
        "obj": (b"(" + name("os.system") + text(command) + b"o.", "'os.system'"),
        "after the end": (program({"a": system}) + program({"a": tensor()}), "'os.system'"),
        "dotted": (b"\x80\x04\x8c\nsubprocess\x8c\x09os.system\x93" + arguments + b"R.", "'subprocess.os.system'"),
        "through an allowed module": (
            b"\x80\x04\x8c\x0bcollections\x8c\x11_sys.modules.copy\x93)R0" + opcodes(system) + b".",
            "'collections._sys.modules.copy'",
        ),
    }
    for protocol in range(6):
        code = pickle.dumps(Reduced(os.system, command), protocol)
        found[f"protocol {protocol}"] = (code, f"'{os.system.__module__}.system'")
    return found


@pytest.mark.parametrize("attack", attacks("").keys())
def test_nothing_is_executed(tmp_path, path, attack):
    marker = tmp_path / "marker"
    code, named = attacks(marker)[attack]
    refused(write(path, code), f"got a use of {named}")
    assert not marker.exists()
    pickle.loads(code)  # the attack is one
    assert marker.exists()


@pytest.mark.parametrize("attack", attacks("").keys())
def test_nothing_is_executed_without_the_first_gate(tmp_path, path, attack, monkeypatch):
    monkeypatch.setattr(torch_files, "_screen", lambda code: None)
    marker = tmp_path / "marker"
    code, named = attacks(marker)[attack]
    refused(write(path, code), f"got a use of {named}")
    assert not marker.exists()


def test_registered_extensions_are_not_executed(tmp_path, path):
    marker = tmp_path / "marker"
    code = b"\x80\x02\x82\xf0" + opcodes((f"touch {marker}",)) + b"R."
    copyreg.add_extension("os", "system", 0xF0)
    try:
        pickle.loads(code)
        marker.unlink()  # from now on the function is cached, and find_class is not asked again
        refused(write(path, code), "got opcode EXT1")
        assert not marker.exists()
    finally:
        copyreg.remove_extension("os", "system", 0xF0)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (argparse.Namespace(seed=1), "argparse.Namespace"),
        (np.float64(1.5), r"numpy\.\S*multiarray.scalar"),
        (np.ones(2), r"numpy\.\S*multiarray\._reconstruct|numpy\.\S*numeric\._frombuffer"),
        (bytearray(b"a"), r"(__builtin__|builtins)\.bytearray"),
        (1j, r"(__builtin__|builtins)\.complex"),
        (InputError, "imbal_jax.errors.InputError"),
    ],
    ids=["namespace", "numpy scalar", "numpy array", "bytearray", "complex", "class"],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_other_objects_are_refused_by_name(path, value, named, protocol):
    refused(write(path, pickle.dumps({"a": value}, protocol)), f"got a use of '({named})'")


@pytest.mark.parametrize(
    "named",
    [
        "omegaconf.dictconfig.DictConfig",
        "torch.load",
        "torch.storage._load_from_bytes",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_sparse_tensor",
        "torch.storage.UntypedStorage",
        "torch.ComplexFloatStorage",
        "torch._utils.os.system",
        "builtins.dict",
        "no_such_module.name",
    ],
)
def test_other_names_are_refused(path, named):
    refused(write(path, {"a": Call(named, "x")}), f"got a use of '{named}'")


def test_names_are_told_on_one_short_line(path):
    refused(write(path, b"cos\x1b[2J\rx\n" + b"y" * 10_000 + b"\n."), "got a use of 'os")


def long_tuple(depth):
    """Tuples in tuples, each opcode's result the only item of the next."""
    return Raw(b"N" + b"\x85" * depth)


def shared_tuples(depth):
    """Tuples whose two items are the same tuple: 2 ** depth leaves for whoever walks them."""
    return Raw(b"N\x85q\x00" + b"".join(b"h%c\x86q%c" % (level, level + 1) for level in range(depth)))


@pytest.mark.parametrize(
    ("code", "match"),
    [
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "expected memo index 0, got 2147483647"),
        (b"\x80\x02Nq\x00Nq\x00.", "expected memo index 1, got 0"),
        (b"\x80\x02Nh\x05.", "damaged"),
        (program({"a": 1, shared_tuples(60): 1}), "strings or integers as keys"),
        (b"\x80\x02}" + shared_tuples(60) + b"Ns.", "strings or integers as keys"),
        (b"\x80\x02}" + shared_tuples(60) + b"NbNs.", "strings or integers as keys"),
        (program({long_tuple(100_000): 1}), "strings or integers as keys"),
        (program({"a": long_tuple(100_000)}), "got tuple at 'a'"),
        (program({"a": shared_tuples(60)}), "got tuple at 'a'"),
        (program({Raw(name("torch.FloatStorage")): 1}), "strings or integers as keys"),
        (program(shared_tuples(60))[:-1] + b"Q.", "expected references to storages"),
        (b"\x80\x02}2.", "got opcode DUP"),
        (b"\x80\x02}0.", "got opcode POP"),
        (b"\x80\x04\x8f.", "got opcode EMPTY_SET"),
        (b"\x80\x02" + name("collections.OrderedDict") + b")\x81.", "got opcode NEWOBJ"),
        (b"\x80\x02" + name("torch.FloatStorage") + b")R.", "not callable"),
        (b"\x80\x02}" + b")R.", "not callable"),
        (b"\x80\x04NN\x93.", "got a use of"),
        (b"\x80\x04\x93.", "damaged"),
        (b"\x80\x02R.", "damaged"),
        (b"\x80\x02u.", "damaged"),
        (b"\x80\x02}(Nu.", "strings or integers|damaged"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.", "damaged"),
        (b"\x80\x02X\xff\xff\xff\xffab.", "damaged"),
        (b"\x80\x7f}.", "damaged"),
        (b"\x80\x02}", "damaged"),
        (b"", "damaged"),
        (b"\xff" * 50, "damaged"),
    ],
)
def test_tricks_of_the_stack_and_the_memo_are_refused(path, code, match):
    refused(write(path, code), match)


@pytest.mark.parametrize(
    "target",
    [
        Raw(name("torch._utils._rebuild_tensor_v2")),
        Raw(name("collections.OrderedDict")),
        Raw(name("torch.FloatStorage")),
        Call("collections.OrderedDict"),
        tensor(),
        Raw(b"}"),
    ],
    ids=["function", "class", "storage type", "OrderedDict", "tensor", "dict"],
)
@pytest.mark.parametrize(
    "state",
    [
        {"x": 1},
        (None, {"x": 1}),
        (None, {"function": 1}),
        (None, {"shape": (9, 9)}),
        (None, {"__class__": 1}),
        (None, {"__setstate__": 1}),
        {"items": Raw(name("collections.OrderedDict"))},
    ],
    ids=str,
)
def test_attributes_are_refused(path, target, state):
    code = b"\x80\x02" + text("a") + opcodes(target) + opcodes(state) + b"b\x86."
    refused(write(path, code), "damaged|expected no attributes of an OrderedDict but _metadata")
    assert list(read_torch_file(write(path, {"a": tensor()}))) == ["a"]  # nothing has been changed


# ---- Tensors that do not fit.


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"offset": 1}, "inside of storage 0, got one beyond its end"),
        ({"shape": (2, 4)}, "inside of storage 0"),
        ({"strides": (4, 1)}, "inside of storage 0"),
        ({"shape": (), "strides": (), "offset": 6}, "inside of storage 0"),
        ({"shape": (2**62, 2**62), "strides": (4, 4)}, "inside of storage 0"),
        ({"offset": -1}, "expected a tensor's storage, offset, shape and strides"),
        ({"shape": (-2, 3)}, "expected a tensor's storage, offset, shape and strides"),
        ({"strides": (-3, 1), "offset": 3}, "expected a tensor's storage, offset, shape and strides"),
        ({"shape": (True, 3)}, "expected a tensor's storage, offset, shape and strides"),
        ({"shape": ("2", 3)}, "expected a tensor's storage, offset, shape and strides"),
        ({"shape": 6}, "expected a tensor's storage, offset, shape and strides"),
        ({"offset": None}, "expected a tensor's storage, offset, shape and strides"),
        ({"strides": (1,)}, "as many strides as axes, got 1 for 2"),
        ({"numbers": 7}, "'data/0': expected 28 bytes, got 24"),
        ({"numbers": 7, "shape": (7,), "strides": (1,)}, "'data/0': expected 28 bytes, got 24"),
        ({"numbers": 5, "shape": (5,), "strides": (1,)}, "'data/0': expected 20 bytes, got 24"),
        ({"storage": "Double"}, "'data/0': expected 48 bytes, got 24"),
        ({"numbers": 10**30}, "'data/0': expected 4(0{30}) bytes, got 24"),
        ({"numbers": -6}, "expected a storage's size"),
        ({"numbers": "6"}, "expected a storage's size"),
        ({"key": "1"}, "'data/1': expected 24 bytes, got no such file"),
        ({"key": "../0"}, "expected a storage's type and number"),
        ({"key": "\u0663"}, "expected a storage's type and number"),
        ({"key": 0}, "expected a storage's type and number"),
        ({"more": ({"conj": True},)}, "conjugate or negative"),
        ({"more": (None, 1)}, "damaged.*positional"),
        ({"shape": (10**15,), "strides": (0,)}, "at most 16 times the file's .* bytes of tensors"),
        ({"shape": (0, 2**62, 2**62), "strides": (1, 1, 1)}, "at most 16 times the file's .* bytes of tensors"),
        ({"shape": (1,) * 65, "strides": (1,) * 65}, "damaged"),
    ],
)
def test_tensors_outside_of_their_storage_are_refused(path, options, match):
    refused(write(path, {"a": tensor(**({"numbers": 6} | options))}), match.replace("4(0{30})", "40{30}"))


@pytest.mark.parametrize(
    ("reference", "match"),
    [
        (("storage", Raw(name("torch.FloatStorage")), "0", "cpu"), "expected references to storages"),
        (("module", Raw(name("torch.FloatStorage")), "0", "cpu", 6), "expected references to storages"),
        (("storage", Raw(name("collections.OrderedDict")), "0", "cpu", 6), "expected a storage's type and number"),
        (("storage", "FloatStorage", "0", "cpu", 6), "expected a storage's type and number"),
    ],
)
def test_other_references_are_refused(path, reference, match):
    rebuilt = Call("torch._utils._rebuild_tensor_v2", Reference(*reference), 0, (6,), (1,), False, None)
    refused(write(path, {"a": rebuilt}), match)


def test_what_is_rebuilt_must_be_a_tensor(path):
    refused(write(path, {"a": Call("torch._utils._rebuild_parameter", 1, True, None)}), "expected a parameter to be a")
    fake = Call("torch._utils._rebuild_tensor_v2", (1, 2, 3), 0, (6,), (1,), False, None)
    refused(write(path, {"a": fake}), "expected a tensor's storage")
    refused(write(path, {"a": Call("collections.OrderedDict", ())}), "damaged.*positional")


def test_many_names_for_one_large_tensor_are_refused(path):
    large = {"0": np.zeros(100_000, np.float32)}
    whole = {"numbers": 100_000, "shape": (100_000,), "strides": (1,)}
    few = {f"tied{number}": tensor(**whole) for number in range(4)}
    many = {f"tied{number}": tensor(**whole) for number in range(40)}
    assert len(read_torch_file(write(path, few, large))) == 4
    refused(write(path, many, large), "at most 16 times the file's .* bytes of tensors, got 16000000")


# ---- Dicts that are not of tensors.


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ((1, 2), "expected a dict of tensors, got tuple"),
        (tensor(), "expected a dict of tensors, got Tensor"),
        ({}, "got an empty one"),
        ({"model": {}}, "got an empty one"),
        ({"a": tensor(), "epoch": 1}, "got int at 'epoch'"),
        ({"a": {"b": tensor()}}, "got dict at 'a'"),
        ({"a": Call("collections.OrderedDict")}, "got OrderedDict at 'a'"),
        ({"model": {"model": {"a": tensor()}}}, "got dict at 'model'"),
        ({"model": {"a": tensor()}, "state_dict": {"a": tensor()}}, "got several: .* at state_dict, model"),
        ({"model": {"a": tensor()}, "a": tensor()}, "got several: the whole and those at model"),
        ({0: tensor()}, "expected printable names of tensors, got '0'"),
        ({"a\nb": tensor()}, r"expected printable names of tensors, got 'a\\nb'"),
    ],
)
def test_other_contents_are_refused(path, content, match):
    refused(write(path, content), match)


def test_a_tensor_may_be_called_model(path):
    assert list(read_torch_file(write(path, {"model": tensor(), "state_dict": tensor()}))) == ["model", "state_dict"]


# ---- Faulty zip files.


def test_missing_and_other_files_are_refused(tmp_path, path):
    refused(path, "path: expected a PyTorch checkpoint, found no file at")
    refused(tmp_path, "path: expected a PyTorch checkpoint, found no file at")
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    refused(path, r"zip file as torch.save writes it since PyTorch 1.6, got one that starts with b'\\x80")
    path.write_bytes(b"")
    refused(path, "got one that starts with b''")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"compression": zipfile.ZIP_DEFLATED}, "'archive/data.pkl': .* neither compressed nor encrypted"),
        ({"members": {"other/data/0": b""}}, "expected distinct plain names of zip members, got 'other/data/0'"),
        ({"members": {"other/x": b""}}, "expected a zip file with one folder"),
        ({"members": {"x": b""}}, "expected a zip file with one folder"),
        ({"members": {"archive/../../x": b""}}, "plain names of zip members, got 'archive/../../x'"),
        ({"members": {"/archive/x": b""}}, "plain names of zip members, got '/archive/x'"),
        ({"members": {"archive/a\\b": b""}}, "plain names of zip members"),
        ({"members": {"archive/": b""}}, "plain names of zip members, got 'archive/'"),
    ],
)
def test_other_zips_are_refused(path, options, match):
    refused(write(path, {"a": tensor()}, **options), match)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_a_name_are_refused(path):
    write(path, {"a": tensor()})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data.pkl", program({"b": tensor()}))
    refused(path, "expected distinct plain names of zip members, got 'archive/data.pkl'")


def test_a_zip_without_a_pickle_is_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<a/>")
    refused(path, "expected a zip file with one folder that has a data.pkl")


def central(data, member):
    """Where the entry of a member in the central directory starts."""
    return data.rindex(b"PK\x01\x02", 0, data.rindex(member.encode()))


@pytest.mark.parametrize(
    ("at", "value", "match"),
    [
        (8, struct.pack("<H", 1), "neither compressed nor encrypted"),
        (10, struct.pack("<H", 8), "neither compressed nor encrypted"),
        (20, struct.pack("<II", 2**31, 2**31), "zip members of at most the file's"),
        (24, struct.pack("<I", 2**31), "neither compressed nor encrypted"),
        (20, struct.pack("<II", 20, 20), "expected 24 bytes, got 20"),
        (16, struct.pack("<I", 1), "damaged.*CRC"),
        (42, struct.pack("<I", 0), "damaged"),
    ],
    ids=[
        "encrypted",
        "compressed",
        "larger than the file",
        "larger than stored",
        "smaller",
        "checksum",
        "another place",
    ],
)
def test_lies_in_the_central_directory_are_refused(path, at, value, match):
    data = bytearray(write(path, {"a": tensor()}).read_bytes())
    start = central(data, "archive/data/0") + at
    data[start : start + len(value)] = value
    path.write_bytes(data)
    refused(path, match)


def test_a_very_long_program_is_refused(path):
    refused(write(path, b"\x80\x02" + b"N" * 2**22), "data.pkl: expected at most 4194304 bytes, got 4194306")


def test_damage_is_always_told_as_bad_input(path):
    whole = write(path, {"a": tensor(), "b": tensor(shape=(6,), strides=(1,))}).read_bytes()
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        refused(path, "expected")
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data)
        assert_read_or_refused(path)


def test_random_programs_are_read_or_refused(path):
    metadata = {"_metadata": Call("collections.OrderedDict", items=[("", {"version": 1})])}
    code = program(Call("collections.OrderedDict", items=[("a", tensor()), ("b", tensor())], state=metadata))
    rng = np.random.default_rng(0)
    for _ in range(600):
        data = bytearray(code)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        assert_read_or_refused(write(path, bytes(data)))


def assert_read_or_refused(path):
    try:
        arrays = read_torch_file(path)
    except InputError:
        return
    assert all(np.isfinite(array).all() for array in arrays.values())
