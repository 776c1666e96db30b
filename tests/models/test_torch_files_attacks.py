"""The reader of PyTorch's checkpoints on programs that do something when they are unpickled: nothing is executed."""

import argparse
import copyreg
import os
import pickle

import numpy as np
import pytest

from imbal_jax.errors import InputError
from imbal_jax.models import torch_files
from imbal_jax.models.torch_files import read_torch_file
from tests.torch_pickles import (
    Call,
    Raw,
    name,
    opcodes,
    program,
    refused,
    tensor,
    text,
    write,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.bin"


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
