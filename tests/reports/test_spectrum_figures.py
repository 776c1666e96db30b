"""Figures of curvature: the numbers they show, their marks, and what they refuse."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from imbal_jax.errors import InputError
from imbal_jax.reports import spectrum_figures as figures
from imbal_jax.reports.figures import GREY, save_figure

GRID = np.linspace(-1, 4, 501)
NAMES, COUNTS = ("cat", "dog", "eel"), (10, 500, 3)


def panel(low=-0.5, high=3.0, peak=10.0, probes=None, title="cat"):
    """A bulk at zero and a small peak at the largest eigenvalue."""
    values = peak * np.exp(-0.5 * (GRID / 0.05) ** 2) + 1e-3 * np.exp(-0.5 * ((GRID - high) / 0.05) ** 2)
    return figures.DensityPanel(title, GRID, values, low, high, abs(low / high), 1e-3, probes)


def group(index, ratio=0.25, error=0.0, residual=1e-6, accuracy=0.5):
    """A measured class, or the whole set."""
    told = {"name": "all" if index is None else NAMES[index], "class": index, "examples": 3, "accuracy": accuracy}
    told |= {"lambda_max": 4.0, "lambda_min": -4.0 * ratio, "ratio": ratio}
    told |= {f"lambda_{end}_residual": residual for end in ("min", "max")}
    return told | {"lambda_max_standard_error": error, "lambda_min_standard_error": error}


def spectrum(*groups):
    return {"groups": list(groups), "class_counts": list(COUNTS), "accuracy_split": "validation"}


def records(seed, epochs=4):
    """Ends of the spectra of three classes; the last has no example; the second is not converged at the first epoch."""
    rng = np.random.default_rng(seed)
    told = []
    for epoch in range(1, epochs + 1):
        high, low = rng.random(2) + 1, -rng.random(2) - 0.01
        residual = [1e-5, 0.5 if epoch == 1 else 1e-5, None]
        curvature = {"lambda_max": [*high, None], "lambda_min": [*low, None]}
        curvature |= {"lambda_max_residual": [1e-5, 1e-5, None], "lambda_min_residual": residual}
        told += [{"epoch": epoch, "class_curvature": curvature}, {"epoch": epoch + 0.5, "train/loss": 1.0}]
    return told


RUNS = {"SGD": [records(0), records(1, epochs=3)], "SAM": [records(2)]}


def many_classes():
    values = np.random.default_rng(0).random((2, 3, 40)) + 0.1
    return figures.class_curves_figure(
        {"run": figures.ClassCurves(np.arange(3), {"x": values})}, {"x": "x"}, [str(c) for c in range(40)], range(40)
    )


FIGURES = {
    "density": lambda: figures.density_figure(
        {"SGD": [panel(), panel(-2.0)], "SAM": [panel(probes=np.ones((2, 501)))]}
    ),
    "ratios": lambda: figures.ratios_figure({"SGD": spectrum(group(None, 0.1), group(0), group(1), group(2))}),
    "extremes": lambda: figures.extremes_figure(RUNS, NAMES, COUNTS),
    "many classes": many_classes,
}


@pytest.mark.parametrize(
    "name", ["ratios", *(pytest.param(name, marks=pytest.mark.slow) for name in FIGURES if name != "ratios")]
)
def test_figures_are_written_whole(name, tmp_path):
    png, pdf = save_figure(FIGURES[name](), tmp_path / "figure")
    pixels = imread(png)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10
    assert pdf.read_bytes().rstrip().endswith(b"%%EOF") and b"/Type3" not in pdf.read_bytes()


def coloured(axes, colour):
    return [line for line in axes.lines if to_hex(line.get_color()) == to_hex(colour)]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_density_panels_hold_the_density_and_mark_both_ends():
    wide = panel(-2.0, 3.5)._replace(one_eigenvalue=1.0)  # the floor is that of the smallest
    figure = figures.density_figure({"SGD": [panel(title="head"), wide], "SAM": [panel(peak=400.0)]})
    first, second, third, empty = figure.axes
    positive, line_max = coloured(first, figures.POSITIVE)
    negative, line_min = coloured(first, figures.NEGATIVE)
    assert positive.get_xdata()[0] == 0 == negative.get_xdata()[-1]
    shown = np.concatenate([negative.get_ydata()[:-1], positive.get_ydata()])
    above = panel().density > 1e-4  # a tenth of a single eigenvalue's peak
    np.testing.assert_array_equal(shown[above], panel().density[above])
    assert (shown[~above] <= 1e-4).all() and (shown > 0).all()
    assert list(line_max.get_xdata()) == [3.0, 3.0] and list(line_min.get_xdata()) == [-0.5, -0.5]
    assert r"$\lambda_{\max} = 3$" in texts(first) and r"$\lambda_{\min} = -0.5$" in texts(first)
    assert any(text.endswith("= 0.167$") for text in texts(first)) and any("0.571" in text for text in texts(second))
    assert first.get_yscale() == "log" and first.get_title(loc="left") == "head"
    assert first.get_ylim() == second.get_ylim() == third.get_ylim() == (pytest.approx(2e-4), pytest.approx(2400))
    assert "SGD" in texts(first) and "SAM" in texts(third) and not empty.axison


def test_panels_have_their_own_range_or_share_one():
    rows = {"run": [panel(), panel(-2.0, 8.0)]}
    own = [axes.get_xlim() for axes in figures.density_figure(rows).axes]
    assert own[0] == pytest.approx((-1.15, 4.15)) and own[1] == pytest.approx((-2.3, 8.3))
    shared = [axes.get_xlim() for axes in figures.density_figure(rows, shared_x=True).axes]
    assert shared[0] == shared[1] == pytest.approx((-2.3, 8.3))
    assert "run" not in texts(figures.density_figure(rows).axes[0])  # a single run needs no name


def test_numbers_do_not_lie_on_the_line_they_belong_to():
    rows = {"run": [panel(-0.5, 0.5), panel(-0.5, 8.0)]}
    for axes, side in zip(figures.density_figure(rows, shared_x=True).axes, ("left", "right"), strict=True):
        assert {text.get_horizontalalignment() for text in axes.texts} == {side}


def test_probes_are_thin_lines():
    probes = np.stack([panel(peak=peak).density for peak in (5.0, 15.0)])
    (axes,) = figures.density_figure({"run": [panel(probes=probes)]}).axes
    lines = coloured(axes, GREY)
    assert [line.get_ydata().max() for line in lines] == [5.0, 15.0]


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.0312, "0.0312"), (-12.34, "-12.3"), (123456.0, r"1.23\times 10^{5}"), (-2e-7, r"-2\times 10^{-7}")],
)
def test_numbers_have_three_digits(value, told):
    (axes,) = figures.density_figure({"run": [panel()._replace(ratio=value)]}).axes
    assert any(text.endswith(f" = {told}$") for text in texts(axes))


def test_head_and_tail_are_the_most_and_least_frequent_class_measured():
    whole, cat, dog, eel = group(None), group(0), group(1), group(2)
    assert figures.head_and_tail(spectrum(whole, cat, dog, eel)) == [whole, dog, eel]
    assert figures.head_and_tail(spectrum(cat, dog, whole)) == [whole, dog, cat]
    assert figures.head_and_tail(spectrum(eel)) == [eel] and figures.head_and_tail(spectrum(whole)) == [whole]


def test_titles_tell_examples_and_accuracy():
    told = spectrum(group(None), group(1), group(2))
    assert figures.group_title(told, group(None, accuracy=0.8)) == (
        "all classes: 513 training examples\nvalidation accuracy 80.0 %"
    )
    assert figures.group_title(told, group(1, accuracy=None)).startswith("dog: 500 training examples\n")
    assert figures.group_title(told, group(1, accuracy=None)).endswith("validation accuracy unknown")
    one = {"groups": [], "class_counts": [4000, 1], "accuracy_split": "test"}
    assert figures.group_title(one, group(1) | {"name": "8"}) == "class 8: 1 training example\ntest accuracy 50.0 %"
    assert figures.group_title(one, group(0)).startswith("cat: 4,000 ")


def test_error_of_the_ratio_is_that_of_many_draws():
    told = group(0) | {"lambda_max": 8.0, "lambda_min": -2.0, "ratio": 0.25}
    told |= {"lambda_max_standard_error": 0.08, "lambda_min_standard_error": 0.01}
    rng = np.random.default_rng(0)
    draws = np.abs(rng.normal(-2.0, 0.01, 200_000) / rng.normal(8.0, 0.08, 200_000))
    assert figures.ratio_standard_error(told) == pytest.approx(draws.std(), rel=0.02)
    assert figures.ratio_standard_error(told | {"lambda_min": 0.0, "ratio": 0.0}) == pytest.approx(0.01 / 8)
    assert figures.ratio_standard_error(told | {"lambda_min_standard_error": None}) is None


def test_values_are_in_doubt_when_their_residual_is_large():
    # Of the value itself, or of a thousandth of the other end where the value is next to nothing.
    found = figures.doubtful([10.0, 10.0, -1e-6, -1e-6, np.nan], [0.11, 0.09, 2e-4, 5e-5, np.nan], 10.0)
    np.testing.assert_array_equal(found, [True, False, True, False, False])
    assert figures.in_doubt(group(0, residual=0.05)) and not figures.in_doubt(group(0, residual=1e-3))


def test_ratio_bars_are_sorted_by_count_and_show_doubt():
    told = spectrum(group(None, 0.1), group(0, 0.2), group(1, 0.4, error=0.1, residual=0.5), group(2, 0.3))
    (axes,) = figures.ratios_figure({"run": told}).axes
    assert [bar.get_height() for bar in axes.patches] == [0.4, 0.2, 0.3]
    assert [bool(bar.get_hatch()) for bar in axes.patches] == [True, False, False]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["dog (500)", "cat (10)", "eel (3)"]
    assert texts(axes) == ["0.40", "0.20", "0.30"]
    (segment,) = next(each for each in axes.collections if len(each.get_paths())).get_segments()
    error = np.hypot(0.1, 0.4 * 0.1) / 4
    np.testing.assert_allclose(segment[:, 1], [0.4 - error, 0.4 + error], rtol=1e-12)
    (dashed,) = [line for line in axes.lines if line.get_label() == "all classes"]
    assert list(dashed.get_ydata()) == [0.1, 0.1]


def test_ratio_of_a_class_may_be_missing():
    (axes,) = figures.ratios_figure({"run": spectrum(group(0) | {"ratio": None}, group(1))}).axes
    np.testing.assert_array_equal([bar.get_height() for bar in axes.patches], [0.25, np.nan])
    assert texts(axes) == ["0.25"]


def thick(axes):
    return [line for line in axes.lines if line.get_linestyle() != "None"]


def test_extremes_are_means_over_seeds_in_bands_of_their_error():
    figure = figures.extremes_figure(RUNS, NAMES, COUNTS)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["SGD", "", "", "SAM", "", ""]
    order = np.argsort(-np.array(COUNTS))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "dog (500)", "cat (10)", "eel (3)", "not converged",
    ]  # fmt: skip
    for axes, key in zip(figure.axes[:3], ("ratio", "lambda_max", "lambda_min"), strict=True):
        values = np.full((2, 3, 3), np.nan)
        for seed, told in enumerate(RUNS["SGD"]):
            for epoch in range(3):  # the fourth was reached by one seed only
                curvature = told[2 * epoch]["class_curvature"]
                high, low = (np.array(curvature[end], np.float64) for end in ("lambda_max", "lambda_min"))
                values[seed, epoch] = {"ratio": -low / high, "lambda_max": high, "lambda_min": low}[key]
        for line, label in zip(thick(axes), order, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
            np.testing.assert_allclose(line.get_ydata(), values[:, :, label].mean(axis=0), rtol=1e-12)
        half = np.abs(values[0] - values[1]) / 2  # of two seeds, the standard error
        band = axes.collections[0].get_paths()[0].vertices
        expected = values[:, 0, 1].mean() + np.array([-1, 1]) * half[0, 1]
        at_first = band[band[:, 0] == 1, 1]
        np.testing.assert_allclose([at_first.min(), at_first.max()], expected, rtol=1e-12)
    circles = [[len(line.get_xdata()) for line in axes.lines if line.get_fillstyle() == "none"] for axes in figure.axes]
    assert circles == [[1, 0, 0], [0, 0, 0], [1, 0, 0]] * 2  # the dog, at the first epoch, by its smallest eigenvalue


def test_a_single_run_and_epoch_is_a_point():
    figure = figures.extremes_figure({"run": [records(0, epochs=1)]}, NAMES)
    assert [line.get_marker() for line in thick(figure.axes[0])] == ["."] * 3
    assert [text.get_text() for text in figure.legends[0].get_texts()][:3] == list(NAMES)
    assert len(figure.axes[0].collections) == 0  # one seed has no error


def test_runs_stand_side_by_side_where_there_is_one_quantity():
    curves = figures.ClassCurves(np.arange(2), {"norm": np.array([[[1.0, 2.0], [3.0, 1e3]]])})
    figure = figures.class_curves_figure(dict.fromkeys("abcd", curves), {"norm": "norm"}, ("cat", "dog"))
    assert [axes.axison for axes in figure.axes] == [True] * 4 + [False] * 2
    assert [axes.get_ylabel() for axes in figure.axes[:4]] == ["norm", "", "", "norm"]
    assert [axes.get_xlabel() for axes in figure.axes[:4]] == ["", "epoch", "epoch", "epoch"]


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1.0, 19.0], "linear"), ([1.0, 30.0], "log"), ([-1.0, -30.0], "symlog"), ([np.nan, 0.0], "linear")],
)
def test_axes_are_logarithmic_where_values_spread(values, scale):
    curves = figures.ClassCurves(np.arange(2), {"x": np.array(values).reshape(1, 2, 1)})
    (axes,) = figures.class_curves_figure({"run": curves}, {"x": "x"}, ("cat",)).axes
    assert axes.get_yscale() == scale


def test_many_classes_have_a_scale_of_ranks():
    axes, scale = many_classes().axes
    assert len(thick(axes)) == 40 and scale.get_ylabel() == "rank of the class, most frequent first"
    colours = [to_hex(line.get_color()) for line in thick(axes)]
    assert len(set(colours)) == 40


NORMS = figures.ClassCurves(np.arange(2), {"x": np.ones((1, 2, 3))})


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures.density_figure({}), r"^rows: expected at least one panel, got none$"),
        (
            lambda: figures.ratios_figure({"run": spectrum(group(None))}),
            r"^spectra: expected at least one .* got none$",
        ),
        (lambda: figures.extremes_of([]), r"^records: expected the key 'class_curvature' at an epoch .* found none$"),
        (lambda: figures.extremes_of([records(0), []]), r"'class_curvature' at an epoch that all seeds have"),
        (
            lambda: figures.class_values([[{"epoch": 1, "x": [1]}, {"epoch": 2, "x": [1, 2]}]], "x"),
            r"^x: expected as many classes in every record, got \[1, 2\]$",
        ),
        (lambda: figures.class_curves_figure({}, {"x": "x"}, NAMES), r"^runs: expected at least one, got none$"),
        (
            lambda: figures.class_curves_figure({"run": NORMS}, {"x": "x"}, NAMES[:2]),
            r"^class_names: expected \[3\] names for the classes, got 2$",
        ),
        (
            lambda: figures.class_curves_figure({"run": NORMS}, {"x": "x"}, NAMES, (1, 2)),
            r"^class_names: expected \[2, 3\] names",
        ),
    ],
)
def test_refusals(draw, message):
    with pytest.raises(InputError, match=message):
        draw()
