"""Random crops and flips: every output is a window of the padded image, and all windows are equally likely."""

import jax
import numpy as np
import pytest
from scipy import stats

from imbal_jax.data import augmentation
from imbal_jax.errors import InputError

HEIGHT, WIDTH, PADDING = 6, 7, 4
OFFSETS = 2 * PADDING + 1
IMAGES = np.random.default_rng(0).integers(1, 256, (8, HEIGHT, WIDTH, 3), dtype=np.uint8)
KEYS = 500


def windows(image):
    """All crops of a zero-padded image with and without a flip, [81 * 2, height, width, channels]."""
    padded = np.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    found = []
    for top in range(OFFSETS):
        for left in range(OFFSETS):
            window = padded[top : top + HEIGHT, left : left + WIDTH]
            found += [window, window[:, ::-1]]
    return np.stack(found)


@pytest.fixture(scope="module")
def crop_flip():
    augment = augmentation.crop_flip(padding=PADDING)
    return jax.jit(jax.vmap(augment, in_axes=(0, None)))


@pytest.fixture(scope="module")
def outputs(crop_flip):
    """The images augmented with 500 keys, [keys, images, height, width, channels]."""
    return np.asarray(crop_flip(jax.random.split(jax.random.key(0), KEYS), IMAGES))


@pytest.fixture(scope="module")
def chosen(outputs):
    """Which window each output is, [keys, images]; -1 where it is none."""
    result = np.empty((KEYS, len(IMAGES)), int)
    for i, image in enumerate(IMAGES):
        number = {window.tobytes(): n for n, window in enumerate(windows(image))}
        assert len(number) == OFFSETS**2 * 2  # all windows differ, so each output has one origin
        result[:, i] = [number.get(output.tobytes(), -1) for output in outputs[:, i]]
    return result


def test_every_output_is_a_window_of_the_padded_image(chosen, outputs):
    assert (chosen >= 0).all()
    assert outputs.dtype == np.uint8


def test_offsets_and_flips_are_uniform(chosen):
    times = np.bincount(chosen.ravel(), minlength=OFFSETS**2 * 2)
    assert stats.chisquare(times).pvalue > 1e-3


def test_every_example_has_its_own_offset_and_flip(chosen):
    # Two examples of one batch share a window once in 162 times, an offset of rows or columns once in nine.
    top, left, flip = chosen // (2 * OFFSETS), chosen // 2 % OFFSETS, chosen % 2
    for part, probability in ((chosen, 1 / 162), (top, 1 / 9), (left, 1 / 9), (flip, 1 / 2)):
        same = np.mean(part[:, 1:] == part[:, :-1])
        assert abs(same - probability) < 5 * np.sqrt(probability / (KEYS * (len(IMAGES) - 1)))


def test_the_key_decides(crop_flip, outputs):
    np.testing.assert_array_equal(crop_flip(jax.random.split(jax.random.key(0), KEYS), IMAGES), outputs)
    assert (outputs[0] != outputs[1]).any()


@pytest.mark.parametrize("augment", [augmentation.none(), augmentation.crop_flip(padding=0, flip=False)])
def test_identity(augment):
    result = augment(jax.random.key(0), IMAGES)
    np.testing.assert_array_equal(result, IMAGES, strict=True)


def test_crops_without_flips(chosen):
    result = np.asarray(augmentation.crop_flip(padding=PADDING, flip=False)(jax.random.key(1), IMAGES))
    for image, output in zip(IMAGES, result, strict=True):
        assert any((output == window).all() for window in windows(image)[::2])


def test_flips_without_crops():
    images = np.repeat(IMAGES, 8, axis=0).astype(np.float32)
    result = np.asarray(augmentation.crop_flip(padding=0)(jax.random.key(1), images))
    assert result.dtype == np.float32
    kept = (result == images).all(axis=(1, 2, 3))
    mirrored = (result == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (kept ^ mirrored).all()
    assert 16 < kept.sum() < 48  # of 64; outside of four standard deviations


def test_refuses_negative_padding():
    with pytest.raises(InputError, match=r"^padding: expected a number >= 0, got -1$"):
        augmentation.crop_flip(padding=-1)
