"""The toy of two Gaussians: its closed-form optimum, its samples, its training and its command line."""

import json

import jax
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from experiments import toy_boundary as toy
from imbal_jax.directions.gradient import gradient
from imbal_jax.main import EXIT_INPUT, EXIT_NON_FINITE, guarded
from imbal_jax.training.step import DeviceData

TINY = ["--ratios=1,4", "--seeds=1,3", "--steps=4", "--examples=16"]
COUNTS = (60, 30)


def random_gaussian(rng):
    root = rng.normal(size=(2, 2))
    (a, b), (c, d) = (root @ root.T + 0.5 * np.eye(2)).tolist()
    return toy.Gaussian((rng.normal(), rng.normal()), ((a, b), (c, d)))


def log_densities(classes, points):
    """[2, n] float64."""
    return np.stack([multivariate_normal(*each).logpdf(points) for each in classes])


@pytest.fixture(scope="module")
def balanced():
    return toy.sample(jax.random.key(7), (20_000, 20_000))


@pytest.mark.parametrize("log_ratio", [0.0, np.log(50)])
def test_the_optimum_is_the_difference_of_the_log_densities(log_ratio):
    rng = np.random.default_rng(0)
    for classes in (toy.CLASSES, (random_gaussian(rng), random_gaussian(rng))):
        points = rng.normal(size=(50, 2))
        weights, intercept = toy.optimal_boundary(classes, log_ratio)
        x, y = points.T
        quadratic = np.stack([x, y, x**2, x * y, y**2], axis=-1) @ weights + intercept
        zero, one = log_densities(classes, points)
        np.testing.assert_allclose(quadratic, one - zero - log_ratio, rtol=1e-9, atol=1e-9)


def test_the_default_optimum_is_a_parabola():
    # Of conics a x1^2 + b x1 x2 + c x2^2 + ... = 0, those with b^2 = 4 a c.
    _, linear, a, b, c = toy.optimal_boundary(toy.CLASSES).weights
    assert b**2 - 4 * a * c == pytest.approx(0, abs=1e-12)
    assert a < 0 < linear


def test_the_optimum_scores_the_bayes_accuracy(balanced):
    axis = np.linspace(-12, 12, 801)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    largest = np.exp(log_densities(toy.CLASSES, grid)).max(axis=0)
    bayes = 0.5 * largest.sum() * (axis[1] - axis[0]) ** 2
    found = toy.score(toy.optimal_boundary(toy.CLASSES), balanced)["balanced_accuracy"]
    assert found == pytest.approx(bayes, abs=4 * 0.5 / np.sqrt(40_000))
    # Frequencies of another sample move the boundary, which costs balanced accuracy.
    shifted = toy.score(toy.optimal_boundary(toy.CLASSES, np.log(10)), balanced)
    assert shifted["balanced_accuracy"] < bayes - 0.05
    assert shifted["per_class_recall"][0] > shifted["per_class_recall"][1]


def test_samples_have_the_wanted_counts_and_moments(balanced):
    data = toy.sample(jax.random.key(0), COUNTS)
    assert data.images.shape == (90, 2)
    np.testing.assert_array_equal(np.bincount(data.labels), COUNTS)
    for label, gaussian in enumerate(toy.CLASSES):
        points = np.asarray(balanced.images)[np.asarray(balanced.labels) == label]
        np.testing.assert_allclose(points.mean(axis=0), gaussian.mean, atol=0.05)
        np.testing.assert_allclose(np.cov(points.T), gaussian.covariance, atol=0.1)


def gradients(data, theta):
    """Of every loss with respect to theta = (weights, intercept) of class 1's logit, [n, 6], and 1 - p_n; float64."""
    x, y = np.asarray(data.images, np.float64).T
    features = np.stack([x, y, x**2, x * y, y**2, np.ones_like(x)], axis=-1)
    sign = 2.0 * np.asarray(data.labels) - 1
    error = 1 / (1 + np.exp(sign * (features @ theta)))
    return -(error * sign)[:, None] * features, error


def reference_path(data, name, learning_rate, steps):
    """The boundary after every step, [steps, 6], by dense formulas for the difference of the two logits.

    The gradients of the two logits are opposite: Gram matrices double, and so does the step of the difference.
    """
    # The weights have mean one over the classes, not over the examples.
    per_class = 1 / np.bincount(data.labels)
    weights = (2 * per_class / per_class.sum())[np.asarray(data.labels)] if name == "re-weighting" else 1.0
    theta, path = np.zeros(6), []
    for _ in range(steps):
        jacobian, error = gradients(data, theta)
        if name in ("SGD", "re-weighting"):
            coefficients = weights * np.ones(len(error)) / len(error)
        else:
            gram = 2 * jacobian @ jacobian.T
            right = np.ones(len(error)) if name == "EF" else 2 * error**2
            coefficients = np.linalg.solve(gram + np.diag(gram).mean() * np.eye(len(gram)), right)
        theta = theta - 2 * learning_rate * jacobian.T @ coefficients
        path.append(theta)
    return np.array(path)


@pytest.mark.parametrize("name", toy.METHODS)
def test_training_follows_the_formulas(name):
    data = toy.sample(jax.random.key(0), COUNTS)
    method = toy.METHODS[name]._replace(learning_rate=0.3)  # so small a sample oscillates at larger ones
    params, losses = toy.make_training(method, COUNTS, steps=300)(data)
    path = np.column_stack(toy.learned_boundary(params))
    np.testing.assert_allclose(path, reference_path(data, name, 0.3, 300), rtol=2e-3, atol=2e-3)
    assert losses[0] == pytest.approx(np.log(2), rel=1e-5)
    # EF ends where the gradient vanishes, iEF where the gradients weighted by (1 - p_n)^2 do.
    jacobian, error = gradients(data, path[-1])
    plain, weighted = np.abs(jacobian.mean(axis=0)).max(), np.abs(error**2 @ jacobian).max() / len(error)
    if name == "EF":
        assert plain < 1e-4 < 1e-3 < weighted
    elif name == "iEF":
        assert weighted < 1e-4 < 1e-3 < plain


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The folder of a tiny comparison."""
    folder = tmp_path_factory.mktemp("toy") / "new"
    assert guarded(toy.run, [f"--output={folder}", *TINY]) == 0
    return folder


def test_the_command_writes_pictures_and_numbers(output):
    assert {path.name for path in output.iterdir()} == {f"toy_boundary.{kind}" for kind in ("png", "pdf", "json")}
    results = json.loads((output / "toy_boundary.json").read_text())
    assert results["settings"]["watched_steps"] == [1, 3, 4]
    assert 0.8 < results["optimum"]["balanced_accuracy"] < 0.9
    assert {ratio: each["class_counts"] for ratio, each in results["ratios"].items()} == {"1": [16, 16], "4": [16, 4]}
    for at_ratio in results["ratios"].values():
        assert list(at_ratio["methods"]) == list(toy.METHODS)
        for summary in at_ratio["methods"].values():
            values = [summary["per_seed"][seed]["balanced_accuracy"] for seed in ("1", "3")]
            assert summary["balanced_accuracy"] == pytest.approx(np.mean(values))
            assert summary["standard_error"]["balanced_accuracy"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(2))
            assert len(summary["balanced_accuracy_at_steps"]) == 3
    balanced, unequal = (results["ratios"][ratio] for ratio in ("1", "4"))
    weights = {name: np.array(each["weights"]) for name, each in balanced["methods"].items()}
    np.testing.assert_allclose(weights["SGD"], weights["re-weighting"], rtol=1e-4)
    recalls = {name: unequal["methods"][name]["per_class_recall"][1] for name in ("SGD", "re-weighting")}
    assert recalls["re-weighting"] > recalls["SGD"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--ratios=1,x", "--ratios: expected different whole numbers in [1, 500], separated by commas, got '1,x'"),
        ("--ratios=501", "--ratios: expected different whole numbers in [1, 500], separated by commas, got '501'"),
        ("--ratios=", "--ratios: expected different whole numbers in [1, 500], separated by commas, got ''"),
        ("--seeds=0,0", "--seeds: expected different whole numbers in [0, 4294967295], separated by commas, got '0,0'"),
        ("--steps=0", "--steps: expected a whole number >= 1, got 0"),
        ("--examples=many", "argument --examples: invalid int value: 'many'; see --help"),
        ("--step=3", "unrecognized arguments: --step=3; see --help"),
    ],
)
def test_bad_arguments_are_told_in_one_line(capsys, argument, message):
    assert guarded(toy.run, [argument]) == EXIT_INPUT
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_diverged_training_is_told_in_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(toy, "METHODS", {"SGD": toy.Method(gradient(), 1e38)})
    assert guarded(toy.run, [f"--output={tmp_path}", *TINY]) == EXIT_NON_FINITE
    assert "non-finite at step" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_boundary_outside_of_the_picture_is_left_out():
    data = toy.sample(jax.random.key(0), (8, 8))
    summary = {
        "balanced_accuracy": 0.5,
        "standard_error": {"balanced_accuracy": None},
        "per_seed": {"0": {"weights": [0.0] * 5, "intercept": -1.0}},
    }
    results = {
        "settings": {"seeds": [0]},
        "optimum": {"balanced_accuracy": 0.86},
        "ratios": {1: {"class_counts": (8, 8), "methods": {"SGD": summary}}},
    }
    figure = toy.boundaries_figure(results, {1: DeviceData(np.asarray(data.images), np.asarray(data.labels))})
    axes = figure.axes[0]
    assert axes.get_title().endswith("50.0 %  (optimum 86.0 %)")
    assert len(axes.collections) == 3  # two classes and the optimum
