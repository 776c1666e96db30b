"""Crops of pictures against windows written in NumPy, and the distribution of the random ones."""

import numpy as np
import PIL.Image
import pytest
from scipy import stats

from imbal_jax.data.pictures import (
    crop_box,
    crop_center,
    random_resized_crop,
    resize_random_crop,
    resize_shorter_side,
)
from imbal_jax.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 17, 3), np.uint8)  # height 11, width 17
PICTURE = PIL.Image.fromarray(PIXELS)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("size", "length", "expected"),
    [((17, 11), 22, (34, 22)), ((11, 17), 22, (22, 34)), ((500, 375), 256, (341, 256)), ((9, 9), 4, (4, 4))],
)
def test_the_shorter_side_gets_its_length_and_the_longer_one_is_truncated(size, length, expected):
    assert resize_shorter_side(PIL.Image.new("RGB", size), length).size == expected


def test_a_picture_of_the_right_size_is_left_as_it_is():
    np.testing.assert_array_equal(resize_shorter_side(PICTURE, 11), PIXELS)


def test_the_centre_is_cut_out():
    np.testing.assert_array_equal(crop_center(PICTURE, 5), PIXELS[3:8, 6:11])
    np.testing.assert_array_equal(crop_center(PICTURE, 11), PIXELS[:, 3:14])


def test_shrinking_averages_pixels_with_a_triangle():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 4:] = 200
    small = np.asarray(resize_shorter_side(PIL.Image.fromarray(pixels), 4), np.float64)
    # Twice as small: a triangle of two pixels on either side, weights 1, 3, 3, 1.
    np.testing.assert_allclose(small[0, :, 0], [0, 200 / 8, 200 * 7 / 8, 200], atol=1)


def test_random_boxes_have_the_areas_and_ratios_asked_for():
    generator = rng()
    boxes = np.array([crop_box(generator, 400, 300, (0.2, 0.5), (0.5, 2.0)) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 400 and bottom.max() <= 300
    width, height = right - left, bottom - top
    areas = width * height / (400 * 300)
    assert areas.min() > 0.19 and areas.max() < 0.51
    assert 0.49 < (width / height).min() < 0.55 and 1.8 < (width / height).max() < 2.02
    # Boxes of up to 0.2 of the area always lie within, so areas and ratios of those drawn first are as stated.
    small = np.array([crop_box(generator, 400, 300, (0.05, 0.15), (0.5, 2.0)) for _ in range(2000)])
    width, height = small[:, 2] - small[:, 0], small[:, 3] - small[:, 1]
    assert stats.kstest(width * height / 120_000, stats.uniform(0.05, 0.1).cdf).pvalue > 1e-3
    assert stats.kstest(np.log(width / height), stats.uniform(np.log(0.5), np.log(4)).cdf).pvalue > 1e-3
    assert stats.kstest(small[:, 0] / (400 - width), stats.uniform().cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [
        ((100, 10), (0.75, 4 / 3), (43, 0, 56, 10)),  # too wide: 13 = round(10 * 4 / 3) in the middle
        ((10, 100), (0.75, 4 / 3), (0, 43, 10, 56)),  # too high: 13 = round(10 / 0.75)
    ],
)
def test_what_never_fits_is_the_largest_part_in_the_middle(size, ratio, expected):
    assert crop_box(rng(), *size, (1.0, 1.0), ratio) == expected


def test_a_crop_of_everything_without_chance_is_the_resized_picture():
    everything = random_resized_crop(min_area=1.0, min_ratio=1.0, max_ratio=1.0, flip=False)
    square = PICTURE.crop((0, 0, 11, 11))
    drawn = everything.draw(rng(), square, 7, 9)
    np.testing.assert_array_equal(drawn, square.resize((7, 7), PIL.Image.Resampling.BILINEAR))


def test_flips_are_as_likely_as_not():
    flips = random_resized_crop(min_area=1.0, min_ratio=1.0, max_ratio=1.0)
    square = PICTURE.crop((0, 0, 11, 11))
    seen = [np.asarray(flips.draw(rng(seed), square, 11, 11)) for seed in range(400)]
    plain = [bool((each == PIXELS[:, :11]).all()) for each in seen]
    mirrored = [bool((each == PIXELS[:, 10::-1]).all()) for each in seen]
    assert sum(plain) + sum(mirrored) == 400
    assert abs(sum(plain) - 200) < 40  # four standard errors


def test_random_squares_are_windows_of_the_resized_picture():
    draw = resize_random_crop(flip=False).draw
    seen = {tuple(np.asarray(draw(rng(seed), PICTURE, 9, 11)).ravel()) for seed in range(300)}
    windows = {tuple(PIXELS[top : top + 9, left : left + 9].ravel()) for top in range(3) for left in range(9)}
    assert seen == windows  # of 27, each as likely
    flipped = np.asarray(resize_random_crop().draw(rng(1), PICTURE, 11, 11))
    assert flipped.shape == (11, 11, 3)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_change_by_random_factors(name):
    plain = {"min_area": 1.0, "min_ratio": 1.0, "max_ratio": 1.0, "flip": False}
    square = PIL.Image.fromarray(PIXELS[:, :11] // 4 + 90)
    pixels = np.asarray(square, np.float64)
    found = np.asarray(random_resized_crop(**plain, **{name: 0.4}).draw(rng(3), square, 11, 11), np.float64)
    grey = np.asarray(square.convert("L"), np.float64)
    towards = {"brightness": 0.0, "contrast": np.round(grey.mean()), "saturation": grey[..., None]}[name]
    distance = pixels - towards
    factor = ((found - towards) * distance).sum() / (distance**2).sum()
    assert 0.6 <= factor <= 1.4 and abs(factor - 1) > 0.01
    np.testing.assert_allclose(found, towards + factor * distance, atol=1.1)


def test_the_same_generator_gives_the_same_and_another_one_another():
    draw = random_resized_crop(brightness=0.4, contrast=0.4, saturation=0.4).draw
    one, again, other = (np.asarray(draw(rng(seed), PICTURE, 8, 9)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_area": 0.0}, r"min_area: expected a number in \(0, 1\], got 0.0"),
        ({"max_area": 1.5}, r"max_area: expected a number in \(0, 1\], got 1.5"),
        ({"min_area": 0.5, "max_area": 0.4}, r"expected at least min_area and min_ratio \(0.5, 0.75\), got 0.4"),
        ({"min_ratio": -1.0}, r"min_ratio: expected a number > 0, got -1.0"),
        ({"max_ratio": float("nan")}, r"max_ratio: expected a number > 0, got nan"),
        ({"brightness": 1.5}, r"brightness: expected a number in \[0, 1\], got 1.5"),
        ({"contrast": -0.1}, r"contrast: expected a number in \[0, 1\], got -0.1"),
        ({"saturation": 2.0}, r"saturation: expected a number in \[0, 1\], got 2.0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        random_resized_crop(**options)
