"""Eigenvalue densities from stochastic Lanczos quadrature, in float64 NumPy on the host.

Lanczos from a random start gives nodes theta_i (Ritz values) and weights w_i, with sum_i w_i = 1, such that
sum_i w_i f(theta_i) estimates the mean of f over all eigenvalues; several starts (probes) are averaged. What is stored
are nodes and weights: a smoothing is a way of looking at them, and is chosen when they are drawn.

Every function takes the nodes of probes that stopped early padded to one length, with NaN nodes of weight zero.

Source: Ghorbani, Krishnan and Xiao 2019, "An investigation into neural net optimization via Hessian eigenvalue
density", section 2 and appendix.
"""

from typing import NamedTuple

import numpy as np

from imbal_jax.errors import InputError, check_number

GHORBANI_VARIANCE = 1e-5  # of the kernel, for a spectrum of range one
MAX_CELLS = 2**20  # of the grid that distances are computed on
MAX_POINTS = 200_000  # of a drawn curve


class Quadrature(NamedTuple):
    """Nodes and weights of each probe, padded with NaN and 0."""

    nodes: np.ndarray  # [probes, order]
    weights: np.ndarray  # [probes, order], >= 0, each row adds up to 1


class Density(NamedTuple):
    """A smoothed density on a grid."""

    grid: np.ndarray  # [points], ascending
    probes: np.ndarray  # [probes, points], of each probe
    sigma: float  # standard deviation of the kernel

    @property
    def mean(self) -> np.ndarray:
        """The estimate: the mean over probes, [points]."""
        return self.probes.mean(axis=0)


def smoothed(quadrature: Quadrature, grid, sigma: float) -> np.ndarray:
    """The density phi(t) = (1/P) sum_p sum_i w_pi N(t; theta_pi, sigma^2), [points].

    The kernels are normalised analytically: phi integrates to 1 over the real line, and what a panel cuts off is
    missing. The published code instead divides by what the grid holds; `sums_to_one` does that.

    Args:
      quadrature: nodes and weights.
      grid: where to evaluate, [points].
      sigma: standard deviation of the kernel, > 0, in the units of the eigenvalues.

    Raises:
      InputError: sigma is not positive, or the nodes and weights are no quadrature.
    """
    return _smoothed_probes(_checked(quadrature), np.asarray(grid, np.float64), sigma).mean(axis=0)


def density(quadrature: Quadrature, kernel: str = "relative", *, points: int = 10_000) -> Density:
    """The density between the outermost nodes, ready to be drawn.

    The grid goes beyond them by six standard deviations of the kernel, so that nothing is cut off, and is made finer
    than asked for where the kernel is narrower than two of its cells: peaks would fall between the points. With the
    published kernel and 10,000 points that happens from a range of about 250 on.

    Args:
      quadrature: nodes and weights.
      kernel: "relative" or, as published, "ghorbani": how wide, by the range of the nodes; see `relative_sigma` and
        `ghorbani_sigma`.
      points: of the grid, at least.

    Raises:
      InputError: there is no such kernel, or this is no quadrature.
    """
    if kernel not in KERNELS:
        raise InputError(f"kernel: expected one of {sorted(KERNELS)}, got {kernel!r}")
    nodes = _checked(quadrature).nodes[quadrature.weights > 0]
    low, high = float(nodes.min()), float(nodes.max())
    sigma = KERNELS[kernel](low, high)
    needed = 2 + 2 * (high - low + 12 * sigma) / sigma  # cells of half a standard deviation
    grid = grid_of(low, high, max(points, int(min(needed, MAX_POINTS))), margin=6 * sigma)
    return Density(grid, _smoothed_probes(quadrature, grid, sigma), sigma)


def sums_to_one(density, grid) -> np.ndarray:
    """A density scaled such that its sum times the spacing of its uniform grid is 1, as the published code has it."""
    grid = np.asarray(grid, np.float64)
    return np.asarray(density) / (np.sum(density) * (grid[1] - grid[0]))


def ghorbani_sigma(lambda_min: float, lambda_max: float) -> float:
    """The published width of the kernel: sigma^2 = 1e-5 max(1, lambda_max - lambda_min).

    It is at least 0.0032: of a spectrum much narrower than one it hides every structure, and shows negative eigenvalues
    well below lambda_min.

    Raises:
      InputError: the ends are not finite or in the wrong order.
    """
    return float(np.sqrt(GHORBANI_VARIANCE * max(1.0, _range(lambda_min, lambda_max))))


def relative_sigma(lambda_min: float, lambda_max: float) -> float:
    """A width that scales with the spectrum: sigma = sqrt(1e-5) (lambda_max - lambda_min).

    It is the published one for a range of 1, and curves look the same whatever the scale of the loss; where a panel
    shows the whole range, the kernel is 0.3 % of its width. A spectrum of range zero gets sqrt(1e-5) |lambda|.

    Raises:
      InputError: the ends are not finite or in the wrong order.
    """
    scale = _range(lambda_min, lambda_max) or max(abs(lambda_max), 1e-30)
    return float(np.sqrt(GHORBANI_VARIANCE) * scale)


KERNELS = {"ghorbani": ghorbani_sigma, "relative": relative_sigma}


def grid_of(lambda_min: float, lambda_max: float, points: int = 10_000, margin: float = 0.01) -> np.ndarray:
    """A uniform grid from lambda_min - margin to lambda_max + margin, [points]; the defaults are the published ones.

    Raises:
      InputError: the ends are not finite or in the wrong order, or there are fewer than two points.
    """
    _range(lambda_min, lambda_max)
    if points < 2:
        raise InputError(f"points: expected a number >= 2, got {points}")
    return np.linspace(lambda_min - margin, lambda_max + margin, points)


def share_below(quadrature: Quadrature, threshold: float) -> tuple[float, float | None]:
    """The share of eigenvalues below a threshold, unsmoothed.

    Most eigenvalues of a network lie within rounding of zero, where nodes stand for many of them on both sides: a
    threshold of 0 itself counts noise.

    Returns:
      The mean over probes and its standard error, None for a single probe.

    Raises:
      InputError: this is no quadrature.
    """
    quadrature = _checked(quadrature)
    below = np.nan_to_num(quadrature.nodes, nan=np.inf) < threshold
    return _over_probes(np.sum(quadrature.weights * below, axis=1))


def moment(quadrature: Quadrature, k: int) -> tuple[float, float | None]:
    """The mean of the eigenvalues' k-th powers; n times the first is the trace, n times the second ||H||_F^2.

    Returns:
      The mean over probes and its standard error, None for a single probe.

    Raises:
      InputError: k < 0, or this is no quadrature.
    """
    if k < 0:
        raise InputError(f"k: expected a number >= 0, got {k}")
    quadrature = _checked(quadrature)
    return _over_probes(np.sum(quadrature.weights * _filled(quadrature) ** k, axis=1))


def wasserstein(quadrature: Quadrature, other, sigma: float = 0.0) -> float:
    """The 1-Wasserstein distance of two densities, both smoothed by the same Gaussian; in units of eigenvalues.

    It is the integral of |F - G| over their distribution functions: how far, on average, eigenvalues would have to be
    moved. Smoothing never makes it larger.

    Args:
      quadrature: nodes and weights; the probes are averaged first.
      other: another `Quadrature`, or eigenvalues [n] of equal weight.
      sigma: standard deviation of the kernel; 0 for none. The smoothed distance is computed in cells of sigma / 8 or,
        where these are more, a millionth of the range.

    Raises:
      InputError: sigma is negative, or one of the two is no quadrature.
    """
    check_number("sigma", sigma, ">= 0")
    nodes, masses = zip(_masses(quadrature), _masses(other), strict=True)
    places, difference = np.concatenate(nodes), np.concatenate([masses[0], -masses[1]])
    if sigma == 0 or np.ptp(places) == 0:
        order = np.argsort(places, kind="stable")
        return float(np.sum(np.abs(np.cumsum(difference[order])[:-1]) * np.diff(places[order])))
    return _smoothed_distance(places, difference, sigma)


def _smoothed_distance(places: np.ndarray, difference: np.ndarray, sigma: float) -> float:
    """The integral of |Phi_sigma * (F - G)| of point masses that add up to zero."""
    low = places.min() - 8 * sigma
    width = places.max() + 8 * sigma - low
    cell = max(sigma / 8, width / MAX_CELLS)
    size = int(np.ceil(width / cell)) + 2
    # A mass is shared out between the two nearest points, which keeps its mean where it is.
    position = (places - low) / cell
    left = np.floor(position).astype(np.int64)
    fraction = position - left
    binned = np.bincount(left, difference * (1 - fraction), size) + np.bincount(left + 1, difference * fraction, size)
    frequency = 2 * np.pi * np.fft.rfftfreq(size, cell)
    blurred = np.fft.irfft(np.fft.rfft(binned) * np.exp(-0.5 * (frequency * sigma) ** 2), size)
    return float(cell * np.sum(np.abs(np.cumsum(blurred))))


def _smoothed_probes(quadrature: Quadrature, grid: np.ndarray, sigma: float) -> np.ndarray:
    """The density of each probe, [probes, points]; node by node, each where its kernel is not negligible."""
    check_number("sigma", sigma, "> 0")
    order = np.argsort(grid, kind="stable")
    ascending = grid[order]
    result = np.zeros((len(quadrature.nodes), len(grid)))
    for row, nodes, weights in zip(result, quadrature.nodes, quadrature.weights, strict=True):
        for node, weight in zip(nodes[weights > 0], weights[weights > 0], strict=True):
            # Beyond 30 standard deviations a kernel is below 1e-195 of its peak.
            first, last = np.searchsorted(ascending, (node - 30 * sigma, node + 30 * sigma))
            window = order[first:last]
            row[window] += weight * np.exp(-0.5 * ((grid[window] - node) / sigma) ** 2)
    return result / (sigma * np.sqrt(2 * np.pi))


def _checked(quadrature: Quadrature) -> Quadrature:
    """Raises InputError unless nodes and weights are a quadrature."""
    nodes, weights = np.asarray(quadrature.nodes), np.asarray(quadrature.weights)
    if nodes.ndim != 2 or nodes.shape != weights.shape or 0 in nodes.shape:
        raise InputError(f"quadrature: expected nodes and weights [probes, order], got {nodes.shape}, {weights.shape}")
    if not (np.all(weights >= 0) and np.all(np.isfinite(nodes[weights > 0]))):
        raise InputError("quadrature: expected weights >= 0 and finite nodes where they are not 0")
    sums = weights.sum(axis=1)
    if np.max(np.abs(sums - 1)) > 1e-6:
        raise InputError(f"quadrature: expected weights that add up to 1 for each probe, got {sums.tolist()}"[:300])
    return Quadrature(nodes, weights)


def _masses(spectrum: Quadrature | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places and masses, adding up to 1, of a quadrature's mean over probes or of eigenvalues."""
    if isinstance(spectrum, Quadrature):
        quadrature = _checked(spectrum)
        masses = quadrature.weights / quadrature.weights.sum()
        return _filled(quadrature).ravel(), masses.ravel()
    values = np.asarray(spectrum, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError(f"other: expected a Quadrature or finite eigenvalues [n], got shape {values.shape}")
    return values, np.full(len(values), 1 / len(values))


def _filled(quadrature: Quadrature) -> np.ndarray:
    """The nodes, with a node of the same spectrum in the place of those without weight."""
    some = quadrature.nodes[quadrature.weights > 0][0]
    return np.where(quadrature.weights > 0, quadrature.nodes, some)


def _range(lambda_min: float, lambda_max: float) -> float:
    """The length of a spectrum, checked."""
    if not (np.isfinite(lambda_min) and np.isfinite(lambda_max) and lambda_min <= lambda_max):
        raise InputError(f"lambda_min, lambda_max: expected finite ends in order, got {lambda_min}, {lambda_max}")
    return lambda_max - lambda_min


def _over_probes(values: np.ndarray) -> tuple[float, float | None]:
    """Mean and standard error."""
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return float(values.mean()), error
