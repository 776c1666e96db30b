"""Curves over all thresholds as figures."""

import numpy as np
import pytest

from imbal_jax.errors import InputError
from imbal_jax.evaluation.binary_metrics import operating_points
from imbal_jax.reports.binary_figures import binary_curves_figure
from imbal_jax.reports.figures import save_figure

RNG = np.random.default_rng(0)
LABELS = np.r_[np.zeros(60, int), np.ones(20, int)]
SHIFTS = {"weak": 0.5, "strong": 2.0}
CURVES = {name: operating_points(LABELS, RNG.normal(size=80) + shift * LABELS) for name, shift in SHIFTS.items()}


def test_both_curves_of_every_model_are_drawn():
    figure = binary_curves_figure(CURVES)
    precision, roc = figure.axes
    for axes, x, y in ((precision, "recall", "precision"), (roc, "false_positive_rate", "recall")):
        for line, points in zip(axes.lines, CURVES.values(), strict=False):
            np.testing.assert_array_equal(line.get_xdata(), getattr(points, x))
            np.testing.assert_array_equal(line.get_ydata(), getattr(points, y))
    assert [text.get_text() for text in precision.get_legend().get_texts()] == ["weak", "strong"]
    assert precision.lines[-1].get_ydata()[0] == 20 / 80  # what chance gives
    assert (precision.get_xlabel(), precision.get_ylabel()) == ("recall", "precision")
    assert (roc.get_xlabel(), roc.get_ylabel()) == ("false positive rate", "true positive rate")


def test_one_model_needs_no_legend(tmp_path):
    figure = binary_curves_figure({"": CURVES["strong"]})
    assert figure.axes[0].get_legend() is None
    assert all(path.stat().st_size > 0 for path in save_figure(figure, tmp_path / "curves"))


def test_no_curve_is_refused():
    with pytest.raises(InputError, match=r"^curves: expected at least one, got none"):
        binary_curves_figure({})
