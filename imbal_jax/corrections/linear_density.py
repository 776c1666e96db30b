"""The linear probability density of loss-conditional training (its paper's appendix D)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from imbal_jax.errors import InputError
from imbal_jax.types import Array

# A height is a quotient that users round: 2 / 0.3 is no number that anyone types.
_ROUNDING = 1e-9


class LinearDensity(NamedTuple):
    """L(a, b, h_b): a density on [a, b] that is a straight line with the height h_b at b; see `linear_density`."""

    low: float  # a
    high: float  # b
    height: float  # h_b

    @property
    def height_at_low(self) -> float:
        """h_a = 2 / (b - a) - h_b, which makes the area one."""
        return max(2.0 / (self.high - self.low) - self.height, 0.0)

    @property
    def mean(self) -> float:
        """The expectation, a + (b - a)^2 (h_a + 2 h_b) / 6."""
        return self.low + (self.high - self.low) ** 2 * (self.height_at_low + 2.0 * self.height) / 6.0

    def quantile(self, level: Array) -> Array:
        """The inverse of the distribution function.

        With the heights in units of the width, p = h_a (b - a) and q = h_b (b - a) = 2 - p, the fraction t of the
        interval solves p t + (q - p) t^2 / 2 = u. Its root is written as 2 u / (p + sqrt((1 - u) p^2 + u q^2)): nothing
        cancels, so that it holds for every slope, zero (the uniform density) and almost zero included.

        Args:
          level: u in [0, 1], of any shape; may be traced.
        """
        low_end = self.height_at_low * (self.high - self.low)
        high_end = 2.0 - low_end
        denominator = low_end + jnp.sqrt((1.0 - level) * low_end**2 + level * high_end**2)
        # Only a density that begins at zero has a zero here, at the level zero, whose quantile is a.
        fraction = jnp.where(denominator > 0, 2.0 * level / jnp.where(denominator > 0, denominator, 1.0), 0.0)
        return self.low + (self.high - self.low) * jnp.clip(fraction, 0.0, 1.0)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Draws by inversion, floating [shape].

        Args:
          key: of the draw.
          shape: of the result.
        """
        return self.quantile(jax.random.uniform(key, shape))


def linear_density(low: float, high: float, height: float, *, name: str = "density") -> LinearDensity:
    """L(a, b, h_b), checked.

    Args:
      low: a.
      high: b > a.
      height: h_b, the density at b, in [0, 2 / (b - a)]: at the ends of this range the density is a triangle, in its
        middle uniform. Beyond it the density at a would be negative; the paper's own L(1, 3, 2) is such a one.
      name: of the option, for messages.

    Raises:
      InputError: a >= b, the height is out of its range, or a number is not finite.
    """
    given = f"L({low:g}, {high:g}, {height:g})"
    if not all(map(math.isfinite, (low, high, height))):
        raise InputError(f"{name}: expected finite numbers a, b, h_b, got {given}")
    if not low < high:
        raise InputError(f"{name}: expected a < b in L(a, b, h_b), got {given}")
    most = 2.0 / (high - low)
    if not 0 <= height <= most * (1 + _ROUNDING):
        raise InputError(
            f"{name}: expected h_b in [0, {most:.6g}], that is [0, 2 / (b - a)], in L(a, b, h_b), got {given}; another"
            " height makes the density negative"
        )
    return LinearDensity(float(low), float(high), min(float(height), most))
