"""CIFAR archives turned into prepared directories."""

import gzip
import io
import json
import pathlib
import tarfile

import numpy as np
import pytest
import tensorflow_datasets

from imbal_jax.data import prepare
from imbal_jax.data.dataset import require_valid
from imbal_jax.data.known import KNOWN, known_dataset
from imbal_jax.data.prepare import prepare_cifar, read_cifar_archive, write_prepared
from imbal_jax.data.prepared import tfds
from imbal_jax.errors import InputError

PER_BATCH = 20  # records of a file of the small archives: two of each of 10 classes
COARSE = tuple(f"group_{number}" for number in range(20))


def cifar10_files(seed=0):
    """The files of a small CIFAR-10 archive, and what they hold: images [n, 32, 32, 3] and labels by split."""
    generator = np.random.default_rng(seed)
    files, images, labels = {}, {"train": [], "test": []}, {"train": [], "test": []}
    for file in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
        split = "test" if file.startswith("test") else "train"
        pixels = generator.integers(0, 256, (PER_BATCH, 32, 32, 3), dtype=np.uint8)
        classes = generator.permutation(np.arange(PER_BATCH) % 10)
        files[file] = b"".join(
            bytes([label]) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
            for image, label in zip(pixels, classes, strict=True)
        )
        images[split].append(pixels)
        labels[split].append(classes)
    files["batches.meta.txt"] = "\n".join(KNOWN["cifar10"].class_names).encode() + b"\n\n"
    return files, {split: (np.concatenate(images[split]), np.concatenate(labels[split])) for split in images}


def cifar100_files(seed=0):
    """The files of a small CIFAR-100 archive, one test and two training records a class, and what they hold."""
    generator = np.random.default_rng(seed)
    files, held = {}, {}
    for split, number in (("train", 200), ("test", 100)):
        pixels = generator.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
        fine = generator.permutation(np.arange(number) % 100)
        files[f"{split}.bin"] = b"".join(
            bytes([label // 5, label]) + image.transpose(2, 0, 1).tobytes()
            for image, label in zip(pixels, fine, strict=True)
        )
        held[split] = (pixels, fine)
    files["fine_label_names.txt"] = "\n".join(KNOWN["cifar100"].class_names).encode() + b"\n"
    files["coarse_label_names.txt"] = "\n".join(COARSE).encode() + b"\n"
    return files, held


def pack(path, files, folder="cifar-10-batches-bin"):
    """Writes a .tar.gz and returns its path as text."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}" if folder else name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


@pytest.fixture
def small_counts(monkeypatch):
    """Lets the small archives count as the published ones."""
    for name, train, test in (("cifar10", 10, 2), ("cifar100", 2, 1)):
        classes = KNOWN[name].num_classes
        small = KNOWN[name]._replace(train_counts=(train,) * classes, test_counts=(test,) * classes)
        monkeypatch.setitem(KNOWN, name, small)


@pytest.mark.parametrize(("name", "make"), [("cifar10", cifar10_files), ("cifar100", cifar100_files)])
def test_round_trip_is_bit_for_bit(tmp_path, small_counts, name, make):
    files, held = make()
    directory = prepare_cifar(pack(tmp_path / "archive.tar.gz", files), str(tmp_path / "data"))
    assert directory == tmp_path / "data" / name / "3.0.2"
    dataset = require_valid(tfds(dataset=name, path=str(tmp_path / "data")))
    assert dataset.class_names == KNOWN[name].class_names
    for split, (images, labels) in held.items():
        np.testing.assert_array_equal(dataset.splits[split].images, images)
        np.testing.assert_array_equal(dataset.splits[split].labels, labels)


def test_the_library_itself_reads_the_directory_as_its_own(tmp_path, small_counts):
    files, held = cifar100_files()
    directory = prepare_cifar(pack(tmp_path / "archive.tar.gz", files), str(tmp_path / "data"))
    official = tensorflow_datasets.builder("cifar100", data_dir=tmp_path / "data")
    generic = tensorflow_datasets.builder_from_directory(directory)
    assert pathlib.Path(official.data_dir) == directory
    assert set(official.info.features) == set(generic.info.features)
    source = generic.as_data_source(split="test", decoders={"image": tensorflow_datasets.decode.SkipDecoding()})
    assert len(source) == len(official.as_data_source(split="test")) == 100
    fine = held["test"][1]
    for index in (0, 57, 99):
        example = source[index]
        assert example["id"] == f"test_{index:05d}".encode()
        assert (example["label"], example["coarse_label"]) == (fine[index], fine[index] // 5)
    assert generic.info.features["coarse_label"].names == list(COARSE)
    metadata = json.loads((directory / "dataset_info.json").read_text())
    assert (metadata["name"], metadata["version"], metadata["fileFormat"]) == ("cifar100", "3.0.2", "array_record")


def test_nothing_but_the_result_is_left_behind(tmp_path, small_counts):
    prepare_cifar(pack(tmp_path / "archive.tar.gz", cifar10_files()[0]), str(tmp_path / "data"))
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar10"]
    assert [path.name for path in (tmp_path / "data" / "cifar10").iterdir()] == ["3.0.2"]


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    contents = read_cifar_archive(pack(tmp_path / "archive.tar.gz", cifar10_files()[0]))
    written = []

    def fail_on_the_test_split(image):
        written.append(image)
        if len(written) > 5 * PER_BATCH:
            raise OSError(28, "No space left on device")
        return b"picture"

    monkeypatch.setattr(prepare, "_png", fail_on_the_test_split)
    with pytest.raises(InputError, match=r"output: cannot write .*cifar10/3\.0\.2: .*No space left"):
        write_prepared(contents, str(tmp_path / "data"))
    assert list((tmp_path / "data").iterdir()) == []


def test_refuses_to_overwrite(tmp_path, small_counts):
    archive = pack(tmp_path / "archive.tar.gz", cifar10_files()[0])
    directory = prepare_cifar(archive, str(tmp_path / "data"))
    before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    with pytest.raises(InputError, match=r"output: .*cifar10/3\.0\.2 exists already; read it, or remove it"):
        prepare_cifar(archive, str(tmp_path / "data"))
    assert before == {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


def test_refuses_an_output_that_is_a_file(tmp_path, small_counts):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(InputError, match="output: cannot write"):
        prepare_cifar(pack(tmp_path / "archive.tar.gz", cifar10_files()[0]), str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            cifar10_files,
            "expected 50000 train examples of cifar10, 5000 in each of 10 classes, got 100, 10 to 10 in 10",
        ),
        (
            cifar100_files,
            "expected 50000 train examples of cifar100, 500 in each of 100 classes, got 200, 2 to 2 in 100",
        ),
    ],
)
def test_refuses_other_counts_than_published(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        prepare_cifar(pack(tmp_path / "archive.tar.gz", make()[0]), str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("folder", ["../../outside", "/absolute/outside"])
def test_names_of_members_are_never_paths(tmp_path, folder):
    files, held = cifar10_files()
    inside = tmp_path / "deep" / "deeper"
    inside.mkdir(parents=True)
    contents = read_cifar_archive(pack(inside / "archive.tar.gz", files, folder=folder))
    np.testing.assert_array_equal(contents.splits["train"].images, held["train"][0])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [inside / "archive.tar.gz"]


def test_links_are_not_followed(tmp_path):
    files, _ = cifar100_files()
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("train.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        member = tarfile.TarInfo("test.bin")
        member.size = len(files["test.bin"])
        archive.addfile(member, io.BytesIO(files["test.bin"]))
    with pytest.raises(InputError, match=r"which holds train\.bin"):
        read_cifar_archive(str(path))


def test_home_directory_is_expanded(tmp_path, monkeypatch, small_counts):
    pack(tmp_path / "archive.tar.gz", cifar10_files()[0])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepare_cifar("~/archive.tar.gz", "~/data") == tmp_path / "data" / "cifar10" / "3.0.2"


def test_names_the_missing_archive(tmp_path):
    with pytest.raises(
        InputError,
        match=r"input: expected cifar-10-binary\.tar\.gz or cifar-100-binary\.tar\.gz, found no file /.*none",
    ):
        prepare_cifar(str(tmp_path / "none.tar.gz"), str(tmp_path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/batches.meta"],
            "python version, whose pickles are nev",
        ),
        (
            ["cifar-100-python/train", "cifar-100-python/meta"],
            r"python version.*expected the binary version, cifar-10-bin",
        ),
        (["cifar-10-batches-mat/data_batch_1.mat"], "is the Matlab version; expected the binary version"),
        (["svhn/train_32x32.txt"], r"expected cifar-10-binary\.tar\.gz or .*, which holds svhn/train_32x32\.txt"),
        ([], "which holds nothing"),
    ],
)
def test_names_another_archive(tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        read_cifar_archive(pack(tmp_path / "archive.tar.gz", dict.fromkeys(names, b"\x80\x04."), folder=""))


@pytest.mark.parametrize(
    "content", [b"", b"not compressed", gzip.compress(b"", mtime=0), gzip.compress(b"no tar" * 400, mtime=0)]
)
def test_refuses_what_is_no_archive(tmp_path, content):
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged, truncated or no \.tar\.gz|which holds nothing"):
        read_cifar_archive(str(path))


def test_refuses_every_truncation(tmp_path):
    path = pathlib.Path(pack(tmp_path / "archive.tar.gz", cifar10_files()[0]))
    content = path.read_bytes()
    for kept in np.linspace(0, len(content) - 1, 12).astype(int):
        path.write_bytes(content[:kept])
        with pytest.raises(InputError, match=r"damaged, truncated or no \.tar\.gz"):
            read_cifar_archive(str(path))


def test_a_changed_byte_is_noticed(tmp_path):
    path = pathlib.Path(pack(tmp_path / "archive.tar.gz", cifar10_files()[0]))
    content = path.read_bytes()
    for position in np.linspace(40, len(content) - 9, 12).astype(int):  # past the header, a date and a name
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(InputError, match="input: "):
            read_cifar_archive(str(path))


def test_the_checksum_behind_the_last_file_is_read(tmp_path):
    path = pathlib.Path(pack(tmp_path / "archive.tar.gz", cifar10_files()[0]))
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    with pytest.raises(InputError, match="damaged, truncated"):
        read_cifar_archive(str(path))


def test_names_missing_members(tmp_path):
    files, _ = cifar10_files()
    del files["data_batch_3.bin"], files["batches.meta.txt"]
    with pytest.raises(InputError, match=r"lacks batches\.meta\.txt, data_batch_3\.bin; expected cifar-10-binary"):
        read_cifar_archive(pack(tmp_path / "archive.tar.gz", files))


def test_refuses_a_member_that_comes_twice(tmp_path):
    files, _ = cifar10_files()
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for _ in range(2):
            member = tarfile.TarInfo("data_batch_1.bin")
            member.size = len(files["data_batch_1.bin"])
            archive.addfile(member, io.BytesIO(files["data_batch_1.bin"]))
    with pytest.raises(InputError, match=r"expected data_batch_1\.bin once"):
        read_cifar_archive(str(path))


def test_refuses_a_member_larger_than_published(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_LARGEST_MEMBER", 1000)
    with pytest.raises(InputError, match=r"data_batch_1\.bin once in .* and of at most 1000 bytes"):
        read_cifar_archive(pack(tmp_path / "archive.tar.gz", cifar10_files()[0]))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "data_batch_2.bin",
            lambda content: content[:-1],
            r"data_batch_2\.bin: expected records of 3073 bytes, got 61459",
        ),
        ("test_batch.bin", lambda content: b"", r"test_batch\.bin: expected records of 3073 bytes, got 0 bytes"),
        ("test_batch.bin", lambda content: b"\x0a" + content[1:], r"expected label in 0\.\.9, got 10 at record 0"),
        (
            "batches.meta.txt",
            lambda content: b"cat\ncat\n",
            r"batches\.meta\.txt: expected distinct class names, got 2",
        ),
        ("batches.meta.txt", lambda content: b"\xff\xfe", r"batches\.meta\.txt: expected one class name a line"),
    ],
)
def test_refuses_impossible_files(tmp_path, file, change, message):
    files, _ = cifar10_files()
    files[file] = change(files[file])
    with pytest.raises(InputError, match=message):
        read_cifar_archive(pack(tmp_path / "archive.tar.gz", files))


def test_refuses_impossible_coarse_labels(tmp_path):
    files, _ = cifar100_files()
    files["train.bin"] = files["train.bin"][:3074] + b"\x14" + files["train.bin"][3075:]
    with pytest.raises(InputError, match=r"train\.bin: expected coarse_label in 0\.\.19, got 20 at record 1"):
        read_cifar_archive(pack(tmp_path / "archive.tar.gz", files))


@pytest.mark.parametrize(
    ("name", "classes", "train", "test"),
    [
        ("cifar10", 10, 50_000, 10_000),
        ("cifar100", 100, 50_000, 10_000),
        ("svhn_cropped", 10, 73_257, 26_032),
        ("mnist", 10, 60_000, 10_000),
        ("fashion_mnist", 10, 60_000, 10_000),
    ],
)
def test_published_facts_are_consistent(name, classes, train, test):
    known = known_dataset(name)
    assert known.name == name
    assert len(set(known.class_names)) == len(known.train_counts) == len(known.test_counts) == classes
    assert (sum(known.train_counts), sum(known.test_counts)) == (train, test)
    official = tensorflow_datasets.builder(name)  # constructed without data or network: its code's own metadata
    assert official.info.features["image"].shape == known.image_shape
    assert official.info.features["label"].num_classes == classes


def test_fine_classes_of_cifar100_are_in_alphabetical_order():
    names = known_dataset("cifar100").class_names
    assert list(names) == sorted(names)
    assert (names[0], names[39], names[99]) == ("apple", "keyboard", "worm")


def test_unknown_names_are_not_known():
    assert known_dataset("cifar") is None
    assert known_dataset("") is None
