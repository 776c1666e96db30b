"""Reads PyTorch's zip checkpoints (`.bin`, `.pt`, `.pth`) without PyTorch and without running what is in them.

Such a file holds a pickle, a program that may call any function, and the bytes of the tensors. Here the program passes
two gates. First its opcodes are walked without being run: only those that `torch.save` writes for tensors may occur,
only the names in `_ALLOWED`, no memo index out of turn (a large one would reserve as much memory), and only strings
and integers as keys (hashing nested tuples can overflow the C stack or take for ever). Then an unpickler runs that
knows no other names either, and for which they stand for the records of this module: no class or function of another
module is ever looked up or called. The bytes of a tensor are read only once it is known to be wanted and to fit.
"""

import io
import math
import pathlib
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from imbal_jax.errors import InputError

_MOST_PICKLED = 1 << 22  # bytes; a program of this size describes 25,000 tensors
_MOST_SHARING = 16  # bytes of all tensors per byte of the file; tied and expanded tensors make it more than one
_NESTED = ("state_dict", "model")  # where training scripts keep the tensors within a checkpoint

_CONSTANTS = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"}
_PUTS = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"BINGET", "LONG_BINGET"}
_OPCODES = (
    _CONSTANTS
    | _PUTS
    | _GETS
    | {"PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT"}
    | {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"}
    | {"EMPTY_DICT", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID"}
)


class _Callable(NamedTuple):
    """What stands for a function or class of another module; being a tuple, it cannot be changed by the program."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class _StorageType(NamedTuple):
    """What stands for one of PyTorch's storage classes."""

    dtype: np.dtype


class _Storage(NamedTuple):
    """Bytes in the file that tensors are views of; not read yet."""

    key: str  # of the member data/<key>
    dtype: np.dtype
    size: int  # in numbers


class _Tensor(NamedTuple):
    """A tensor whose numbers all lie in its storage; not read yet."""

    storage: _Storage
    offset: int  # in numbers, as are the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of a contiguous copy, axes of length 0 counted as 1."""
        return math.prod(max(length, 1) for length in self.shape) * self.storage.dtype.itemsize


class _OrderedDict(dict):
    """What stands for collections.OrderedDict."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Drops the versions of the modules, the one attribute that PyTorch gives to state dicts."""
        if type(state) is not dict or set(state) != {"_metadata"}:
            raise InputError("expected no attributes of an OrderedDict but _metadata, got others")


def read_torch_file(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a checkpoint that `torch.save` has written, PyTorch 1.6 or later.

    Nothing in the file is executed. It may be a dict of tensors, or a dict with one such dict at "state_dict" or at
    "model", whose other entries (epochs, an optimiser's state) are then left aside. Dicts, lists, tuples, numbers,
    strings, OrderedDicts, tensors and parameters may occur in it and nothing else may.

    Args:
      path: the file.

    Returns:
      Read-only arrays by name, in PyTorch's layouts and types (bfloat16 as ml_dtypes.bfloat16), strided as they were.
      Tied tensors share memory.

    Raises:
      InputError: the file is missing, not such a zip, damaged, big-endian or ambiguous, or holds anything else.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"path: expected a PyTorch checkpoint, found no file at {path}")
    with path.open("rb") as file:
        try:
            return _read(file, path.stat().st_size)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        # Whatever a hostile file breaks in zipfile, pickle or NumPy on its way is a fault of the file.
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise InputError(f"{path}: expected a whole PyTorch checkpoint, got a damaged one: {reason}") from error


def _read(file: IO[bytes], size: int) -> dict[str, np.ndarray]:
    """The arrays of an open checkpoint of `size` bytes."""
    start = file.read(4)
    if start != b"PK\x03\x04":
        raise InputError(
            f"expected a zip file as torch.save writes it since PyTorch 1.6, got one that starts with {start!r};"
            " load older files with PyTorch and save them again"
        )
    with zipfile.ZipFile(file) as archive:
        members = _members(archive, size)
        if "byteorder" in members and (order := archive.read(members["byteorder"])[:20]) != b"little":
            raise InputError(f"byteorder: expected little, got {order!r}")
        if members["data.pkl"].file_size > _MOST_PICKLED:
            raise InputError(f"data.pkl: expected at most {_MOST_PICKLED} bytes, got {members['data.pkl'].file_size}")
        program = archive.read(members["data.pkl"])
        _screen(program)
        tensors = _state_dict(_Unpickler(io.BytesIO(program)).load())
        total = sum(tensor.nbytes for tensor in tensors.values())
        if total > _MOST_SHARING * size:
            raise InputError(f"expected at most {_MOST_SHARING} times the file's {size} bytes of tensors, got {total}")
        storages = {tensor.storage for tensor in tensors.values()}
        stored = {storage: _read_storage(archive, members, storage) for storage in storages}
        return {name: _array(tensor, stored[tensor.storage]) for name, tensor in tensors.items()}


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The files of the archive by their names below the one folder they are in."""
    members: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    for info in archive.infolist():
        folder, _, name = info.filename.partition("/")
        if name in members or {"", ".", ".."} & set(info.filename.split("/")) or "\\" in info.filename:
            raise InputError(f"expected distinct plain names of zip members, got {_shown(info.filename)}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise InputError(f"{_shown(info.filename)}: expected a zip member that is neither compressed nor encrypted")
        members[name] = info
        folders.add(folder)
    if len(folders) != 1 or "data.pkl" not in members:
        raise InputError("expected a zip file with one folder that has a data.pkl, as torch.save writes it")
    total = sum(info.file_size for info in members.values())
    if total > size:
        raise InputError(f"expected zip members of at most the file's {size} bytes, got {total}")
    return members


def _screen(program: bytes) -> None:
    """Refuses a program by its opcodes; runs nothing.

    The stack holds the values of strings and integers and, of everything else, the kind that pickletools knows.
    """
    stack: list[Any] = []
    memo: list[Any] = []
    argument: Any
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name in ("GLOBAL", "INST"):
            _allowed(*argument.split(" ", 1))
        if opcode.name == "STACK_GLOBAL":
            _allowed(*stack[-2:])
        if opcode.name not in _OPCODES:
            raise InputError(f"data.pkl: expected only what torch.save writes for tensors, got opcode {opcode.name}")
        if opcode.name in _PUTS:
            if argument not in (None, len(memo)):
                raise InputError(f"data.pkl: expected memo index {len(memo)}, got {argument}")
            memo.append(stack[-1])
        elif opcode.name in _GETS:
            stack.append(memo[argument])
        else:
            taken = _take(stack, opcode.stack_before)
            keys = {"SETITEM": taken[1:2], "SETITEMS": taken[::2]}.get(opcode.name, [])
            if not all(isinstance(key, str | int) for key in keys):
                raise InputError("data.pkl: expected strings or integers as keys of a dict, got others")
            stack += [argument] if opcode.name in _CONSTANTS else opcode.stack_after


def _take(stack: list[Any], before: list[Any]) -> list[Any]:
    """Takes from the stack what an opcode does; returns it, or only what is above the mark if it takes that."""
    if pickletools.markobject not in before:
        taken = stack[len(stack) - len(before) :]
        del stack[len(stack) - len(before) :]
        return taken
    above = stack[::-1].index(pickletools.markobject)
    taken = stack[len(stack) - above :]
    del stack[len(stack) - above - (len(before) - 1) :]
    return taken


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows the names in `_ALLOWED` and PyTorch's references to storages."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name."""
        return _allowed(module, name)

    def persistent_load(self, reference: Any) -> _Storage:
        """The storage that ("storage", type, key, device, number of elements) refers to."""
        if type(reference) is not tuple or len(reference) != 5 or reference[0] != "storage":
            raise InputError("data.pkl: expected references to storages, got another one")
        _, kind, key, _, size = reference
        if not isinstance(kind, _StorageType) or type(key) is not str or not (key.isascii() and key.isdecimal()):
            raise InputError("data.pkl: expected a storage's type and number, got something else")
        if not _are_lengths((size,)):
            raise InputError("data.pkl: expected a storage's size, a whole number >= 0, got something else")
        return _Storage(key, kind.dtype, size)


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> _Tensor:
    """What stands for torch._utils._rebuild_tensor_v2."""
    if not isinstance(storage, _Storage) or not all(map(_are_lengths, ((offset,), shape, strides))):
        raise InputError("data.pkl: expected a tensor's storage, offset, shape and strides, got something else")
    if len(shape) != len(strides):
        raise InputError(f"data.pkl: expected as many strides as axes, got {len(strides)} for {len(shape)}")
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise InputError(f"data.pkl: expected tensors inside of storage {storage.key[:20]}, got one beyond its end")
    if metadata:
        raise InputError("data.pkl: expected plain tensors, got one marked as conjugate or negative")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(data: Any, requires_grad: Any, hooks: Any) -> _Tensor:
    """What stands for torch._utils._rebuild_parameter."""
    if not isinstance(data, _Tensor):
        raise InputError("data.pkl: expected a parameter to be a tensor, got something else")
    return data


_ALLOWED: dict[tuple[Any, Any], _Callable | _StorageType] = {
    ("collections", "OrderedDict"): _Callable(lambda: _OrderedDict()),
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Callable(_rebuild_parameter),
    ("torch", "DoubleStorage"): _StorageType(np.dtype(np.float64)),
    ("torch", "FloatStorage"): _StorageType(np.dtype(np.float32)),
    ("torch", "HalfStorage"): _StorageType(np.dtype(np.float16)),
    ("torch", "BFloat16Storage"): _StorageType(np.dtype(ml_dtypes.bfloat16)),
    ("torch", "LongStorage"): _StorageType(np.dtype(np.int64)),
    ("torch", "IntStorage"): _StorageType(np.dtype(np.int32)),
    ("torch", "ShortStorage"): _StorageType(np.dtype(np.int16)),
    ("torch", "CharStorage"): _StorageType(np.dtype(np.int8)),
    ("torch", "ByteStorage"): _StorageType(np.dtype(np.uint8)),
    ("torch", "BoolStorage"): _StorageType(np.dtype(np.bool_)),
}


def _allowed(module: Any, name: Any) -> _Callable | _StorageType:
    """What stands for a name of another module; refuses those that have nothing to do with tensors."""
    if (module, name) not in _ALLOWED:
        raise InputError(f"data.pkl: expected only tensors and containers, got a use of {_shown(f'{module}.{name}')}")
    return _ALLOWED[module, name]


def _shown(name: str) -> str:
    """A name from the file, safe to print and on one line."""
    return repr(name[:100])


def _are_lengths(values: Any) -> bool:
    """Whether this is a tuple of whole numbers >= 0."""
    return type(values) is tuple and all(type(value) is int and value >= 0 for value in values)


def _state_dict(content: Any) -> dict[str, _Tensor]:
    """The tensors by name, wherever in a checkpoint they are."""
    if not isinstance(content, dict):
        raise InputError(f"expected a dict of tensors, got {type(content).__name__.strip('_')}")
    nested = [key for key in _NESTED if isinstance(content.get(key), dict)]
    if len(nested) > 1 or (nested and any(isinstance(value, _Tensor) for value in content.values())):
        raise InputError(f"expected one dict of tensors, got several: the whole and those at {', '.join(nested)}")
    tensors = content[nested[0]] if nested else content
    if not tensors:
        raise InputError("expected a dict of tensors, got an empty one")
    for name, value in tensors.items():
        if not (isinstance(name, str) and name.isprintable()):
            raise InputError(f"expected printable names of tensors, got {_shown(str(name))}")
        if not isinstance(value, _Tensor):
            raise InputError(f"expected a dict of tensors, got {type(value).__name__.strip('_')} at {_shown(name)}")
    return tensors


def _read_storage(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], storage: _Storage) -> bytes:
    """The bytes of a storage, whose number the pickle and the zip must agree on."""
    name = f"data/{storage.key}"
    expected = storage.size * storage.dtype.itemsize
    if name not in members or members[name].file_size != expected:
        found = members[name].file_size if name in members else "no such file"
        raise InputError(f"{_shown(name)}: expected {expected} bytes, got {found}")
    return archive.read(members[name])


def _array(tensor: _Tensor, stored: bytes) -> np.ndarray:
    """A view of a storage's bytes."""
    itemsize = tensor.storage.dtype.itemsize
    # The stride of an axis of length 1 is never used and may be any number.
    steps = [stride if length > 1 else 0 for length, stride in zip(tensor.shape, tensor.strides, strict=True)]
    strides = tuple(step * itemsize for step in steps)
    return np.ndarray(tensor.shape, tensor.storage.dtype, stored, tensor.offset * itemsize, strides)
