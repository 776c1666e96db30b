"""The comparison of spectra: which folders it takes, the numbers in its table, and its command line."""

import json

import numpy as np
import pytest

from experiments import hessian_density
from imbal_jax.analysis import spectrum_tables
from imbal_jax.errors import InputError
from imbal_jax.main import EXIT_INPUT, guarded

NAMES, COUNTS = ("cat", "dog", "eel"), (10, 500, 3)
NODES = np.array([[-2.0, -0.05, 0.0, 8.0], [-1.0, 0.0, 8.0, np.nan]])  # of two probes
WEIGHTS = np.array([[0.1, 0.2, 0.4, 0.3], [0.2, 0.6, 0.2, 0.0]])


def group(name, index, scale=1.0):
    """The entry of a group whose nodes are NODES times a scale."""
    told = {"name": name, "class": index, "examples": 7, "accuracy": None if name == "eel" else 0.5}
    told |= {"lambda_max": 8.0 * scale, "lambda_min": -2.0 * scale, "ratio": 0.25}
    told |= {"lambda_max_residual": 1e-6, "lambda_min_residual": 1.0 if name == "eel" else 1e-6}
    told |= {"lambda_max_standard_error": 0.0, "lambda_min_standard_error": 0.5 * scale}
    return told | {"trace": 123.4 * scale, "trace_standard_error": 5.6 * scale, "steps": [4, 3]}


def write(folder, scale=1.0, indices=(None, 0, 1, 2), **changes):
    """A spectrum folder; returns it."""
    groups = [group("all" if index is None else NAMES[index], index, scale) for index in indices]
    skipped = [index for index in range(3) if index not in indices]
    facts = {"num_parameters": 1000, "accuracy_split": "validation", "class_names": NAMES, "class_counts": COUNTS}
    facts["skipped"] = [{"class": index, "name": NAMES[index], "reason": "no example"} for index in skipped]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spectrum.json").write_text(json.dumps({**facts, "groups": groups, **changes}))
    shape = (len(groups), 1, 1)
    np.savez(folder / "spectrum.npz", nodes=np.tile(scale * NODES, shape), weights=np.tile(WEIGHTS, shape))
    return folder


@pytest.fixture
def spectra(tmp_path):
    """Two runs with a spectrum each."""
    write(tmp_path / "sgd" / "spectra" / "fixed" / "seed_0")
    write(tmp_path / "sam" / "spectra" / "fixed" / "seed_0", scale=0.1)
    return [tmp_path / "sgd", tmp_path / "sam"]


def names_of(*folders):
    return list(hessian_density.find_spectra(folders))


def test_spectra_are_found_and_named_by_what_differs(tmp_path, spectra):
    assert names_of(*spectra) == ["sgd", "sam"]
    assert names_of(spectra[0]) == ["sgd"]
    assert names_of(spectra[0] / "spectra" / "fixed" / "seed_0") == ["sgd"]
    for seed in (10, 2):
        write(spectra[0] / "spectra" / "fixed" / f"seed_{seed}")
    assert names_of(spectra[0]) == ["seed_0", "seed_2", "seed_10"]
    assert names_of(*spectra) == ["sgd seed_0", "sgd seed_2", "sgd seed_10", "sam seed_0"]
    write(spectra[1] / "spectra" / "published" / "seed_0")
    assert names_of(spectra[1]) == ["fixed", "published"]
    assert names_of(spectra[1], write(tmp_path / "loose")) == ["sam fixed seed_0", "sam published seed_0", "loose"]
    same = [write(tmp_path / parent / "run" / "spectra" / "fixed" / "seed_0") for parent in "ab"]
    assert names_of(*same) == [str(folder) for folder in same]


def rows_of(text):
    """The cells of a Markdown table's rows."""
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_the_table_holds_every_group(spectra):
    read = {name: spectrum_tables.read_spectrum(place) for name, place in hessian_density.find_spectra(spectra).items()}
    text = spectrum_tables.table(read, None, 0.01)
    head, rule, *rows = rows_of(text)
    assert head[3] == "validation accuracy (%)" and head[-1] == "below -0.01 lambda_max (%)"
    assert len(rule) == len(head) == 9
    assert [row[:4] for row in rows[:4]] == [
        ["sgd", "all", "7", "50.0"], ["sgd", "cat", "7", "50.0"], ["sgd", "dog", "7", "50.0"], ["sgd", "eel", "7", "-"],
    ]  # fmt: skip
    # Below -0.08 lie shares of 0.1 and 0.2. The error of the ratio is 0.5 / 8.
    assert rows[0][4:] == ["8", "-2.00 ± 0.50", "0.250 ± 0.062", "123.4 ± 5.6", "15.0 ± 5.0"]
    assert rows[3][6] == "0.250 ± 0.062 †" and "† a Ritz residual above 1 %" in text
    assert rows[4][4:] == ["0.8", "-0.200 ± 0.050", "0.250 ± 0.062", "12.34 ± 0.56", "15.0 ± 5.0"]
    assert [row[1] for row in rows_of(spectrum_tables.table(read, ["dog", "0"], 0.01))[2:5]] == ["all", "dog", "cat"]
    # Everything below -0.005 lambda_max: the first probe then has another 0.2.
    assert rows_of(spectrum_tables.table(read, None, 0.005))[2][-1] == "25.0 ± 5.0"
    assert "†" not in spectrum_tables.table(read, ["dog"], 0.01)


@pytest.mark.parametrize(
    ("value", "error", "told"),
    [
        (None, None, "-"),
        (0.0, 0.0, "0"),
        (12.3456, None, "12.35"),
        (12.3456, 1e-7, "12.35"),
        (0.12345, 0.0123, "0.123 ± 0.012"),
        (123.45, 12.3, "123 ± 12"),
        (123456.0, 2345.0, "1.235e+05 ± 2.3e+03"),
        (1e-8, 2e-9, "1e-08 ± 2e-09"),
    ],
)
def test_numbers_have_as_many_digits_as_their_errors(value, error, told):
    assert spectrum_tables._with_error(value, error) == told


def test_panels_have_unit_mass_and_the_peak_of_one_eigenvalue(spectra):
    (place,) = hessian_density.find_spectra(spectra[:1]).values()
    read = spectrum_tables.read_spectrum(place)
    for kernel, sigma in (("relative", 10 * np.sqrt(1e-5)), ("ghorbani", np.sqrt(10 * 1e-5))):
        panel = spectrum_tables.panel(read, read.facts["groups"][2], kernel, probes=True)
        assert np.trapezoid(panel.density, panel.grid) == pytest.approx(1, abs=1e-6)
        assert panel.one_eigenvalue == pytest.approx(1 / (np.sqrt(2 * np.pi) * sigma * 1000))
        assert panel.title.startswith("dog: 500 ") and (panel.lambda_min, panel.lambda_max) == (-2, 8)
        np.testing.assert_allclose(panel.probes.mean(axis=0), panel.density, rtol=1e-13)
    assert spectrum_tables.panel(read, read.facts["groups"][2], "relative").probes is None


def test_the_command_writes_figures_and_table(tmp_path, spectra, capsys, monkeypatch):
    drawn = {}
    density_figure = spectrum_tables.density_figure

    def spy(rows, **options):
        drawn.update(rows)
        return density_figure(rows, **options)

    monkeypatch.setattr(spectrum_tables, "density_figure", spy)
    arguments = [*map(str, spectra), "--labels=SGD,SAM", "--probes", f"--output={tmp_path}/new/out"]
    assert guarded(hessian_density.run, arguments) == 0
    printed = capsys.readouterr().out
    for name in ("density", "ratios"):
        assert f"{name}.png, {name}.pdf" in printed
        assert (tmp_path / "new" / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "new" / "out" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "new" / "out" / "table.md").read_text(encoding="utf-8") in printed
    titles = [[panel.title.split(":")[0] for panel in row] for row in drawn.values()]
    assert list(drawn) == ["SGD", "SAM"] and titles == [["all classes", "dog", "eel"]] * 2  # head and tail


def test_a_spectrum_of_the_whole_set_alone_has_no_ratios(tmp_path):
    folder = write(tmp_path / "run", indices=(None,))
    assert guarded(hessian_density.run, [str(folder), f"--output={tmp_path}/out"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["density.pdf", "density.png", "table.md"]


def test_indices_come_before_names_that_are_numbers():
    groups = [{"name": str(9 - index), "class": index} for index in range(10)]
    facts = {"groups": groups, "class_counts": [1] * 10}
    assert spectrum_tables.chosen_groups("run", facts, ["3"]) == [groups[3]]


def test_what_is_wrong_is_told_in_one_line(tmp_path, spectra, capsys):
    damaged = write(tmp_path / "damaged")
    (damaged / "spectrum.npz").write_bytes(b"PK")
    half = write(tmp_path / "half")
    np.savez(half / "spectrum.npz", nodes=NODES[None], weights=WEIGHTS[None])
    empty = write(tmp_path / "empty", groups=[group("cat", 0) | {"lambda_min": None}] * 4)
    bare = write(tmp_path / "bare")
    (bare / "spectrum.json").write_text("{}")
    skipping = write(tmp_path / "skipping", indices=(None, 0, 1))
    sgd = str(spectra[0])
    for arguments, message in (
        ([str(tmp_path / "no")], f"spectra/*/seed_*/spectrum.json in {tmp_path}/no, found none"),
        ([str(damaged)], f"FOLDER: cannot read spectrum.json and spectrum.npz in {damaged}: "),
        ([str(half)], f"FOLDER: expected 4 groups in {half}, as in its .json, got 1"),
        ([str(empty)], "FOLDER: expected finite eigenvalues in"),
        ([str(bare)], "expected accuracy_split, class_counts, groups, num_parameters in the spectrum.json"),
        ([sgd, sgd], "FOLDER: expected each folder once, got"),
        ([sgd, "--labels=a,b"], "--labels: expected 1 different names, for ['sgd'], got ['a', 'b']"),
        ([sgd, "--threshold=-1"], "--threshold: expected a number >= 0, got -1.0"),
        ([sgd, "--classes=5"], "measured in sgd: 0 (cat), 1 (dog), 2 (eel); got '5'"),
        ([str(skipping), "--classes=eel"], "0 (cat), 1 (dog); got 'eel'; it was skipped: no example"),
    ):
        assert guarded(hessian_density.run, [*arguments, f"--output={tmp_path}/out"]) == EXIT_INPUT
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_given_twice_is_refused(spectra):
    with pytest.raises(InputError, match=r"^FOLDER: expected each folder once"):
        hessian_density.find_spectra([spectra[0], spectra[0]])
