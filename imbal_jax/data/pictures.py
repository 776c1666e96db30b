"""What is made of pictures of any size on the host: crops of one size, with or without chance."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageEnhance

from imbal_jax.errors import InputError, check_number

_BILINEAR = PIL.Image.Resampling.BILINEAR
_MIRROR = PIL.Image.Transpose.FLIP_LEFT_RIGHT
_ATTEMPTS = 10  # at a random crop that lies within the picture, as in torchvision
_ENHANCERS = {
    "brightness": PIL.ImageEnhance.Brightness,
    "contrast": PIL.ImageEnhance.Contrast,
    "saturation": PIL.ImageEnhance.Color,
}

Draw = Callable[[np.random.Generator, PIL.Image.Image, int, int], PIL.Image.Image]


class PictureAugmentation(NamedTuple):
    """A random change of training pictures, on the host, before they have one size.

    `draw(rng, picture, size, resize)` makes a picture of size x size of an RGB picture; `resize` is the length of the
    shorter side before the centre crop of evaluation.
    """

    draw: Draw


def resize_shorter_side(picture: PIL.Image.Image, length: int) -> PIL.Image.Image:
    """The picture with a shorter side of a length and about the same aspect ratio, interpolated linearly.

    As torchvision's Resize: the longer side is truncated to whole pixels.
    """
    width, height = picture.size
    shorter = min(width, height)
    wanted = (int(length * width / shorter), int(length * height / shorter))
    return picture if picture.size == wanted else picture.resize(wanted, _BILINEAR)


def crop_center(picture: PIL.Image.Image, size: int) -> PIL.Image.Image:
    """The square of size x size in the middle of a picture that has at least this size."""
    width, height = picture.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return picture.crop((left, top, left + size, top + size))


def crop_box(
    rng: np.random.Generator, width: int, height: int, area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A random part of a picture: left, top, right and bottom.

    Its area is uniform among the fractions `area` of the picture's, its aspect ratio log-uniform in `ratio` (Szegedy et
    al. 2015, section 6). What does not lie within the picture is drawn again; after ten attempts it is the largest
    part in the middle with an allowed aspect ratio. As torchvision's RandomResizedCrop.
    """
    for _ in range(_ATTEMPTS):
        wanted = width * height * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        across, down = round(math.sqrt(wanted * aspect)), round(math.sqrt(wanted / aspect))
        if 0 < across <= width and 0 < down <= height:
            left, top = int(rng.integers(0, width - across + 1)), int(rng.integers(0, height - down + 1))
            return left, top, left + across, top + down
    across = min(width, round(height * ratio[1]))
    down = min(height, round(width / ratio[0]))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def random_resized_crop(
    *,
    min_area: float = 0.08,
    max_area: float = 1.0,
    min_ratio: float = 3 / 4,
    max_ratio: float = 4 / 3,
    flip: bool = True,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
) -> PictureAugmentation:
    """A random part of the picture made to the size of the images, and a random horizontal flip, as usual on ImageNet.

    Optionally brightness, contrast and saturation change by random factors, in random order (torchvision's
    ColorJitter).

    Args:
      min_area: smallest share of the picture, in (0, 1].
      max_area: largest share, at least min_area and at most 1.
      min_ratio: smallest width / height of the part, > 0.
      max_ratio: largest, at least min_ratio.
      flip: mirror left and right with probability one half.
      brightness: factors are uniform in [1 - brightness, 1 + brightness]; in [0, 1], 0 for none.
      contrast: likewise.
      saturation: likewise.

    Raises:
      InputError: an option is out of its range.
    """
    check_number("min_area", min_area, "in (0, 1]")
    check_number("max_area", max_area, "in (0, 1]")
    check_number("min_ratio", min_ratio, "> 0")
    check_number("max_ratio", max_ratio, "> 0")
    if max_area < min_area or max_ratio < min_ratio:
        raise InputError(
            f"max_area, max_ratio: expected at least min_area and min_ratio ({min_area}, {min_ratio}), got"
            f" {max_area}, {max_ratio}"
        )
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, strength in strengths.items():
        check_number(name, strength, "in [0, 1]")

    def draw(rng: np.random.Generator, picture: PIL.Image.Image, size: int, resize: int) -> PIL.Image.Image:
        del resize
        box = crop_box(rng, *picture.size, (min_area, max_area), (min_ratio, max_ratio))
        picture = picture.crop(box).resize((size, size), _BILINEAR)
        return _jitter(rng, _mirror(rng, picture) if flip else picture, strengths)

    return PictureAugmentation(draw)


def resize_random_crop(*, flip: bool = True) -> PictureAugmentation:
    """The picture with the shorter side of evaluation, a random square of it, and a random horizontal flip.

    Args:
      flip: mirror left and right with probability one half.
    """

    def draw(rng: np.random.Generator, picture: PIL.Image.Image, size: int, resize: int) -> PIL.Image.Image:
        picture = resize_shorter_side(picture, resize)
        width, height = picture.size
        left, top = int(rng.integers(0, width - size + 1)), int(rng.integers(0, height - size + 1))
        picture = picture.crop((left, top, left + size, top + size))
        return _mirror(rng, picture) if flip else picture

    return PictureAugmentation(draw)


def _mirror(rng: np.random.Generator, picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture, mirrored left and right with probability one half."""
    return picture.transpose(_MIRROR) if rng.random() < 0.5 else picture


def _jitter(rng: np.random.Generator, picture: PIL.Image.Image, strengths: dict[str, float]) -> PIL.Image.Image:
    """The picture with its properties changed by random factors, in random order."""
    chosen = [name for name, strength in strengths.items() if strength]
    for index in rng.permutation(len(chosen)):
        strength = strengths[chosen[index]]
        picture = _ENHANCERS[chosen[index]](picture).enhance(rng.uniform(1 - strength, 1 + strength))
    return picture
