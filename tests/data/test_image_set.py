"""Pictures that are decoded batch by batch: what batches hold, by what chance, and what is refused."""

import threading
import time

import numpy as np
import PIL.Image
import pytest

from imbal_jax.data.fake_images import RandomPictures, fake_images
from imbal_jax.data.image_set import ImageSet, View, check_view, decoded
from imbal_jax.data.pictures import PictureAugmentation, random_resized_crop
from imbal_jax.errors import InputError

VIEW = View(size=6, resize=8)
IMAGES = ImageSet(RandomPictures(side=8, seed=3), np.array([4, 0, 9]), VIEW)


def test_batches_are_the_squares_in_the_middle():
    batch = IMAGES.batch(np.array([2, 0, 2]))
    assert (batch.shape, batch.dtype) == ((3, 6, 6, 3), np.uint8)
    for got, row in zip(batch, (9, 4, 9), strict=True):
        np.testing.assert_array_equal(got, np.asarray(IMAGES.pictures.open(row))[1:7, 1:7])
    np.testing.assert_array_equal(IMAGES.training_batch(np.array([2, 0, 2]), (1, 2)), batch)  # without augmentation


def test_some_of_the_pictures_are_a_set_again():
    some = IMAGES[np.array([2, 1])]
    assert (len(some), some.shape, some.example(), str(some.dtype)) == (2, (2, 6, 6, 3), (6, 6, 3), "uint8")
    np.testing.assert_array_equal(some.batch(np.array([0])), IMAGES.batch(np.array([2])))
    assert len(IMAGES[np.array([True, False, True])]) == 2
    np.testing.assert_array_equal(some.lengths, [0, 0])


def augmented(threads=0):
    view = VIEW._replace(threads=threads)
    return ImageSet(IMAGES.pictures, np.arange(20), view, random_resized_crop())


def test_chance_is_a_function_of_seed_step_and_place_alone():
    images, rows = augmented(), np.arange(8)
    batch = images.training_batch(rows, (1, 2, 3))
    np.testing.assert_array_equal(augmented(threads=1).training_batch(rows, (1, 2, 3)), batch)
    np.testing.assert_array_equal(images.training_batch(rows[:5], (1, 2, 3)), batch[:5])
    for other in ((1, 2, 4), (1, 0, 3), (0, 2, 3)):
        assert (images.training_batch(rows, other) != batch).any(axis=(1, 2, 3)).all()
    twice = images.training_batch(np.array([7, 7]), (1, 2, 3))
    assert (twice[0] != twice[1]).any()
    np.testing.assert_array_equal(images.batch(rows), ImageSet(IMAGES.pictures, np.arange(8), VIEW).batch(rows))


def test_threads_that_finish_in_another_order_change_nothing():
    started = []

    def slow_at_first(rng, picture, size, resize):
        started.append(threading.get_ident())
        time.sleep(0.02 if len(started) == 1 else 0.0)
        return picture.crop((0, 0, size, size))

    images = ImageSet(IMAGES.pictures, np.arange(20), VIEW._replace(threads=4), PictureAugmentation(slow_at_first))
    batch = images.training_batch(np.arange(12), (0,))
    for row, got in enumerate(batch):
        np.testing.assert_array_equal(got, np.asarray(IMAGES.pictures.open(row))[:6, :6])


def test_standardisation_is_of_the_stated_statistics():
    mean, std = IMAGES.pixel_statistics()
    np.testing.assert_allclose(mean, [0.485 * 255, 0.456 * 255, 0.406 * 255], rtol=1e-6)
    np.testing.assert_allclose(std, [0.229 * 255, 0.224 * 255, 0.225 * 255], rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32


def test_the_digest_tells_pictures_and_what_is_made_of_them_apart_but_not_threads():
    digests = [
        IMAGES.digest(),
        IMAGES[np.array([0, 1])].digest(),
        IMAGES[np.array([1, 0, 2])].digest(),
        ImageSet(RandomPictures(8, 4), IMAGES.rows, VIEW).digest(),
        ImageSet(IMAGES.pictures, IMAGES.rows, VIEW._replace(size=5)).digest(),
        ImageSet(IMAGES.pictures, IMAGES.rows, VIEW._replace(std=(1.0, 1.0, 1.0))).digest(),
    ]
    assert len(set(digests)) == len(digests)
    assert ImageSet(IMAGES.pictures, IMAGES.rows, VIEW._replace(threads=3)).digest() == digests[0]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("picture.tiff" if mode in ("CMYK", "I") else "picture.png")
    PIL.Image.new(mode, (5, 4), 1).save(path)
    picture = decoded(path, "x")
    assert (picture.mode, picture.size) == ("RGB", (5, 4))
    assert decoded(path.read_bytes(), "x").tobytes() == picture.tobytes()


@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2], lambda content: b"no picture", bytes.upper]
)
def test_damaged_pictures_are_named(tmp_path, damage):
    path = tmp_path / "picture.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(path)
    path.write_bytes(damage(path.read_bytes()) if damage is not bytes.upper else b"")
    with pytest.raises(InputError, match=r"^data: cannot decode the picture some/name\.jpg: "):
        decoded(path, "some/name.jpg")


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (View(size=0), r"data\.size: expected 1 to data\.resize \(256\) pixels, got 0"),
        (View(size=300), r"data\.size: expected 1 to data\.resize \(256\) pixels, got 300"),
        (View(threads=-1), r"data\.threads: expected a number >= 0, got -1"),
        (View(mean=(0.5,)), r"data\.mean: expected three numbers, .* got \(0.5,\)"),
        (View(std=(0.5, 0.0, 0.5)), r"data\.std: expected three numbers, a standard deviation > 0"),
    ],
)
def test_views_out_of_range_are_refused(view, message):
    with pytest.raises(InputError, match=message):
        check_view(view)


def test_fake_images_are_long_tailed_and_reproducible():
    data = fake_images(num_classes=4, largest=30, ratio=27.0, held_out=3, size=6, resize=8)
    np.testing.assert_array_equal(np.bincount(data.train.labels), [30, 10, 3, 1])
    np.testing.assert_array_equal(np.bincount(data.test.labels), [3] * 4)
    np.testing.assert_array_equal(np.bincount(data.validation.labels), [3] * 4)
    batch = data.train.images.batch(np.arange(44))
    again = fake_images(num_classes=4, largest=30, ratio=27.0, held_out=3, size=6, resize=8)
    np.testing.assert_array_equal(again.train.images.batch(np.arange(44)), batch)
    other = fake_images(num_classes=4, largest=30, ratio=27.0, held_out=3, size=6, resize=8, seed=1)
    assert (other.train.images.batch(np.arange(44)) != batch).mean() > 0.9
    assert abs(batch.mean() - 127.5) < 4
    assert len({each.tobytes() for each in batch}) == 44
    held = [split.images.batch(np.array([0])).tobytes() for split in (data.train, data.validation, data.test)]
    assert len(set(held)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "data.num_classes: expected a number >= 2, got 1"),
        ({"largest": 0}, "data.largest: expected a number >= 1, got 0"),
        ({"held_out": 0}, "data.held_out: expected a number >= 1, got 0"),
        ({"ratio": 0.5}, "ratio: .*0.5"),
        ({"seed": -1}, "data.seed: expected a whole number >= 0, got -1"),
        ({"size": 300}, "data.size: expected 1 to data.resize"),
    ],
)
def test_fake_images_refuse_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        fake_images(**options)
