"""The figures of the papers: each is drawn by the report of a study, and shows the numbers of its runs."""

import numpy as np
import pytest

from experiments.reporting.class_pictures import ends_over_axis
from experiments.reporting.collect import collect
from experiments.reporting.pictures import draw_pictures
from experiments.selection import select
from experiments.study import CLASSES, IMBALANCE, Axis, Curve, Study, Table, cell_name, check_study, load_study
from imbal_jax.errors import InputError
from tests.analysis.toy_spectra import write

from .study_runs import write_run

NUM_CLASSES = 10
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "recall_head", "recall_mid", "recall_tail")


def result(rng, counts, tests):
    """What training leaves of a seed."""
    found = {f"{test}/{metric}": rng.uniform(0.4, 0.9) for test in tests for metric in METRICS}
    for number, test in enumerate(tests):
        # The mean over seeds adds up to the examples of a class only but for rounding.
        chances = np.full(NUM_CLASSES, 1 / NUM_CLASSES)
        found[f"{test}/confusion"] = rng.multinomial(34 + number, chances, NUM_CLASSES).tolist()
    return {**found, "class_counts": counts, "seconds_per_epoch": rng.uniform(1, 2)}


def records(rng):
    """Two epochs with norms of gradients and both ends of spectra of every class."""
    told = []
    for epoch in (1, 2):
        ends = {"lambda_max": rng.uniform(1, 2, NUM_CLASSES), "lambda_min": -rng.uniform(0, 1, NUM_CLASSES)}
        ends |= {f"{end}_residual": np.full(NUM_CLASSES, 1e-6) for end in tuple(ends)}
        curvature = {name: values.tolist() for name, values in ends.items()}
        norms = rng.uniform(0.1, 1, NUM_CLASSES).tolist()
        told.append({"epoch": epoch, "class_gradient_norms": norms, "class_curvature": curvature})
    return told


def pictures(root, name, only, *, tests=("test",), recorded=True):
    """The figures of a part of a study of which every cell has three seeds."""
    rng = np.random.default_rng(0)
    study = select(load_study(name), only)
    for number, cell in enumerate(study.cells()):
        counts = np.geomspace(5000, 50, NUM_CLASSES).astype(int).tolist()
        results = {seed: result(rng, counts, tests) for seed in (0, 1, 2)}
        run = write_run(root / name, cell_name(cell), results, records=records(rng) if recorded else None)
        if recorded:
            write(run / "spectra" / "fixed" / "seed_0", scale=1 + number)
    return {picture.name: picture for picture in draw_pictures(collect(study, root))}


TWO, ALPHA = {"method": ("baseline", "ief")}, {"alpha": ("0.05", "balanced")}


@pytest.mark.parametrize(
    ("name", "only", "expected"),
    [
        # Thesis Figures 4.2 and C.1; 4.3, 5.4 and C.2; 4.4, 5.4 and C.3; 5.1; 5.2; 5.3.
        ("thesis_4_2", {"method": ("ekfac_raw",)}, {"class_distributions", "confusion_alpha_0.1"}),
        ("thesis_4_3", {"method": ("ief_irw",)}, {"class_distributions", "confusion", "training_times"}),
        ("thesis_4_4", {"method": ("ief_drw",)}, {"class_distributions", "confusion_test_2", "training_times"}),
        ("thesis_figure_5_1", {}, {"gradient_norms_alpha_0.1"}),
        ("thesis_figure_5_2", {}, {"gradient_norms"}),
        ("thesis_figure_5_3", {}, {"gradient_norms"}),
        # Rangwani et al. 2022, Figures 2, 3A and 3B; 3C and 4.
        ("saddle_figure_3", {}, {"hessian_density", "curvature_CIFAR-10_LT"}),
        ("saddle_rho", {"rho": ("0.05", "0.8")}, {"rho", "curvature_rho"}),
        ("alpha_sweep", TWO | ALPHA, {"alpha_sweep"}),
        ("alpha_sweep_vgg11", TWO | ALPHA, {"alpha_sweep"}),
    ],
)
def test_the_papers_figures_are_drawn(tmp_path, name, only, expected):
    tests = ("test", "test_2") if name in ("thesis_4_4", "thesis_figure_5_3") else ("test",)
    recorded = "figure" in name or name == "saddle_rho"
    assert expected <= set(pictures(tmp_path, name, only, tests=tests, recorded=recorded))


def test_distributions_show_the_training_sets_and_every_test_set_once(tmp_path):
    drawn = pictures(tmp_path, "thesis_4_2", {"method": ("baseline",)}, recorded=False)
    titles = [axes.get_title() for axes in drawn["class_distributions"].figure.axes if axes.get_title()]
    assert titles == [
        *(f"{alpha} (p = 100.00)" for alpha in ("alpha = 0.1", "alpha = 1.0", "alpha = 10.0", "balanced")),
        "test set (p = 1.00)",
    ]
    assert not {name for name in drawn if name.startswith(("gradient_norms", "curvature"))}


def test_curvature_has_a_row_for_every_method(tmp_path):
    figure = pictures(tmp_path, "saddle_figure_3", {})["curvature_CIFAR-10_LT"].figure
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["CE + DRW", "", "", "CE + DRW + SAM", "", ""]
    assert {axes.get_xlabel() for axes in figure.axes} == {"", "epoch"}


def over_x(root, seeds_of):
    """The cells of a study whose axis x has a number for each of these seeds."""
    study = Study("s", "none", (Axis("x", tuple(seeds_of)), Axis("method", ("m",))), (Table("t", "T", "x"),))
    kept = {}
    for number, (x, seeds) in enumerate(seeds_of.items()):
        kept[x] = records(np.random.default_rng(number))
        write_run(root / "s", f"x={x},method=m", {seed: {} for seed in seeds}, records=kept[x])
    return {cell.cell["x"]: cell for cell in collect(study, root).cells}, kept


def test_curvature_over_an_axis_is_that_of_the_last_epoch_in_the_order_of_numbers(tmp_path):
    cells, kept = over_x(tmp_path, {"10": (0, 1), "2": (0,), "none": (5,)})
    curves = ends_over_axis(cells)
    np.testing.assert_array_equal(curves.epochs, [2, 10])
    expected = [[kept[x][-1]["class_curvature"]["lambda_min"] for x in ("2", "10")]]  # the seed that both have
    np.testing.assert_array_equal(curves.values["lambda_min"], expected)
    assert ends_over_axis(over_x(tmp_path / "apart", {"1": (0,), "2": (1,)})[0]) is None


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (Curve("c", "C", IMBALANCE, CLASSES, ("ratio",)), "curve c: no 'imbalance'"),
        (Curve("c", "C", "x", IMBALANCE), "curve c: no 'imbalance'"),
        (Curve("c", "C", "x", CLASSES, ("lambda_mn",)), "curve c: metrics: no 'lambda_mn'; did you mean 'lambda_min'"),
    ],
)
def test_curves_that_cannot_be_drawn_are_refused(curve, message):
    with pytest.raises(InputError, match=message):
        check_study(Study("s", "none", (Axis("x", ("1",)),), (), curves=(curve,)))
