"""The studies of the papers' tables: their configs, and where the papers print what they train."""

import json

import pytest
from ml_collections import ConfigDict

from experiments.published_tables import lookup, read_table
from experiments.study import Published, cell_config, load_study, study_names
from experiments.thesis import LABELS, LOSSES
from imbal_jax.errors import InputError

# Rows that are new here: the thesis has no iEF and no EF on CIFAR-10.
NOT_PUBLISHED = {("thesis_4_2", row) for row in ("iEF Raw", "EF Raw")}
SEARCHES = ("search_digits", "search_cifar10_small")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The folder of all studies with winners of the searches that other studies read."""
    workdir = tmp_path_factory.mktemp("runs")
    for search in SEARCHES:
        study = load_study(search)
        of_method = {cell["method"]: study.options(cell) for cell in study.cells()}
        keys = ("schedule.learning_rate", "direction.damping")
        winners = [
            {"of": {"method": method}, "options": {key: options[key] for key in keys if key in options}}
            for method, options in of_method.items()
        ]
        (workdir / search).mkdir()
        (workdir / search / "winners.json").write_text(json.dumps({"winners": winners}))
    return workdir


@pytest.mark.parametrize("name", study_names())
def test_every_cell_resolves_and_has_its_published_number(name, searched):
    study = load_study(name, searched)
    assert study.name == name
    given = {"data.path": "images.npz"} if study.overrides.get("data.name") == "arrays" else {}
    for cell in study.cells():
        assert cell_config(study, cell, (0,), given).seeds == "0"
    for table in study.tables:
        shown = [cell for cell in study.cells() if table.where is None or table.where(cell)]
        assert shown
        for cell in shown if table.published is not None else ():
            for metric in table.metrics:
                _check(table.published, cell, metric)


def _check(published: Published, cell, metric):
    """The paper prints a number for this cell, or is known to print none."""
    row, column = published.row(cell, metric), published.column(cell, metric)
    if (published.table, row) in NOT_PUBLISHED:
        with pytest.raises(InputError, match=row):
            lookup(published.table, row, column)
    else:
        assert isinstance(lookup(published.table, row, column).value, float)


@pytest.mark.parametrize(
    ("name", "tables", "cells"),
    [
        ("thesis_4_2", ["thesis_4_2"], 11 * 4),
        ("thesis_cifar10", ["thesis_4_2", "thesis_5_1", "thesis_5_4"], 15 * 4),
        ("thesis_b_10", ["thesis_B_10_ief", "thesis_B_10_gdn"], 20),
        ("thesis_figure_5_1", ["thesis_figure_5_1"], 3),
        ("saddle_1", ["saddle_1"], 16),
        ("absgd_6", ["absgd_6"], 40),
        ("lct_3", ["lct_3_cifar", "lct_3_medical"], 54),
    ],
)
def test_studies_have_the_rows_of_their_tables(name, tables, cells):
    study = load_study(name)
    assert [table.name for table in study.tables] == tables
    assert len(list(study.cells())) == cells


def test_cells_have_the_settings_that_their_names_say():
    study = load_study("thesis_cifar10")
    configs = {tuple(cell.values()): cell_config(study, cell, (0,)) for cell in study.cells()}
    assert configs["balanced", "baseline"].profile.to_dict() == {"name": "natural"}
    assert configs["10.0", "ekfac_irw"].profile.to_dict() == {"name": "thesis_table_b1", "alpha": 10.0}
    assert configs["0.1", "sgd_sampler"].sampler.name == "minority_in_every_batch"
    assert configs["0.1", "sgd_sampler"].direction.name == "gradient"
    norms = load_study("thesis_figure_5_1")
    assert all(cell_config(norms, cell, (0,)).record.class_gradient_norms for cell in norms.cells())
    rho = load_study("saddle_rho")
    assert [cell_config(rho, cell, (0,)).direction.rho for cell in rho.cells()] == [0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0]
    rates = load_study("thesis_b_10")
    assert {cell_config(rates, cell, (0,)).schedule.learning_rate for cell in rates.cells()} == {1, 10, 50, 100}


B_5_ROWS = {
    **{method: LABELS[method] for method in LOSSES},
    "ekfac_raw": "EKFAC",
    "ekfac_sampler": "EKFAC",
    "ekfac_irw": "EKFAC",
    "ekfac_drw": "EKFAC-DRW",
}


@pytest.mark.parametrize("method", B_5_ROWS)
def test_runs_on_cifar10_have_the_settings_of_thesis_table_b5(method):
    row, study = B_5_ROWS[method], load_study("thesis_cifar10")
    config = cell_config(study, {"alpha": "0.1", "method": method}, (0,))
    assert config.training.batch_size == lookup("thesis_B_5", row, "B").value
    assert config.schedule.learning_rate == lookup("thesis_B_5", row, "eta").value
    assert config.schedule.name == "constant" or config.schedule.factor == 1.0
    for column, option in (("gamma", "gamma"), ("beta", "beta"), ("C", "max_margin"), ("zeta", "alpha")):
        printed = [cell.value for cell in read_table("thesis_B_5") if (cell.row, cell.column) == (row, column)]
        assert [value for name, value in _leaves(config.correction) if name == option] == printed


def _leaves(section):
    """The names and values of a config section, of those within it too."""
    for name, value in section.items():
        yield from _leaves(value) if isinstance(value, ConfigDict) else [(name, value)]
