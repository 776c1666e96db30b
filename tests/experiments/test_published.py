"""The papers' tables are read, and their numbers agree with themselves, with each other and with figures."""

import csv
import math
import re

import numpy as np
import pytest

from experiments.published_tables import FOLDER, PublishedValue, lookup, names, read_table
from imbal_jax.errors import InputError
from tests.published import ALPHAS, BALANCED, CREMA_D, LT10, LT100, TS1, TS2, as_printed, at, columns_of, gain, rows_of

# For each table the number of its cells, and the sum of the values and errors in them.
TOTALS = """
absgd_1:32:2014.49  absgd_2:76:4913.16  absgd_3:38:354.9  absgd_4:44:346.1  absgd_5:23:1095.3  absgd_6:40:2916.85
absgd_7:7:485.04  lct_1:18:0  lct_2:12:0  lct_3:54:48.142  lct_4:9:8.281  lct_12:30:88034  lct_13:54:42.778
lct_14:54:6.744  lct_15:54:41.329  lct_16:54:45.429  lct_17:54:25.177  lct_18:24:21.763  lct_19:30:27.4
saddle_1:64:3853.92  saddle_2:48:2885  saddle_3:90:4570.5  saddle_4:32:1912.2  thesis_4_2:36:2595.04
thesis_4_3:20:1297.59  thesis_4_4:40:1668.09  thesis_5_1:16:1168.2  thesis_5_2:12:762.96  thesis_5_3:24:1006.85
thesis_5_4:16:1176.54  thesis_5_5:10:630.29  thesis_5_6:20:767.64  thesis_B_1:72:147003.53  thesis_B_2:24:13620.18
thesis_B_3:32:146523.71  thesis_B_5:26:1325.639  thesis_B_6:40:2333.0035  thesis_B_7:40:1726.9999
thesis_B_8:17:920.49  thesis_B_9:34:909.6  thesis_B_10:60:2806.81
"""
TABLES = {name: (int(cells), float(total)) for name, cells, total in re.findall(r"(\w+):(\d+):(\S+)", TOTALS)}


# The reader and the files.


def test_all_tables_are_there():
    assert names() == list(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_all_cells_are_there(name):
    cells = read_table(name)
    numbers = [number for cell in cells for number in cell[3:5] if isinstance(number, float)]
    assert (len(cells), math.fsum(numbers)) == (TABLES[name][0], pytest.approx(TABLES[name][1], abs=1e-6))


@pytest.mark.parametrize("name", TABLES)
def test_a_file_is_well_formed(name):
    with (FOLDER / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == list(PublishedValue._fields)
    assert len({(line["row"], line["column"]) for line in lines}) == len(lines)
    paper, number = name.split("_", 1)
    for line, cell in zip(lines, read_table(name), strict=True):
        assert None not in line and all(text == text.strip() for text in line.values())
        assert cell.table == f"{paper} {number.replace('_', '.')}" and cell.row and cell.column and cell.value != ""
        assert cell.error is None or cell.error >= 0
        if cell.column.endswith(("accuracy", "macro F1")):
            assert 0 <= cell.value <= 100
        elif paper == "lct" and number not in ("1", "2", "12"):
            assert 0 <= cell.value <= 1


def test_numbers_are_numbers_and_text_is_text():
    assert lookup("thesis_4_2", "Focal Loss", ALPHAS[0])[:5] == ("thesis 4.2", "Focal Loss", ALPHAS[0], 61.43, 2.38)
    assert lookup("thesis_B_7", "iEF DRW", "eta").value == "10.0 -> 5.0"
    assert lookup("thesis_B_7", "Baseline", "eta").value == 1e-4
    assert lookup("saddle_2", "CE", "CIFAR-100 step / tail accuracy")[3:] == (0.9, None, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("thesis_42", "Baseline", ALPHAS[0]), r"^name: no 'thesis_42'; did you mean 'thesis_4_2'"),
        (("thesis_4_2", "baseline", ALPHAS[0]), r"^row: thesis_4_2 has no 'baseline'; did you mean 'Baseline'\?"),
        (("thesis_4_2", "Baseline", "CIFAR-10 / alpha=1 / accuracy"), r"^column: thesis_4_2 has no .*alpha=1\.0"),
        (
            ("absgd_2", "META (CB-CE)", "CIFAR-10 / step / ratio=10 / accuracy"),
            r"^column: absgd_2 prints nothing for 'META \(CB-CE\)' at .* \(printed: CIFAR-10 / long-tailed",
        ),
    ],
)
def test_what_is_not_there_is_told(arguments, message):
    with pytest.raises(InputError, match=message):
        lookup(*arguments)


def test_a_table_that_is_not_there_is_told():
    with pytest.raises(InputError, match=r"^name: no 'lct_5'; did you mean"):
        read_table("lct_5")


# The same number in several tables.


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [
        ("thesis_4_2", "thesis_5_1", 8),
        ("thesis_4_2", "thesis_5_4", 8),
        ("thesis_4_3", "thesis_5_2", 4),
        ("thesis_4_3", "thesis_5_5", 4),
        ("thesis_4_4", "thesis_5_3", 4),
        ("thesis_4_4", "thesis_5_6", 12),
        ("saddle_1", "saddle_4", 16),
        ("lct_3", "lct_18", 24),
        ("lct_3", "lct_19", 30),
    ],
)
def test_tables_repeat_each_other(first, second, common):
    one, other = ({(cell.row, cell.column): cell for cell in read_table(name)} for name in (first, second))
    shared = one.keys() & other.keys()
    assert len(shared) == common
    differing = {key for key in shared if one[key].value != other[key].value}
    assert differing == {key for key in shared if {(first, *key), (second, *key)} <= as_printed()}
    if first.startswith("thesis"):
        assert all(one[key].error == other[key].error for key in shared)


def test_table_4_of_lct_repeats_table_3():
    truck = "CIFAR-10/100 / Auto Truck"
    for method in ("VS", "VS + SAM", "Focal"):
        assert at("lct_4", "Baseline", f"{truck} / {method} / AUC") == at("lct_3", method, f"{truck} / AUC")
        assert at("lct_4", "+LCT", f"{truck} / {method} / AUC") == at("lct_3", f"{method} + LCT", f"{truck} / AUC")


def test_methods_of_others_have_the_same_accuracy_in_two_papers():
    for method, named in (("cRT", "cRT (CB-CE)"), ("LWS", "LWS (CB-CE)")):
        here = at("saddle_3", method, "iNaturalist 2018 / accuracy")
        assert here == at("absgd_5", named, "iNaturalist2018 / ResNet50 / accuracy")


def test_class_weights_change_nothing_on_balanced_data():
    for row, over in (("Re-Weighting", "Baseline"), ("Class Balance", "Baseline"), ("LDAM-DRW", "LDAM")):
        assert gain("thesis_4_2", row, over, BALANCED) == 0


def test_macro_f1_is_printed_for_the_methods_of_the_other_tables():
    assert set(rows_of("thesis_B_8")) == {row for table in ("4_3", "5_2", "5_5") for row in rows_of(f"thesis_{table}")}
    assert set(rows_of("thesis_B_9")) == {row for table in ("4_4", "5_3", "5_6") for row in rows_of(f"thesis_{table}")}


def test_hyper_parameters_of_a_correction_are_the_same_on_all_data():
    tables = ("thesis_B_5", "thesis_B_6", "thesis_B_7")
    found = [{(c.row, c.column): c.value for c in read_table(t) if c.column not in ("eta", "B")} for t in tables]
    assert found[0] == found[1] == found[2] and len(found[0]) == 6


def test_learning_rates_switch_from_those_of_raw_to_those_of_irw():
    for method in ("iEF", "GDN"):
        before, after = (at("thesis_B_7", f"{method} {variant}", "eta") for variant in ("Raw", "IRW"))
        assert lookup("thesis_B_7", f"{method} DRW", "eta").value == f"{before} -> {after}"
        chosen = at("thesis_B_6", f"{method} Raw", "eta")
        assert all(f"eta={chosen}" not in row for row in rows_of("thesis_B_10") if row.startswith(method))


# Class counts.


@pytest.mark.parametrize("name", ["thesis_B_1", "thesis_B_2", "thesis_B_3"])
def test_class_counts_give_the_total_and_the_imbalance(name):
    for column in columns_of(name):
        counts = [at(name, row, column) for row in rows_of(name) if row not in ("p", "Total")]
        assert sum(counts) == at(name, "Total", column)
        assert max(counts) / min(counts) == pytest.approx(at(name, "p", column), abs=0.005)


def test_class_counts_are_as_the_text_tells():
    for alpha in ("0.1", "1.0", "10.0"):  # floors of 4500 shares, every class above 100
        column = f"CIFAR-10 / train / alpha={alpha}"
        assert 4500 - 10 < at("thesis_B_1", "Total", column) <= 4500
        assert min(at("thesis_B_1", row, column) for row in rows_of("thesis_B_1")[1:]) > 100
    totals = [at("thesis_B_2", "Total", f"CREMA-D / {part}") for part in ("train", "validation", "test")]
    np.testing.assert_allclose(np.array(totals) / sum(totals), [0.7, 0.1, 0.2], atol=0.015)
    assert totals[0] == 4692 and sum(totals) < 7442
    assert at("thesis_B_3", "Total", "MSP-Podcast / train") == 44640


def test_counts_of_the_minority_have_the_imbalance_ratio():
    off = set()
    for row in rows_of("lct_12"):
        for beta in (10, 100, 200):
            exact = at("lct_12", row, "train / majority") / beta
            if abs(at("lct_12", row, f"train / minority / beta={beta}") - exact) >= 1:
                off.add(row)
    assert off == {"Dogs vs. Cats"} and ("lct_12", "Dogs vs. Cats", "train / majority") in as_printed()


# The thesis's Figures C.2 and C.3: diagonals of confusion matrices of one seed, recalls in %, in the order of the
# classes in Tables B.2 and B.3.

RECALLS = {
    ("Baseline", CREMA_D): (83.6, 31.6, 36.8, 77.1, 65.0, 39.0),
    ("Class Balance", CREMA_D): (86.2, 54.4, 24.6, 76.6, 47.2, 55.0),
    ("Focal Loss", CREMA_D): (78.1, 22.8, 50.9, 81.8, 53.7, 50.0),
    ("Re-Weighting", CREMA_D): (58.3, 52.6, 59.6, 78.0, 61.8, 53.0),
    ("Influence Balanced", CREMA_D): (65.1, 52.6, 50.9, 74.3, 60.2, 57.0),
    ("alpha-Weighted Focal Loss", CREMA_D): (75.5, 50.9, 47.4, 83.2, 54.5, 54.0),
    ("LDAM", CREMA_D): (86.9, 33.3, 28.1, 83.6, 56.1, 33.0),
    ("LDAM-DRW", CREMA_D): (73.9, 47.4, 49.1, 84.1, 47.2, 51.0),
    ("iEF RAW", CREMA_D): (81.7, 35.1, 42.1, 74.3, 48.8, 51.0),
    ("iEF Sampler", CREMA_D): (76.1, 52.6, 36.8, 74.8, 53.7, 56.0),
    ("GDN RAW", CREMA_D): (70.2, 43.9, 12.3, 87.4, 56.1, 32.0),
    ("GDN Sampler", CREMA_D): (47.0, 42.1, 68.4, 65.9, 56.1, 67.0),
    ("iEF IRW", TS1): (45.3, 28.7, 48.9, 9.3, 24.5, 43.3),
    ("iEF IRW", TS2): (36.2, 19.0, 37.0, 15.7, 14.0, 50.5),
    ("iEF DRW", TS1): (39.2, 38.5, 55.9, 7.8, 18.7, 48.3),
    ("iEF DRW", TS2): (29.8, 22.1, 44.6, 13.2, 6.2, 45.9),
    ("GDN IRW", TS1): (52.4, 22.3, 40.4, 6.8, 17.3, 56.3),
    ("GDN IRW", TS2): (44.1, 15.8, 25.9, 12.3, 7.3, 57.3),
}
COUNTS = {CREMA_D: "CREMA-D / test", TS1: "MSP-Podcast / test 1", TS2: "MSP-Podcast / test 2"}
RESULTS = {CREMA_D: ("4_3", "5_2", "5_5"), TS1: ("4_4", "5_3", "5_6"), TS2: ("4_4", "5_3", "5_6")}


def counts_of(data):
    """The examples of each class in a test set."""
    name = "thesis_B_2" if data == CREMA_D else "thesis_B_3"
    return np.array([at(name, row, COUNTS[data]) for row in rows_of(name) if row not in ("p", "Total")])


def result(row, data, metric):
    """The cell of whichever table has the row."""
    table = next(table for table in RESULTS[data] if row in rows_of(f"thesis_{table}"))
    return lookup(f"thesis_{table}", row, f"{data} / {metric}")


@pytest.mark.parametrize(("row", "data"), RECALLS)
def test_the_seed_in_a_figure_lies_within_the_spread_of_the_table(row, data):
    recalls, counts = np.array(RECALLS[row, data]), counts_of(data)
    np.testing.assert_allclose(np.round(recalls * counts / 100) / counts * 100, recalls, rtol=0, atol=0.0501)
    found = {"accuracy": recalls @ counts / counts.sum(), "balanced accuracy": recalls.mean()}
    for metric, one in found.items():
        printed = result(row, data, metric)
        # Of three numbers none lies farther from their mean than two standard errors.
        assert abs(one - printed.value) <= 2 * (printed.error + 0.005) + 0.005 + 0.05


@pytest.mark.parametrize(
    ("row", "lowest", "highest"), [("Influence Balanced", 48.14, 61.48), ("iEF IRW", 60.03, 61.15)]
)
def test_errors_are_standard_errors_of_three_seeds(row, lowest, highest):
    printed = lookup("thesis_4_3", row, "CREMA-D / balanced accuracy")
    seeds = [lowest, highest, 3 * printed.value - lowest - highest]  # the text tells the range
    assert lowest <= seeds[2] <= highest
    assert np.std(seeds, ddof=1) / math.sqrt(3) == pytest.approx(printed.error, abs=0.01)


def accuracy_range(counts, balanced):
    """The lowest and highest accuracy that goes with a balanced accuracy, all in %."""
    shares = np.clip(balanced / 100 * len(counts) - np.arange(len(counts)), 0, 1)  # recalls, as unequal as can be
    return 100 * shares @ np.sort(counts) / counts.sum(), 100 * shares @ np.sort(counts)[::-1] / counts.sum()


@pytest.mark.parametrize("name", ["4_3", "4_4", "5_2", "5_3", "5_5", "5_6", "B_10"])
def test_accuracy_and_balanced_accuracy_are_possible_together(name):
    for cell in read_table(f"thesis_{name}"):
        data, metric = cell.column.split(" / ")
        if metric == "accuracy":
            balanced = at(f"thesis_{name}", cell.row, f"{data} / balanced accuracy")
            lowest, highest = accuracy_range(counts_of(data), balanced)
            assert lowest - 0.02 <= cell.value <= highest + 0.02


@pytest.mark.parametrize("name", ["B_8", "B_9", "B_10"])
def test_macro_f1_is_possible_with_the_recalls(name):
    for cell in read_table(f"thesis_{name}"):
        data, metric = cell.column.split(" / ")
        if metric == "macro F1":  # a class's F1 is at most that of its recall r with precision 1, concave in r
            column = "balanced accuracy"
            balanced = at("thesis_B_10", cell.row, f"{data} / {column}") if name == "B_10" else None
            share = (balanced or result(cell.row, data, column).value) / 100
            assert cell.value / 100 <= 2 * share / (1 + share)


# Accuracies from those of groups of classes: "as defined in [51]", Zhong et al. 2021, whose configs have these sizes.

GROUPS = {LT10: (3, 4, 3), LT100: (36, 35, 29), "iNaturalist 2018": (842, 3701, 3599), "ImageNet-LT": (390, 445, 165)}


def mean_over_groups(name, row, data, sizes):
    return np.average([at(name, row, f"{data} / {group} accuracy") for group in ("head", "mid", "tail")], weights=sizes)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("saddle_1", LT10),
        ("saddle_1", LT100),
        ("saddle_4", LT10),
        ("saddle_4", LT100),
        ("saddle_3", "iNaturalist 2018"),
        ("saddle_3", "ImageNet-LT"),
    ],
)
def test_accuracy_is_the_mean_over_groups_of_classes(name, data):
    column = f"{data} / accuracy"
    means = {row: mean_over_groups(name, row, data, GROUPS[data]) for row in rows_of(name)}
    off = {(name, row, column) for row, mean in means.items() if abs(mean - at(name, row, column)) > 0.1 + 1e-9}
    assert off == {cell for cell in as_printed() if cell[0] == name and cell[2] == column}
    for _, row, _ in off:
        assert f"the groups' recalls give {means[row]:.1f}" in lookup(name, row, column).note


def test_groups_of_cifar_100_are_not_those_of_more_than_100_and_fewer_than_20_images():
    means = {row: mean_over_groups("saddle_1", row, LT100, (35, 35, 30)) for row in rows_of("saddle_1")}
    assert all(at("saddle_1", row, f"{LT100} / accuracy") - mean > 0.2 for row, mean in means.items())


def test_accuracy_under_step_imbalance_is_the_mean_of_head_and_tail():
    for row in rows_of("saddle_2"):
        for data in ("CIFAR-10 step", "CIFAR-100 step"):
            mean = (at("saddle_2", row, f"{data} / head accuracy") + at("saddle_2", row, f"{data} / tail accuracy")) / 2
            assert at("saddle_2", row, f"{data} / accuracy") == pytest.approx(mean, abs=0.1)


# Loss-conditional training. Printed bold, as the best of each column in turn, are these rows, counted from 0.

BOLD = {
    "lct_3": "5 5 4 1 23 3 3 1 13",
    "lct_13": "5 5 4 1 2 3 3 1 01",
    "lct_14": "5 4 5 5 03 1 1 2 2",
    "lct_15": "5 5 4 2 2 3 3 1 3",
    "lct_16": "5 5 4 4 3 3 3 1 3",
    "lct_17": "5 5 4 0 3 4 4 1 3",
}


@pytest.mark.parametrize("name", BOLD)
def test_the_best_are_those_printed_bold(name):
    for column, bold in zip(columns_of(name), BOLD[name].split(), strict=True):
        values = [at(name, row, column) for row in rows_of(name)]
        best = min(values) if name == "lct_14" else max(values)
        assert [str(index) for index, value in enumerate(values) if value == best] == list(bold)


def test_thresholds_do_at_least_as_well_as_calling_everything_positive():
    sets = {"SIIM-ISIC": "SIIM-ISIC Melanoma", "APTOS": "APTOS Diabetic Retinopathy"}
    for cell in read_table("lct_17"):
        data = cell.column.removesuffix("precision at recall >= 0.99")
        row = next((row for start, row in sets.items() if data.startswith(start)), "Household")
        negative, positive = (at("lct_12", row, f"test / {kind}") for kind in ("majority", "minority"))
        share = 0.4 if "Animal" in data else positive / (negative + positive)
        f1 = at("lct_15", cell.row, f"{data}F1")
        assert cell.value >= share - 5e-4
        assert f1 >= 2 * share / (1 + share) - 5e-4
        assert f1 >= 2 * 0.99 * cell.value / (0.99 + cell.value) - 2e-3


def test_densities_are_positive_at_both_ends():
    wrong = []
    for cell in read_table("lct_2"):
        for a, b, height in re.findall(r"L\(([\d.]+), ([\d.]+), ([\d.]+)\)", cell.value):
            if 2 / (float(b) - float(a)) - float(height) < 0:
                wrong.append((cell.row, cell.column, f"L({a}, {b}, {height})"))
    assert wrong == [("Focal + LCT", "training / phi", "L(1, 3, 2)")]


# What else is odd.


def test_one_error_has_two_decimals_and_one_accuracy_lacks_digits():
    with (FOLDER / "saddle_1.csv").open(newline="", encoding="utf-8") as file:
        odd = [(line["row"], line["error"]) for line in csv.DictReader(file) if len(line["error"].split(".")[1]) != 1]
    assert odd == [("VS + SAM", "0.12")]
    assert [cell.row for cell in read_table("absgd_6") if cell.value < 40] == ["SGD(CE)"]
