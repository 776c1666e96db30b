"""Converts a PyTorch checkpoint to safetensors, without PyTorch and without running what is in the file.

  python -m experiments.convert_checkpoint pytorch_model.bin model.safetensors [--overwrite]

Read are the zip files that torch.save has written since PyTorch 1.6, as a dict of tensors or with one such dict at
"state_dict" or "model". A file that holds anything but tensors and plain containers is refused, and the error names
what it would have called. Names, shapes, types and layouts stay as they are; tied tensors are written once for each of
their names. The new file is read back and compared before it appears under its name.
"""

import argparse
import os
import pathlib
import sys

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from imbal_jax.errors import CheckpointError, InputError
from imbal_jax.main import guarded
from imbal_jax.models.torch_files import read_torch_file


def convert(source: pathlib.Path, output: pathlib.Path, *, overwrite: bool = False) -> tuple[int, int]:
    """Writes the tensors of a PyTorch checkpoint to a safetensors file, which appears complete or not at all.

    Args:
      source: a zip file that torch.save has written.
      output: the file to write, *.safetensors; its folder is made if absent.
      overwrite: whether the output may exist.

    Returns:
      The numbers of tensors and of parameters: all numbers of the file, tied ones once for each name, and buffers.

    Raises:
      InputError: the source is refused (see `read_torch_file`), or the output has another ending or exists.
      CheckpointError: the output cannot be written as it should.
    """
    if output.suffix != ".safetensors":
        raise InputError(f"OUTPUT: expected a name that ends in .safetensors, got {output}")
    if output.exists() and not overwrite:
        raise InputError(f"OUTPUT: expected a new file, got {output}, which exists; --overwrite replaces it")
    # save_file writes the memory of an array from its start on, whatever the strides.
    tensors = {name: np.asarray(array, order="C") for name, array in read_torch_file(source).items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        write_checked(tensors, temporary)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return len(tensors), sum(array.size for array in tensors.values())


def write_checked(tensors: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes contiguous arrays, reads them back and compares name, type, shape and every byte.

    Raises:
      CheckpointError: they cannot be written or are not the same.
    """
    path.touch()
    mode = path.stat().st_mode  # what the user's umask allows; save_file allows nobody else anything
    try:
        # Transformers asks for the format, by which it means the layout of the arrays.
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(mode)
        written = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"OUTPUT: expected tensors that safetensors can hold, got: {error}") from error
    faulty = sorted(tensors.keys() ^ written.keys())
    faulty += [name for name in tensors.keys() & written.keys() if _content(tensors[name]) != _content(written[name])]
    if faulty:
        raise CheckpointError(f"OUTPUT: expected to read back what was written, got another tensor at {faulty[0]!r}")


def _content(array: np.ndarray) -> tuple[np.dtype, tuple[int, ...], bytes]:
    """What makes two arrays the same, NaNs included."""
    return array.dtype, array.shape, array.tobytes()


def run(arguments: list[str]) -> int:
    """Converts PyTorch's weights to a file; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.convert_checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("input", type=pathlib.Path, metavar="INPUT", help="a .bin, .pt or .pth file")
    parser.add_argument("output", type=pathlib.Path, metavar="OUTPUT.safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    options = parser.parse_args(arguments)
    source, output = options.input.expanduser(), options.output.expanduser()
    tensors, parameters = convert(source, output, overwrite=options.overwrite)
    print(f"written to {output}: {tensors} tensors, {parameters:,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
