"""Figures: written whole, holding the numbers they were given, leaving no trace in pyplot."""

import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from imbal_jax.errors import InputError
from imbal_jax.reports import figures
from imbal_jax.reports.summaries import summarise

NAMES = ("cat", "dog", "eel")


def _records(seed, *, epochs=4, validation=True):
    rng = np.random.default_rng(seed)
    records = []
    for epoch in range(1, epochs + 1):
        record = {"step": 10 * epoch, "epoch": epoch, "train/loss": rng.random()}
        record["class_gradient_norms"] = [*rng.random(2), 0.0]
        if validation:
            record |= dict(zip(("validation/loss", *figures.SCORES), rng.random(4), strict=True))
        records.append(record)
    return records


def _rows():
    accuracies = {"CE": (0.5, 0.7), "LDAM": (0.6, 0.7)}
    return {
        method: summarise({seed: {"test/accuracy": value, "test/macro_f1": value} for seed, value in enumerate(values)})
        for method, values in accuracies.items()
    }


COLUMNS = ("test/accuracy", "test/macro_f1", "test/missing")
FIGURES = {
    "confusion": lambda: figures.confusion_figure([[8, 2, 0], [0, 0, 0], [1, 1, 2]], NAMES),
    "many classes": lambda: figures.confusion_figure(np.eye(30), [str(c) for c in range(30)]),
    "curves": lambda: figures.learning_curves_figure({0: _records(0), 1: _records(1, epochs=3)}),
    "norms": lambda: figures.class_gradient_norms_figure(_records(0), NAMES),
    "comparison": lambda: figures.comparison_figure(_rows(), COLUMNS),
    "counts": lambda: figures.class_counts_figure([5, 100, 0], NAMES, [0.5, 0.9, None]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_written_twice_and_leave_no_trace(name, tmp_path):
    before = dict(matplotlib.rcParams)
    png, pdf = figures.save_figure(FIGURES[name](), tmp_path / "new" / "figure.v1")
    assert (png, pdf) == (tmp_path / "new" / "figure.v1.png", tmp_path / "new" / "figure.v1.pdf")
    pixels = imread(png)
    assert pixels.shape[0] > 100 and pixels.shape[1] > 100
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10
    assert pdf.read_bytes().startswith(b"%PDF") and pdf.read_bytes().rstrip().endswith(b"%%EOF")
    assert dict(matplotlib.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:  # another test may have imported it
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_pdf_is_the_same_bytes_every_time_and_embeds_truetype(tmp_path):
    _, first = figures.save_figure(FIGURES["norms"](), tmp_path / "first")
    _, second = figures.save_figure(FIGURES["norms"](), tmp_path / "second")
    assert first.read_bytes() == second.read_bytes()
    assert b"CreationDate" not in first.read_bytes()
    assert b"/Type3" not in first.read_bytes() and b"/CIDFontType2" in first.read_bytes()


def _texts(axes):
    return [text.get_text() for text in axes.texts]


def _tick_labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_confusion_cells_are_percentages_of_the_true_class():
    axes = FIGURES["confusion"]().axes[0]
    assert _texts(axes) == ["80", "20", "0", "25", "25", "50"]
    assert _tick_labels(axes.yaxis) == ["cat (10)", "dog (0)", "eel (4)"]
    np.testing.assert_array_equal(axes.images[0].get_array().mask[:, 0], [False, True, False])


def test_confusion_of_many_classes_has_no_text():
    assert _texts(FIGURES["many classes"]().axes[0]) == []


def test_confusions_stand_four_in_a_row_and_leave_small_shares_out():
    matrices = {f"method {i}": [[995, 5], [1, 999]] for i in range(5)}
    drawn = figures.confusions_figure(matrices, ["cat", "dog"])
    panels = [axes for axes in drawn.axes if axes.images and axes.get_title()]
    assert [axes.get_title() for axes in panels] == list(matrices)
    assert _texts(panels[0]) == ["100", "0", "100"]  # 0.5 % is written, 0.1 % is not
    np.testing.assert_allclose(panels[4].images[0].get_array(), [[99.5, 0.5], [0.1, 99.9]])
    with pytest.raises(InputError, match="at least one matrix"):
        figures.confusions_figure({}, ["cat", "dog"])


def _lines(axes, label):
    """The thick line of a label and the thin ones of its colour."""
    (thick,) = [line for line in axes.lines if line.get_label() == label]
    thin = [line for line in axes.lines if line is not thick and to_hex(line.get_color()) == to_hex(thick.get_color())]
    return thick, thin


def test_learning_curves_show_each_seed_and_the_mean_over_shared_epochs():
    runs = {0: _records(0), 1: _records(1, epochs=3)}
    losses, scores = figures.learning_curves_figure(runs).axes
    for axes, key, label in (
        (losses, "train/loss", "train loss"),
        (losses, "validation/loss", "validation loss"),
        (scores, "validation/macro_f1", "validation macro F1"),
    ):
        mean, thin = _lines(axes, label)
        for line, records in zip(thin, runs.values(), strict=True):
            np.testing.assert_array_equal(line.get_ydata(), [record[key] for record in records])
        expected = [(runs[0][epoch][key] + runs[1][epoch][key]) / 2 for epoch in range(3)]
        np.testing.assert_array_equal(mean.get_xdata(), [1, 2, 3])
        np.testing.assert_allclose(mean.get_ydata(), expected, rtol=1e-13)


def test_learning_curves_without_validation_and_of_one_seed():
    (axes,) = figures.learning_curves_figure({0: _records(0, validation=False)}).axes
    assert len(axes.lines) == 1


def test_learning_curves_break_at_null():
    records = [{"epoch": 1, "train/loss": 1.0}, {"epoch": 2, "train/loss": None}, {"epoch": 3, "train/loss": 0.5}]
    (axes,) = figures.learning_curves_figure({0: records}).axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1.0, np.nan, 0.5])


def test_gradient_norms_have_a_line_per_class_and_no_zero():
    axes = FIGURES["norms"]().axes[0]
    records = _records(0)
    assert [line.get_label() for line in axes.lines] == list(NAMES)
    expected = [record["class_gradient_norms"][1] for record in records]
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), expected)
    assert np.isnan(axes.lines[2].get_ydata()).all()
    assert axes.get_yscale() == "log"


def test_gradient_norms_of_many_classes_have_a_colour_scale():
    records = [{"epoch": epoch, "class_gradient_norms": np.arange(1, 21)} for epoch in (0, 1)]
    figure = figures.class_gradient_norms_figure(records, [str(c) for c in range(20)])
    axes, colours = figure.axes
    assert len(axes.lines) == 20 and figure.legends == []
    assert colours.get_ylabel() == "class index"


def test_comparison_bars_and_errors():
    axes, _, empty = FIGURES["comparison"]().axes
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [60, 65], rtol=1e-12)
    (errors,) = axes.collections
    (first, second) = errors.get_segments()
    np.testing.assert_allclose(first[:, 0], [50, 70], rtol=1e-12)  # two seeds: the standard error is half the distance
    np.testing.assert_allclose(second[:, 0], [60, 70], rtol=1e-12)
    assert _texts(axes) == ["60.0", "65.0"] and _texts(empty) == []
    assert _tick_labels(axes.yaxis) == ["CE", "LDAM"]


def test_counts_are_sorted_and_recalls_follow_them():
    upper, lower = FIGURES["counts"]().axes
    assert [bar.get_height() for bar in upper.patches] == [100, 5, 0]
    assert _texts(upper) == ["100", "5", "0"]
    np.testing.assert_allclose([bar.get_height() for bar in lower.patches], [90, 50, np.nan], rtol=1e-12)
    assert _tick_labels(lower.xaxis) == ["dog", "cat", "eel"]
    np.testing.assert_allclose(lower.lines[0].get_ydata(), 70, rtol=1e-12)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: figures.confusion_figure(np.ones((2, 2)), NAMES),
            r"^confusion: expected shape \(3, 3\), got \(2, 2\)$",
        ),
        (lambda: figures.learning_curves_figure({0: [{"epoch": 1}]}), r"^records: expected one of the keys .*none$"),
        (lambda: figures.class_gradient_norms_figure([{"epoch": 1}], NAMES), r"'class_gradient_norms', found none$"),
        (
            lambda: figures.class_gradient_norms_figure(_records(0), NAMES[:2]),
            r"expected 2 values per record, got \[3\]$",
        ),
        (lambda: figures.comparison_figure({}), r"^rows: expected at least one summary, got none$"),
        (lambda: figures.class_counts_figure([1, 2], NAMES), r"^counts: expected shape \(3,\), got \(2,\)$"),
        (lambda: figures.class_counts_figure([1, 2, 3], NAMES, [0.5]), r"^per_class_recall: expected shape \(3,\)"),
    ],
)
def test_figures_refuse(draw, message):
    with pytest.raises(InputError, match=message):
        draw()
