"""Figures of two classes over all thresholds."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure

from imbal_jax.errors import InputError
from imbal_jax.reports.figures import COLOURS, GREY, new_figure


class Points(Protocol):
    """The operating points of a model, as `imbal_jax.evaluation.binary_metrics.OperatingPoints`."""

    @property
    def recall(self) -> np.ndarray:
        """The true positive rate."""

    @property
    def precision(self) -> np.ndarray:
        """The share of positives among those predicted."""

    @property
    def false_positive_rate(self) -> np.ndarray:
        """The share of negatives predicted as positive."""


def binary_curves_figure(curves: Mapping[str, Points]) -> Figure:
    """Precision over recall, as steps, beside the ROC curve; dashed what chance gives.

    Args:
      curves: operating points on one split by the name to show, "" for none.

    Raises:
      InputError: there is no curve.
    """
    if not curves:
        raise InputError("curves: expected at least one, got none")
    figure, (precision, roc) = new_figure(2, width=8.6, height=3.9)
    for index, (name, points) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "linewidth": 1.4, "label": name or None}
        # The precision of a recall between two thresholds is that of the next one, as in the average precision.
        precision.step(points.recall, points.precision, where="pre", **style)
        roc.plot(points.false_positive_rate, points.recall, **style)
    share = next(iter(curves.values())).precision[-1]  # of the positives, where everything is predicted as one
    precision.axhline(share, color=GREY, linewidth=1, linestyle="dashed")
    roc.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="dashed")
    precision.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    roc.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    if any(curves):
        precision.legend(loc="lower left", fontsize=8)
    return figure
