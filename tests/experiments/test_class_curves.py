"""Curves of classes over epochs: the numbers they show, their scaling, and the command line on real records."""

import json

import numpy as np
import pytest

from experiments import class_curves
from imbal_jax.errors import InputError
from imbal_jax.main import EXIT_INPUT, guarded
from imbal_jax.main import run as train
from tests.conftest import ROOT

COUNTS = [[30, 10, 0], [20, 20, 0]]  # of two seeds; the last class is empty


def records(seed, epochs=3):
    rng = np.random.default_rng(seed)
    told = []
    for epoch in range(1, epochs + 1):
        curvature = {f"lambda_{end}": [*values, None] for end, values in (("max", 1 + rng.random(2)),)}
        curvature |= {"lambda_min": [*-rng.random(2), None]}
        curvature |= {f"lambda_{end}_residual": [1e-6, 1e-6, None] for end in ("max", "min")}
        norms = [*rng.random(2), 0.0]
        told.append({"step": 5 * epoch, "epoch": epoch, "class_gradient_norms": norms, "class_curvature": curvature})
    return told


def write(folder, seeds=2, *, results=True, **changes):
    """A run folder; the second seed is an epoch behind."""
    for seed in range(seeds):
        path = folder / f"seed_{seed}"
        path.mkdir(parents=True)
        lines = [json.dumps({**one, **changes}) for one in records(seed, 3 - seed)]
        (path / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
        if results:
            (path / "result.json").write_text(json.dumps({"class_counts": COUNTS[seed]}))
    return folder


def curves(axes):
    return [line for line in axes.lines if line.get_linestyle() != "None"]


@pytest.mark.parametrize("scaling", ["contribution", "class_mean"])
def test_gradient_norms_are_scaled_by_each_seeds_counts(tmp_path, scaling):
    run = class_curves.read_run(write(tmp_path / "run"))
    figure = class_curves.curves_figure({"run": run}, "gradient_norms", scaling)
    (axes,) = figure.axes
    norms = np.array([[one["class_gradient_norms"] for one in records(seed)[:2]] for seed in range(2)])
    if scaling == "class_mean":
        norms[0, :, :2] *= [40 / 30, 40 / 10]
        norms[1, :, :2] *= 2
    for line, label in zip(curves(axes)[:2], (0, 1), strict=True):  # 25 and 15 examples on average
        np.testing.assert_array_equal(line.get_xdata(), [1, 2])
        np.testing.assert_allclose(line.get_ydata(), norms[:, :, label].mean(axis=0), rtol=1e-12)
    assert np.isnan(curves(axes)[2].get_ydata()).all()  # a class without examples
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0 (25)", "1 (15)", "2 (0)"]
    assert ("n_c" in axes.get_ylabel()) == (scaling == "class_mean")


def test_curvature_has_a_row_for_every_run(tmp_path):
    runs = {name: class_curves.read_run(write(tmp_path / name)) for name in ("sgd", "sam")}
    figure = class_curves.curves_figure(runs, "curvature", "contribution")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["sgd", "", "", "sam", "", ""]
    first = [np.array(one["class_curvature"]["lambda_max"][:2]) for one in records(0)[:2]]
    second = [np.array(one["class_curvature"]["lambda_max"][:2]) for one in records(1)[:2]]
    expected = (np.array(first) + np.array(second)) / 2
    for label, line in enumerate(curves(figure.axes[1])[:2]):
        np.testing.assert_allclose(line.get_ydata(), expected[:, label], rtol=1e-12)


def test_counts_come_from_the_summary_where_results_lack(tmp_path):
    folder = write(tmp_path / "run", results=False)
    assert class_curves.read_run(folder).counts is None
    figure = class_curves.curves_figure({"run": class_curves.read_run(folder)}, "gradient_norms", "contribution")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0", "1", "2"]
    (folder / "summary.json").write_text(json.dumps({"class_counts": [25.0, 15.0, 0.0]}))
    np.testing.assert_array_equal(class_curves.read_run(folder).counts, [[25, 15, 0]] * 2)


def test_classes_of_well_known_data_have_names(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"data": {"name": "cifar10"}}))
    assert class_curves.class_names(tmp_path, 10)[:2] == ("airplane", "automobile")
    assert class_curves.class_names(tmp_path, 3) == ("0", "1", "2")
    (tmp_path / "config.json").write_text("null")
    assert class_curves.class_names(tmp_path, 1) == ("0",)


def test_the_command_draws_a_real_run(tmp_path, capsys):
    options = ["--config.model.name=mlp", "--config.model.hidden=(8,)", "--config.training.epochs=2"]
    options += ["--config.record.class_gradient_norms=true", "--config.record.figures=false"]
    options += ["--config.record.tensorboard=false"]
    arguments = [f"--config={ROOT}/configs/digits.py", f"--workdir={tmp_path}/run", *options]
    assert guarded(train, arguments) == 0
    arguments = [str(tmp_path / "run"), "--quantity=gradient_norms", "--scaling=class_mean"]
    assert guarded(class_curves.run, [*arguments, f"--output={tmp_path}/new/out"]) == 0
    assert "gradient_norms.png, gradient_norms.pdf" in capsys.readouterr().out
    assert (tmp_path / "new" / "out" / "gradient_norms.png").read_bytes().startswith(b"\x89PNG")
    run = class_curves.read_run(tmp_path / "run")
    contribution = class_curves.curves_of(run, "gradient_norms", "contribution").values["gradient_norms"]
    mean = class_curves.curves_of(run, "gradient_norms", "class_mean").values["gradient_norms"]
    np.testing.assert_allclose(mean * run.counts / run.counts.sum(), contribution, rtol=1e-12)


def test_runs_of_the_same_name_are_told_apart(tmp_path, monkeypatch):
    folders = [write(tmp_path / parent / "run") for parent in "ab"]
    names = []
    monkeypatch.setattr(class_curves, "save_figure", lambda figure, path: (path, path))
    monkeypatch.setattr(class_curves, "curves_figure", lambda runs, *_: names.extend(runs))
    assert guarded(class_curves.run, [*map(str, folders), "--quantity=curvature"]) == 0
    assert names == [str(folder) for folder in folders]


def test_what_is_wrong_is_told_in_one_line(tmp_path, capsys):
    run, bare = str(write(tmp_path / "run")), str(write(tmp_path / "bare", results=False, class_curvature=None))
    broken = write(tmp_path / "broken")
    (broken / "seed_0" / "result.json").write_text("{")
    other = write(tmp_path / "other", class_gradient_norms=[1.0, 2.0])
    for seed in range(2):
        (other / f"seed_{seed}" / "result.json").write_text(json.dumps({"class_counts": [1, 2]}))
    norms, missing = "--quantity=gradient_norms", f"{tmp_path}/no"
    for arguments, message in (
        ([missing, norms], f"RUN: expected a run folder with a seed_*/metrics.jsonl, found none in {missing}"),
        ([bare, "--quantity=curvature"], f"{bare}; train into a new folder with --config.record.curvature_every=1"),
        ([bare, norms, "--scaling=class_mean"], "--scaling: class_mean needs the class_counts of seed_*/result.json"),
        ([str(broken), norms], f"RUN: cannot read {broken}/seed_0/result.json: "),
        (
            [run, str(other), norms],
            "RUN: expected runs with the same classes, got numbers of classes {'run': 3, 'other'",
        ),
        (
            [run, "--quantity=curvature", "--scaling=class_mean"],
            "--scaling: expected it with --quantity=gradient_norms",
        ),
    ):
        assert guarded(class_curves.run, [*arguments, f"--output={tmp_path}/out"]) == EXIT_INPUT
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_seeds_without_a_common_epoch_are_refused(tmp_path):
    folder = write(tmp_path / "run")
    (folder / "seed_1" / "metrics.jsonl").write_text("")
    with pytest.raises(
        InputError, match=r"^records: expected the key 'class_gradient_norms' at an epoch that all seeds"
    ):
        class_curves.curves_of(class_curves.read_run(folder), "gradient_norms", "contribution")
