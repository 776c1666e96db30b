"""The toy of the thesis's Figure 1.1: what class imbalance does to the boundary of a logistic regression.

  python -m experiments.toy_boundary [--output=DIR] [--ratios=1,10,50] [--seeds=0,1,2] [--steps=30] [--examples=500]

Two classes are drawn from Gaussians, class 1 `ratio` times less often than class 0. Their log-densities differ by a
quadratic (thesis A.1), here a parabola, which is the best boundary for equal class frequencies. A logistic regression
with quadratic features, not standardised, starts from zero and takes full-batch steps along the gradient (SGD), the
gradient of the loss re-weighted by the inverse class frequency, EF or iEF. Every method is scored by its balanced
accuracy on a large balanced test sample. Written are toy_boundary.png, .pdf and .json.

What is seen: balanced accuracy in per cent, mean and standard error over three seeds, after 30 steps (after 10):

  ratio   optimum   SGD                  re-weighting         EF                   iEF
  1       85.8      85.7 ± 0.0 (85.7)    85.7 ± 0.0 (85.7)    85.7 ± 0.0 (85.7)    85.7 ± 0.1 (85.7)
  10      85.8      73.0 ± 0.9 (73.0)    85.5 ± 0.1 (85.6)    73.3 ± 1.2 (73.3)    73.6 ± 1.1 (73.6)
  50      85.8      55.7 ± 1.4 (51.0)    85.1 ± 0.3 (83.8)    59.4 ± 1.8 (59.1)    60.0 ± 0.8 (59.8)

- Only re-weighting minimises the loss of balanced classes, and only it ends near the optimum. Neither EF nor iEF comes
  close to it: there are far more examples than parameters, so no step can lower every loss by the amount it aims at,
  and what is left is a preconditioned gradient.
- EF has the same stationary points as SGD. They lie near the optimum at the sample's own ratio (dashed in the picture),
  which has a balanced accuracy of 72.4 at ratio 10 and 58.3 at ratio 50. EF differs from SGD by the path only: at ratio
  50 it has settled after 30 steps and SGD has not.
- iEF has others, where sum_n s_n grad l_n = 0 instead of sum_n grad l_n = 0. With s_n = 2 (1 - p_n)^2, p_n the
  probability of the true class, its logits tend to a third of the log-odds: a larger cross-entropy, but the same
  boundary up to the randomness of the sample.

Each learning rate is the largest of 0.1, 0.3, 1 and 3 at which no ratio and no seed of the three oscillates in 30 to 50
steps. EF and iEF are in units="sum", where 1 is close to a Newton step. Their damping, the mean squared gradient, is
small beside the curvature of hundreds of examples; with 0.1 of it EF oscillates on one seed at ratio 50.
"""

import argparse
import pathlib
import sys
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from rich.console import Console

from imbal_jax.corrections.weights import cross_entropy, inverse_frequency
from imbal_jax.directions.empirical_fisher import empirical_fisher, improved_empirical_fisher
from imbal_jax.directions.gradient import gradient
from imbal_jax.errors import InputError, NonFiniteLossError
from imbal_jax.evaluation.metrics import confusion_matrix, metrics_from_confusion
from imbal_jax.main import guarded
from imbal_jax.models.heads import classify
from imbal_jax.reports.figures import COLOURS, save_figure
from imbal_jax.reports.records import write_json
from imbal_jax.reports.summaries import summarise
from imbal_jax.reports.tables import results_table
from imbal_jax.training.state import initial_state
from imbal_jax.training.step import DeviceData, make_step
from imbal_jax.training.step_rules import sgd
from imbal_jax.types import Array, Direction, Params

TEST_EXAMPLES = 50_000  # per class: the standard error of an accuracy is about 0.1 %
WATCHED_STEPS = (1, 3, 10, 30, 100, 300, 1000)
LIMITS = ((-4.5, 4.5), (-3.5, 5.0))  # of the picture, x1 and x2


class Gaussian(NamedTuple):
    """A bivariate normal distribution."""

    mean: tuple[float, float]
    covariance: tuple[tuple[float, float], tuple[float, float]]


class Boundary(NamedTuple):
    """The zeros of weights . quadratic_features(x) + intercept; class 1 lies where it is positive."""

    weights: Array | np.ndarray  # [..., 5]
    intercept: Array | np.ndarray  # [...]


class Method(NamedTuple):
    """A way of training the classifier."""

    direction: Direction
    learning_rate: float
    reweighted: bool = False


# Their inverse covariances differ in one direction only, which makes the boundary a parabola.
CLASSES = (Gaussian((0.0, 0.0), ((2.25, 0.0), (0.0, 1.0))), Gaussian((0.0, 1.8), ((0.36, 0.0), (0.0, 1.0))))
METHODS = {
    "SGD": Method(gradient(), 1.0),
    "re-weighting": Method(gradient(), 1.0, reweighted=True),
    "EF": Method(empirical_fisher(units="sum", damping=1.0), 0.3),
    "iEF": Method(improved_empirical_fisher(units="sum", damping=1.0), 1.0),
}


class QuadraticRegression(nn.Module):
    """Logistic regression, as a softmax of two logits, with a quadratic basis and all parameters zero at first."""

    @nn.compact
    def __call__(self, points: Array, train: bool) -> tuple[Array, Array]:
        """Maps points [batch, 2] to logits [batch, 2] and features [batch, 5]."""
        features, zeros = quadratic_features(points), nn.initializers.zeros
        return classify(features, "linear", 2, kernel_init=zeros, bias_init=zeros), features


def quadratic_features(points) -> Array:
    """x1, x2, x1^2, x1 x2, x2^2 of points [..., 2], [..., 5]."""
    first, second = points[..., 0], points[..., 1]
    return jnp.stack([first, second, first**2, first * second, second**2], axis=-1)


def optimal_boundary(classes: tuple[Gaussian, Gaussian], log_ratio: float = 0.0) -> Boundary:
    """log p(x | y = 1) - log p(x | y = 0) as a quadratic (thesis A.1), float64.

    The thesis subtracts the other way round and leaves out a factor of 1/2 beside its log-determinants.

    Args:
      classes: the distributions of class 0 and class 1.
      log_ratio: log n_0/n_1 of class frequencies; 0 for equal ones, as in the thesis.
    """
    means = [np.array(each.mean) for each in classes]
    inverses = [np.linalg.inv(each.covariance) for each in classes]
    log_determinants = [np.linalg.slogdet(each.covariance)[1] for each in classes]
    quadratic = (inverses[0] - inverses[1]) / 2
    linear = inverses[1] @ means[1] - inverses[0] @ means[0]
    constants = [mean @ inverse @ mean for mean, inverse in zip(means, inverses, strict=True)]
    intercept = (constants[0] - constants[1] + log_determinants[0] - log_determinants[1]) / 2 - log_ratio
    weights = [*linear, quadratic[0, 0], quadratic[0, 1] + quadratic[1, 0], quadratic[1, 1]]
    return Boundary(np.array(weights), intercept)


def learned_boundary(params: Params) -> Boundary:
    """Where the two logits are equal."""
    layer = params["classifier"]
    return Boundary(*(leaf[..., 1] - leaf[..., 0] for leaf in (layer["kernel"], layer["bias"])))


def sample(key: Array, counts: tuple[int, int]) -> DeviceData:
    """Draws counts[c] points of each class c: points float32 [n, 2], class 0 first, and labels int32 [n]."""
    points = [
        jax.random.multivariate_normal(jax.random.fold_in(key, label), jnp.array(mean), jnp.array(covariance), (count,))
        for label, ((mean, covariance), count) in enumerate(zip(CLASSES, counts, strict=True))
    ]
    return DeviceData(jnp.concatenate(points), jnp.repeat(jnp.arange(2, dtype=jnp.int32), jnp.array(counts)))


def score(boundary: Boundary, data: DeviceData) -> dict[str, Any]:
    """The metrics of the rule that takes class 1 where the boundary's quadratic is positive."""
    chosen = np.asarray(quadratic_features(data.images) @ boundary.weights + boundary.intercept > 0)
    return metrics_from_confusion(confusion_matrix(data.labels, chosen.astype(np.int32), 2))


def make_training(method: Method, counts: tuple[int, int], steps: int):
    """A compiled function from a training set to the parameters after every step and the cross-entropies before it."""
    model, step_rule = QuadraticRegression(), sgd(optax.constant_schedule(method.learning_rate))
    correction = inverse_frequency(np.array(counts)) if method.reweighted else cross_entropy()
    step = make_step(
        model, correction, "mean", method.direction, step_rule, lambda key, points: points, (0.0, 1.0), steps
    )
    everything, key = jnp.arange(sum(counts)), jax.random.key(0)  # nothing in a step is random

    @jax.jit
    def train(data: DeviceData) -> tuple[Params, Array]:
        def body(state, _):
            state, metrics = step(state, data, everything, key)
            return state, (state.params, metrics.cross_entropy)

        return jax.lax.scan(body, initial_state(model, method.direction, step_rule, (2,), 0), length=steps)[1]

    return train


def evaluate(train, training_set: DeviceData, test_set: DeviceData) -> dict[str, Any]:
    """Trains on one sample; the result of one seed.

    Raises:
      NonFiniteLossError: the training diverged.
    """
    params, losses = jax.device_get(train(training_set))
    if not np.isfinite(losses).all():
        raise NonFiniteLossError(f"the loss became non-finite at step {np.argmin(np.isfinite(losses))}")
    path = learned_boundary(params)
    at = {step: Boundary(path.weights[step - 1], path.intercept[step - 1]) for step in watched(len(losses))}
    accuracies = [score(boundary, test_set)["balanced_accuracy"] for boundary in at.values()]
    last = at[len(losses)]
    return {
        "balanced_accuracy": accuracies[-1],
        "per_class_recall": score(last, test_set)["per_class_recall"],
        "balanced_accuracy_at_steps": accuracies,
        "train_cross_entropy": losses[-1],
        **last._asdict(),
    }


def watched(steps: int) -> list[int]:
    """The steps after which the boundary is scored, the last one included."""
    return sorted({step for step in WATCHED_STEPS if step < steps} | {steps})


def compare(options: argparse.Namespace) -> tuple[dict[str, Any], dict[int, DeviceData]]:
    """Trains every method at every ratio.

    Returns:
      What the JSON file holds, and the first seed's training set by ratio.
    """
    test_set = sample(jax.random.fold_in(jax.random.key(0), 2**32 - 1), (TEST_EXAMPLES, TEST_EXAMPLES))
    settings = {key: getattr(options, key) for key in ("steps", "examples", "seeds")}
    settings |= {"test_examples_per_class": TEST_EXAMPLES, "watched_steps": watched(options.steps)}
    settings["learning_rates"] = {name: method.learning_rate for name, method in METHODS.items()}
    best = optimal_boundary(CLASSES)
    optimum = {"balanced_accuracy": score(best, test_set)["balanced_accuracy"], **best._asdict()}
    ratios, first = {}, {}
    for ratio in options.ratios:
        counts = (options.examples, options.examples // ratio)
        training_sets = {seed: sample(jax.random.key(seed), counts) for seed in options.seeds}
        first[ratio] = training_sets[options.seeds[0]]
        shifted = score(optimal_boundary(CLASSES, np.log(counts[0] / counts[1])), test_set)
        methods = {}
        for name, method in METHODS.items():
            train = make_training(method, counts, options.steps)
            methods[name] = summarise({seed: evaluate(train, data, test_set) for seed, data in training_sets.items()})
        unequal = {"balanced_accuracy": shifted["balanced_accuracy"]}
        ratios[ratio] = {"class_counts": counts, "optimum_at_these_frequencies": unequal, "methods": methods}
    return {"settings": settings, "optimum": optimum, "ratios": ratios}, first


def boundaries_figure(results: dict[str, Any], data: dict[int, DeviceData]) -> Figure:
    """A panel for each method (rows) and ratio (columns), with the sample and the boundary of the first seed."""
    ratios, seed = results["ratios"], str(results["settings"]["seeds"][0])
    size = (0.6 + 2.7 * len(ratios), 0.6 + 2.15 * len(METHODS))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05))
    all_axes = figure.subplots(len(METHODS), len(ratios), sharex=True, sharey=True, squeeze=False)
    for column, (ratio, at_ratio) in enumerate(ratios.items()):
        counts = at_ratio["class_counts"]
        for row, (name, summary) in enumerate(at_ratio["methods"].items()):
            axes, own = all_axes[row, column], summary["per_seed"][seed]
            _draw_points(axes, data[ratio])
            if counts[0] > counts[1]:  # else it is the other optimum
                _draw_boundary(axes, optimal_boundary(CLASSES, np.log(counts[0] / counts[1])), "dashed", 1.0)
            _draw_boundary(axes, optimal_boundary(CLASSES), "dotted", 1.8)
            _draw_boundary(axes, Boundary(np.array(own["weights"]), own["intercept"]), "solid", 1.8)
            heading = f"ratio {ratio} ({counts[0]} + {counts[1]} examples)\n" if row == 0 else ""
            axes.set_title(heading + _accuracy(summary, results["optimum"]), fontsize=9)
            axes.set(xlim=LIMITS[0], ylim=LIMITS[1], xticks=(-3, 0, 3), yticks=(-3, 0, 3))
            axes.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axes.set_ylabel(name, fontsize=12)
    handles = [
        *(Line2D([], [], linestyle="", marker="o", markersize=4, color=COLOURS[c], label=f"class {c}") for c in (0, 1)),
        Line2D([], [], color="black", linewidth=1.8, label="learned boundary"),
        Line2D([], [], color="black", linestyle="dotted", linewidth=1.8, label="optimum"),
        Line2D([], [], color="black", linestyle="dashed", linewidth=1.0, label="optimum at the sample's ratio"),
    ]
    columns = 5 if len(ratios) > 2 else 2
    figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, columnspacing=1.2, fontsize=9, frameon=False
    )
    return figure


def _draw_points(axes: Axes, data: DeviceData) -> None:
    """The classes; the rare one above the other and with larger markers."""
    points, labels = np.asarray(data.images), np.asarray(data.labels)
    for label, size in ((0, 5), (1, 5 if np.mean(labels) > 0.3 else 12)):
        x, y = points[labels == label].T
        axes.scatter(x, y, s=size, color=COLOURS[label], alpha=0.55, linewidths=0)


def _draw_boundary(axes: Axes, boundary: Boundary, style: str, width: float) -> None:
    """The zeros of a quadratic; nothing where there are none in the picture."""
    x, y = np.meshgrid(*(np.linspace(*limits, 300) for limits in LIMITS))
    heights = np.asarray(quadratic_features(np.stack([x, y], axis=-1)) @ boundary.weights + boundary.intercept)
    if heights.min() < 0 < heights.max():
        axes.contour(x, y, heights, levels=[0], colors="black", linestyles=style, linewidths=width)


def _accuracy(summary: dict[str, Any], optimum: dict[str, Any]) -> str:
    """The balanced accuracy beside the optimum's."""
    error = summary["standard_error"]["balanced_accuracy"]
    deviation = "" if error is None else f" ± {100 * error:.1f}"
    return (
        f"{100 * summary['balanced_accuracy']:.1f}{deviation} %  (optimum {100 * optimum['balanced_accuracy']:.1f} %)"
    )


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads and checks the command line.

    Raises:
      InputError: an argument is unknown or out of range.
    """
    parser = _Parser(
        prog="python -m experiments.toy_boundary",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/toy_boundary"), metavar="DIR")
    parser.add_argument("--ratios", default="1,10,50", metavar="A,B,...", help="examples of class 0 for one of class 1")
    parser.add_argument("--seeds", default="0,1,2", metavar="A,B,...", help="of the samples; the first is drawn")
    parser.add_argument("--steps", type=int, default=30, help="of every method")
    parser.add_argument("--examples", type=int, default=500, help="of class 0")
    options = parser.parse_args(arguments)
    for name in ("steps", "examples"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name}: expected a whole number >= 1, got {getattr(options, name)}")
    options.ratios = _numbers("ratios", options.ratios, 1, options.examples)
    options.seeds = _numbers("seeds", options.seeds, 0, 2**32 - 1)
    return options


def _numbers(name: str, text: str, least: int, most: int) -> list[int]:
    """Reads different whole numbers in an interval, separated by commas, or raises InputError."""
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in parts if part.isdecimal()]
    if len(numbers) < len(parts) or len(set(numbers)) < len(parts) or not least <= min(numbers) <= max(numbers) <= most:
        expected = f"different whole numbers in [{least}, {most}], separated by commas"
        raise InputError(f"--{name}: expected {expected}, got {text!r}")
    return numbers


def run(arguments: list[str]) -> int:
    """Runs the comparison and writes it down; returns the exit status."""
    options = parse(arguments)
    results, data = compare(options)
    write_json(options.output / "toy_boundary.json", results)
    picture, _ = save_figure(boundaries_figure(results, data), options.output / "toy_boundary")
    rows: dict[str, dict[str, Any]] = {name: {"standard_error": {}} for name in METHODS}
    for ratio, at_ratio in results["ratios"].items():
        for name, summary in at_ratio["methods"].items():
            rows[name][f"ratio_{ratio}"] = summary["balanced_accuracy"]
            rows[name]["standard_error"][f"ratio_{ratio}"] = summary["standard_error"]["balanced_accuracy"]
    title = f"balanced accuracy, optimum {100 * results['optimum']['balanced_accuracy']:.2f}"
    Console().print(results_table(rows, [f"ratio_{ratio}" for ratio in options.ratios], title=title))
    print(f"written to {options.output}: {picture.name}, toy_boundary.pdf, toy_boundary.json")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
