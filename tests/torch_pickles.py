"""A writer of PyTorch's checkpoints, opcode by opcode, that needs no PyTorch and shares nothing with the reader."""

import struct
import zipfile

import numpy as np
import pytest

from imbal_jax.errors import InputError
from imbal_jax.models.torch_files import read_torch_file


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


def refused(path, match):
    """Checks that reading fails with one line that names the file."""
    with pytest.raises(InputError, match=match) as raised:
        read_torch_file(path)
    message = str(raised.value)
    assert "\n" not in message and str(path) in message and len(message) < 400 + len(str(path))


def assert_read_or_refused(path):
    try:
        arrays = read_torch_file(path)
    except InputError:
        return
    assert all(np.isfinite(array).all() for array in arrays.values())
