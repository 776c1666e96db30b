"""Spectra read back: what is refused, the numbers of the table, the panels, and spectra without a shape."""

import numpy as np
import pytest

from imbal_jax.analysis.spectrum_tables import _with_error, chosen_groups, draw_spectra, panel, read_spectrum, table
from imbal_jax.errors import InputError
from tests.analysis.toy_spectra import NODES, WEIGHTS, group, write


@pytest.fixture
def spectra(tmp_path):
    """Two spectra of the same classes, the second ten times as narrow."""
    return {
        "sgd": read_spectrum(write(tmp_path / "sgd")),
        "sam": read_spectrum(write(tmp_path / "sam", scale=0.1)),
    }


def rows_of(text):
    """The cells of a Markdown table's rows."""
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_every_group_has_its_nodes_and_weights(tmp_path):
    folder = write(tmp_path)
    nodes = np.arange(4)[:, None, None] + NODES
    np.savez(folder / "spectrum.npz", nodes=nodes, weights=np.tile(WEIGHTS, (4, 1, 1)))
    read = read_spectrum(folder)
    for index, each in enumerate(read.facts["groups"]):
        np.testing.assert_array_equal(read.quadrature(each).nodes, nodes[index])
        np.testing.assert_array_equal(read.quadrature(each).weights, WEIGHTS)


def test_the_table_holds_every_group(spectra):
    text = table(spectra, None, 0.01)
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
    assert [row[1] for row in rows_of(table(spectra, ["dog", "0"], 0.01))[2:5]] == ["all", "dog", "cat"]
    # Everything below -0.005 lambda_max: the first probe then has another 0.2.
    assert rows_of(table(spectra, None, 0.005))[2][-1] == "25.0 ± 5.0"
    assert "†" not in table(spectra, ["dog"], 0.01)


def test_runs_with_other_accuracies_are_told_apart(tmp_path):
    spectra = {name: read_spectrum(write(tmp_path / name, accuracy_split=name)) for name in ("validation", "test")}
    assert rows_of(table(spectra, None, 0.01))[0][3] == "accuracy (%)"


def test_a_name_cannot_break_the_table(tmp_path):
    read = read_spectrum(write(tmp_path, groups=[group("a|b", 0)] * 4))
    text = table({"x|y": read}, None, 0.01)
    assert "| x\\|y | a\\|b | 7 |" in text


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
    assert _with_error(value, error) == told


def test_panels_have_unit_mass_and_the_peak_of_one_eigenvalue(spectra):
    read = spectra["sgd"]
    for kernel, sigma in (("relative", 10 * np.sqrt(1e-5)), ("ghorbani", np.sqrt(10 * 1e-5))):
        drawn = panel(read, read.facts["groups"][2], kernel, probes=True)
        assert np.trapezoid(drawn.density, drawn.grid) == pytest.approx(1, abs=1e-6)
        assert drawn.one_eigenvalue == pytest.approx(1 / (np.sqrt(2 * np.pi) * sigma * 1000))
        assert drawn.title.startswith("dog: 500 ") and (drawn.lambda_min, drawn.lambda_max) == (-2, 8)
        np.testing.assert_allclose(drawn.probes.mean(axis=0), drawn.density, rtol=1e-13)
    assert panel(read, read.facts["groups"][2], "relative").probes is None


def test_the_groups_to_show(spectra):
    facts = spectra["sgd"].facts
    assert [each["name"] for each in chosen_groups("sgd", facts, None)] == ["all", "dog", "eel"]  # head and tail
    assert [each["name"] for each in chosen_groups("sgd", facts, ["eel", "0"])] == ["all", "eel", "cat"]


def test_indices_come_before_names_that_are_numbers():
    groups = [{"name": str(9 - index), "class": index} for index in range(10)]
    facts = {"groups": groups, "class_counts": [1] * 10}
    assert chosen_groups("run", facts, ["3"]) == [groups[3]]


def test_a_class_that_was_not_measured_is_refused_with_the_reason(tmp_path, spectra):
    with pytest.raises(InputError, match=r"measured in sgd: 0 \(cat\), 1 \(dog\), 2 \(eel\); got '5'$"):
        chosen_groups("sgd", spectra["sgd"].facts, ["5"])
    read = read_spectrum(write(tmp_path / "skipping", indices=(None, 0, 1)))
    with pytest.raises(InputError, match=r"0 \(cat\), 1 \(dog\); got 'eel'; it was skipped: no example$"):
        table({"run": read}, ["eel"], 0.01)


def test_figures_are_written_in_both_formats(tmp_path, spectra):
    written = draw_spectra(spectra, tmp_path / "new" / "out", ["cat"], shared_x=True, probes=True)
    assert [path.name for path in written] == ["density.png", "density.pdf", "ratios.png", "ratios.pdf"]
    assert all(path.read_bytes()[:4] in (b"\x89PNG", b"%PDF") for path in written)


def shapeless(folder, nodes):
    """A folder of groups that one probe saw a single eigenvalue of."""
    groups = [group("all", None), group("cat", 0)]
    for each in groups:
        value = float(nodes[0])
        each |= {"lambda_max": value, "lambda_min": value, "ratio": 1.0 if value else None, "trace": 1000 * value}
        each |= {key: None for key in each if key.endswith("standard_error")}
        each |= {"lambda_max_residual": 0.0, "lambda_min_residual": 0.0}
    write(folder, indices=(None, 0), groups=groups)
    shape = (2, 1, len(nodes))
    weights = np.eye(1, len(nodes))[None]
    np.savez(folder / "spectrum.npz", nodes=np.broadcast_to(nodes, shape), weights=np.broadcast_to(weights, shape))
    return read_spectrum(folder)


@pytest.mark.parametrize("nodes", [[3.0], [-2.0], [0.0], [0.0, np.nan, np.nan]], ids=str)
def test_a_spectrum_of_one_value_is_drawn(tmp_path, nodes):
    """As of a single Lanczos step, or of a class whose loss has the weight zero."""
    read = shapeless(tmp_path / "spectrum", np.array(nodes))
    rows = rows_of(table({"run": read}, None, 0.01))
    assert rows[2][4:7] == [f"{nodes[0]:g}"] * 2 + ["1" if nodes[0] else "-"]
    assert len(draw_spectra({"run": read}, tmp_path / "out")) == 4


def test_folders_that_cannot_be_read_are_told(tmp_path):
    damaged = write(tmp_path / "damaged")
    (damaged / "spectrum.npz").write_bytes(b"PK")
    without = write(tmp_path / "without")
    np.savez(without / "spectrum.npz", nodes=NODES[None])
    half = write(tmp_path / "half")
    np.savez(half / "spectrum.npz", nodes=NODES[None], weights=WEIGHTS[None])
    empty = write(tmp_path / "empty", groups=[group("cat", 0) | {"lambda_min": None}] * 4)
    bare = write(tmp_path / "bare")
    (bare / "spectrum.json").write_text("{}")
    broken = write(tmp_path / "broken")
    (broken / "spectrum.json").write_text("{")
    listed = write(tmp_path / "listed")
    (listed / "spectrum.json").write_text("[1]")
    for folder, message in (
        (tmp_path / "no", "FOLDER: cannot read spectrum.json and spectrum.npz in"),
        (damaged, "FOLDER: cannot read spectrum.json and spectrum.npz in"),
        (without, "FOLDER: cannot read spectrum.json and spectrum.npz in"),
        (broken, "FOLDER: cannot read spectrum.json and spectrum.npz in"),
        (listed, "FOLDER: expected accuracy_split, class_counts, groups, num_parameters in the spectrum.json of"),
        (bare, "FOLDER: expected accuracy_split, class_counts, groups, num_parameters in the spectrum.json of"),
        (half, f"FOLDER: expected 4 groups in {half}, as in its .json, got 1"),
        (empty, f"FOLDER: expected finite eigenvalues in {empty}, got none for ['cat', 'cat', 'cat', 'cat']"),
    ):
        with pytest.raises(InputError) as caught:
            read_spectrum(folder)
        assert str(caught.value).startswith(message) and str(folder) in str(caught.value)


def test_pickled_arrays_are_not_loaded(tmp_path):
    folder = write(tmp_path)
    np.savez(folder / "spectrum.npz", nodes=np.array([None]), weights=WEIGHTS)
    with pytest.raises(InputError, match=r"^FOLDER: cannot read .* allow_pickle"):
        read_spectrum(folder)
