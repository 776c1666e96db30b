"""A user's arrays in an .npz file."""

import pathlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from imbal_jax.data.arrays import arrays
from imbal_jax.data.dataset import faults, require_valid
from imbal_jax.data.known import KNOWN
from imbal_jax.errors import InputError

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def example_arrays(seed=0, shape=(5, 6, 3)):
    """Valid arrays: 12 training and 6 test examples of 3 classes."""
    generator = np.random.default_rng(seed)
    return {
        "x_train": generator.integers(0, 256, (12, *shape), dtype=np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": generator.integers(0, 256, (6, *shape), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }


def save(folder, members, name="mine.npz"):
    """Writes the arrays and returns the path as text."""
    path = folder / name
    np.savez(path, **members)
    return str(path)


def test_reads_images_and_labels_unchanged(tmp_path):
    members = example_arrays()
    dataset = require_valid(arrays(path=save(tmp_path, members)))
    assert dataset.name == "mine"
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.validation is None
    for split in ("train", "test"):
        read = dataset.splits[split]
        assert read.images.dtype == np.uint8
        assert read.labels.dtype == np.int32
        np.testing.assert_array_equal(read.images, members[f"x_{split}"])
        np.testing.assert_array_equal(read.labels, members[f"y_{split}"])


def test_reads_a_validation_split(tmp_path):
    members = example_arrays()
    members |= {"x_val": members["x_train"][:4], "y_val": np.array([0, 1, 2, 3])}
    dataset = require_valid(arrays(path=save(tmp_path, members)))
    np.testing.assert_array_equal(dataset.validation.images, members["x_val"])
    assert dataset.num_classes == 4  # the largest label of all splits counts


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8"])
def test_floating_point_images_become_float32(tmp_path, dtype):
    members = example_arrays()
    members |= {name: (members[name] / 256).astype(dtype) for name in ("x_train", "x_test")}
    dataset = require_valid(arrays(path=save(tmp_path, members)))
    assert dataset.train.images.dtype == np.float32
    np.testing.assert_array_equal(dataset.train.images, members["x_train"].astype(np.float32))


def test_images_without_channels_get_one(tmp_path):
    members = example_arrays(shape=(7, 4))
    dataset = require_valid(arrays(path=save(tmp_path, members)))
    assert dataset.train.images.shape == (12, 7, 4, 1)
    np.testing.assert_array_equal(dataset.test.images[..., 0], members["x_test"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int64, np.uint64, ">i4"])
@pytest.mark.parametrize("column", [False, True])
def test_labels_of_any_integer_type_become_int32_vectors(tmp_path, dtype, column):
    members = example_arrays()
    for name in ("y_train", "y_test"):
        members[name] = members[name].astype(dtype).reshape((-1, 1) if column else -1)
    dataset = require_valid(arrays(path=save(tmp_path, members)))
    assert dataset.train.labels.dtype == np.int32
    np.testing.assert_array_equal(dataset.train.labels, np.arange(12) % 3)


def test_known_name_gives_the_class_names_and_the_name(tmp_path):
    dataset = arrays(path=save(tmp_path, example_arrays()), dataset="cifar10")
    assert dataset.name == "cifar10"
    assert dataset.class_names == KNOWN["cifar10"].class_names
    renamed = arrays(path=save(tmp_path, example_arrays()), dataset="my set")
    assert (renamed.name, renamed.num_classes) == ("my set", 3)


def test_home_directory_is_expanded(tmp_path, monkeypatch):
    save(tmp_path, example_arrays())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert arrays(path="~/mine.npz").name == "mine"


def test_compressed_files_are_read(tmp_path):
    np.savez_compressed(tmp_path / "mine.npz", **example_arrays())
    require_valid(arrays(path=str(tmp_path / "mine.npz")))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"y_train": np.arange(12) / 2}, "y_train: expected integers, got float64"),
        ({"y_train": np.arange(12) % 2 == 0}, "y_train: expected integers, got bool"),
        ({"y_test": np.array(list("abcdef"))}, "y_test: expected integers, got <U1"),
        (
            {"y_train": np.arange(12) % 3 - 1},
            r"y_train: expected labels in 0\.\.2, got -1 at index 0 \(4 such labels\)",
        ),
        (
            {"y_test": np.array([0, 1, 10**9, 0, 1, 2])},
            r"y_test: expected labels in 0\.\.17, got 1000000000 at index 2",
        ),
        ({"y_test": np.array([0, 1, 2, 0, 1, 2**63], np.uint64)}, "y_test: expected labels in .* at index 5"),
        ({"y_train": np.zeros((12, 3), np.int32)}, "y_train: expected a vector of class indices"),
        ({"y_test": np.arange(5) % 3}, "x_test and y_test: expected the same length, got 6 and 5"),
        ({"x_train": np.full((12, 5, 6, 3), np.nan)}, "x_train: NaN or infinite pixels in 12 images"),
        ({"x_train": np.full((12, 5, 6, 3), 1e300)}, "x_train: NaN or infinite pixels in 12 images"),
        ({"x_test": np.zeros((6, 4, 6, 3), np.uint8)}, "images: the splits differ in shape"),
        ({"x_test": np.zeros((6, 90), np.uint8)}, "x_test: expected .examples, height, width, channels."),
        ({"x_test": np.zeros((0, 5, 6, 3), np.uint8), "y_test": np.zeros(0, int)}, "x_test: expected at least one"),
    ],
)
def test_faulty_labels_and_pixels_are_left_for_the_check(tmp_path, change, fault):
    dataset = arrays(path=save(tmp_path, example_arrays() | change))
    assert faults(dataset)
    with pytest.raises(InputError, match=fault):
        require_valid(dataset)


def test_there_are_at_least_two_classes(tmp_path):
    members = example_arrays() | {"y_train": np.zeros(12, int), "y_test": np.zeros(6, int)}
    assert arrays(path=save(tmp_path, members)).class_names == ("0", "1")


@pytest.mark.parametrize("name", ["x_train", "y_train", "x_test", "y_test"])
def test_names_the_missing_array(tmp_path, name):
    members = example_arrays()
    members[name.upper()] = members.pop(name)
    with pytest.raises(InputError, match=rf"mine\.npz lacks {name}; expected x_train, .*, found .*{name.upper()}"):
        arrays(path=save(tmp_path, members))


@pytest.mark.parametrize(("given", "absent"), [("x_val", "y_val"), ("y_val", "x_val")])
def test_refuses_half_a_validation_split(tmp_path, given, absent):
    with pytest.raises(InputError, match=f"holds {given} without {absent}; expected both or neither"):
        arrays(path=save(tmp_path, example_arrays() | {given: np.zeros(2, int)}))


def test_refuses_unknown_arrays(tmp_path):
    with pytest.raises(InputError, match=r"holds unknown arrays x_valid; expected x_train.*optionally x_val, y_val"):
        arrays(path=save(tmp_path, example_arrays() | {"x_valid": np.zeros(2)}))


def test_never_unpickles(tmp_path):
    fired = tmp_path / "fired"
    members = example_arrays() | {"y_train": np.array([Trap(str(fired))] * 12, dtype=object)}
    with pytest.raises(InputError, match=r"y_train in .* holds pickled objects, which are never unpickled"):
        arrays(path=save(tmp_path, members))
    assert not fired.exists()


class Trap:
    """An object whose unpickling makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"path: expected an \.npz file, found none at /.*none\.npz"):
        arrays(path=str(tmp_path / "none.npz"))


@pytest.mark.parametrize("content", [b"", b"x,y\n1,2\n", pickle.dumps({"x_train": 1})])
def test_refuses_what_is_no_npz(tmp_path, content):
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"got /.*, which is no zip"):
        arrays(path=str(path))


def test_refuses_a_single_array(tmp_path):
    np.save(tmp_path / "mine.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"expected an \.npz file as numpy\.savez writes it"):
        arrays(path=str(tmp_path / "mine.npy"))


def test_refuses_a_zip_of_other_files(tmp_path):
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(name, "no array")
    with pytest.raises(InputError, match=r"x_train in .*: expected an array with one entry per example"):
        arrays(path=str(path))


def test_refuses_scalars(tmp_path):
    with pytest.raises(InputError, match=r"y_train in .*: expected an array with one entry per example"):
        arrays(path=save(tmp_path, example_arrays() | {"y_train": np.int64(1)}))


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, bool, complex, "<U3"])
def test_refuses_pixels_of_other_types(tmp_path, dtype):
    members = example_arrays()
    members["x_test"] = members["x_test"].astype(dtype)
    with pytest.raises(InputError, match="x_test: expected uint8 or floating-point pixels, got"):
        arrays(path=save(tmp_path, members))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_changed_byte_never_changes_the_data(tmp_path, write):
    members = example_arrays()
    write(tmp_path / "whole.npz", **members)
    content = (tmp_path / "whole.npz").read_bytes()
    damaged = tmp_path / "damaged.npz"
    refused = 0
    for position in range(0, len(content), 31):
        damaged.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            dataset = arrays(path=str(damaged))
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        np.testing.assert_array_equal(dataset.train.images, members["x_train"])
        np.testing.assert_array_equal(dataset.test.labels, members["y_test"])
    assert refused > 50  # a few bytes, such as dates, mean nothing


def test_refuses_a_broken_array_header(tmp_path):
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00\x08\x00{'descr(")
    with pytest.raises(InputError, match=r"x_train in .* is damaged or truncated"):
        arrays(path=str(path))


def test_refuses_a_truncated_file(tmp_path):
    path = pathlib.Path(save(tmp_path, example_arrays()))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"which is no zip|damaged or truncated"):
        arrays(path=str(path))


def test_reads_real_images(tmp_path):
    script = SHARED_DATA / "unpack_cifar10.py"
    if not (SHARED_DATA / "cifar10" / "cifar10_jpeg.npz").is_file() or not script.is_file():
        pytest.skip("needs the JPEG copy of CIFAR-10 beside the repository, in ../shared/data")
    path = tmp_path / "cifar10.npz"
    subprocess.run([sys.executable, script, path, "--per-class", "20"], check=True, capture_output=True, timeout=100)
    dataset = require_valid(arrays(path=str(path), dataset="cifar10"))
    assert dataset.train.images.shape == dataset.test.images.shape == (200, 32, 32, 3)
    assert np.bincount(dataset.train.labels).tolist() == np.bincount(dataset.test.labels).tolist() == [20] * 10
    # The published mean and standard deviation of CIFAR-10's pixels, within what 200 images allow.
    np.testing.assert_allclose(dataset.train.images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=0.05)
    np.testing.assert_allclose(dataset.train.images.std((0, 1, 2)) / 255, [0.2470, 0.2435, 0.2616], atol=0.05)
