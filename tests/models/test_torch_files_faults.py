"""The reader of PyTorch's checkpoints on damage and lies: tensors that do not fit, other contents, faulty zip files."""

import struct
import zipfile

import numpy as np
import pytest

from imbal_jax.models.torch_files import read_torch_file
from tests.torch_pickles import Call, Raw, Reference, assert_read_or_refused, name, program, refused, tensor, write


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.bin"


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
