"""What the papers' texts say about their tables holds, except where a note tells otherwise."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest

from experiments.published_tables import lookup, read_table
from tests.published import ALPHAS, BALANCED, CREMA_D, LT10, LT100, TS1, TS2, as_printed, at, columns_of, gain, rows_of

ACC = {data: f"{data} / accuracy" for data in (CREMA_D, TS1, TS2)}
BAL = {data: f"{data} / balanced accuracy" for data in (CREMA_D, TS1, TS2)}
ACC_MSP, BAL_MSP = [ACC[TS1], ACC[TS2]], [BAL[TS1], BAL[TS2]]
MSP_TRAIN = "MSP-Podcast / train"
ABSGD_ALL = [
    f"{data} / {profile} / ratio={ratio} / accuracy"
    for data in ("CIFAR-10", "CIFAR-100")
    for profile in ("long-tailed", "step")
    for ratio in (100, 10)
]
STEP_100, LT_100, STEP_10 = ABSGD_ALL[2], ABSGD_ALL[4], ABSGD_ALL[7]
INATURALIST = "iNaturalist 2018 / tail accuracy"
FOCAL_LCT_WRONG = [("Focal + LCT", f"CIFAR-10/100 / {data} / AUC") for data in ("Auto Truck", "Animal Vehicle")]
VS_LCT_WRONG = [("VS + LCT", "CIFAR-10/100 / Household / AUC")]
MELANOMA, APTOS = "SIIM-ISIC Melanoma", "APTOS Diabetic Retinopathy"


class Order(NamedTuple):
    """Some rows stand above others in some columns, by more than a margin."""

    name: str
    higher: list[str]
    lower: list[str]
    columns: list[str]
    wrong: Sequence[tuple[str, str]] = ()  # rows and columns where the text is wrong
    by: float = 0.0
    ties: bool = False
    of: str = "value"


def but(name, *left_out):
    """The other rows of a table."""
    return [row for row in rows_of(name) if row not in left_out]


BEST_MSP = ["iEF DRW", "Re-Weighting", "alpha-Weighted Focal Loss"]
BEST_CREMA = ["iEF IRW", "Re-Weighting", "alpha-Weighted Focal Loss"]
GAINERS = but("thesis_4_3", "Baseline", "LDAM")
WORSE = ["Re-Weighting", "Class Balance", "Focal Loss"]
BEFORE_INFLUENCE = but("thesis_4_2", "Influence Balanced", "EKFAC Raw")
ORDERS = [
    # The thesis, 4.2.1: what is worse than the baseline, LDAM-DRW than LDAM; EKFAC is second to influence-balanced.
    Order("thesis_4_2", ["Baseline"], WORSE, ALPHAS, [("Focal Loss", ALPHAS[2]), ("Class Balance", ALPHAS[2])]),
    Order("thesis_4_2", ["LDAM"], ["LDAM-DRW"], ALPHAS[:2]),
    Order("thesis_4_2", ["LDAM-DRW"], ["LDAM"], ALPHAS[2:]),
    Order("thesis_4_2", ["Influence Balanced", "EKFAC Raw"], BEFORE_INFLUENCE, ALPHAS),
    Order("thesis_4_2", ["EKFAC Raw"], ["Influence Balanced"], ALPHAS, of="error"),
    # 4.2.2: all but LDAM gain balanced accuracy and lose accuracy; what needs the class frequency.
    Order("thesis_4_3", GAINERS, ["Baseline"], [BAL[CREMA_D]]),
    Order("thesis_4_3", ["Baseline"], GAINERS, [ACC[CREMA_D]]),
    Order("thesis_4_3", ["LDAM"], ["Baseline"], [ACC[CREMA_D]]),
    Order("thesis_4_3", ["Baseline"], ["LDAM"], [BAL[CREMA_D]]),
    Order("thesis_4_4", ["LDAM", "Focal Loss"], ["Baseline"], ACC_MSP, [("Focal Loss", column) for column in ACC_MSP]),
    Order("thesis_4_4", ["Baseline"], ["LDAM", "LDAM-DRW", "Class Balance"], BAL_MSP),
    Order("thesis_4_3", BEST_CREMA, but("thesis_4_3", *BEST_CREMA), [BAL[CREMA_D]]),
    Order("thesis_4_4", BEST_MSP, but("thesis_4_4", *BEST_MSP), BAL_MSP),
    Order("thesis_4_3", ["alpha-Weighted Focal Loss"], ["Focal Loss"], [BAL[CREMA_D]]),
    Order("thesis_4_4", ["alpha-Weighted Focal Loss"], ["Focal Loss"], BAL_MSP),
    Order("thesis_4_3", ["LDAM-DRW"], ["LDAM"], [BAL[CREMA_D]]),
    # 4.2.2: the most frequent emotions, and in 5.2 the majority classes.
    Order("thesis_B_3", ["Neutral", "Angry"], ["Happy", "Sad", "Fear", "Disgust"], [MSP_TRAIN], [("Angry", MSP_TRAIN)]),
    Order("thesis_B_2", ["Neutral"], but("thesis_B_2", "Neutral", "Total"), ["CREMA-D / train"]),
    Order("thesis_B_1", ["Ship"], but("thesis_B_1", "Ship", "Total"), ["CIFAR-10 / train / alpha=0.1"]),
    # 4.2.2: the largest and the lowest standard errors.
    Order("thesis_4_3", ["Influence Balanced"], but("thesis_4_3", "Influence Balanced"), [BAL[CREMA_D]], of="error"),
    Order("thesis_4_4", ["Influence Balanced"], but("thesis_4_4", "Influence Balanced"), BAL_MSP, of="error"),
    Order("thesis_4_4", but("thesis_4_4", "iEF DRW"), ["iEF DRW"], [BAL[TS1]], of="error"),
    Order(
        *("thesis_4_3", but("thesis_4_3", "iEF IRW"), ["iEF IRW"], [BAL[CREMA_D]]),
        wrong=[("GDN Sampler", BAL[CREMA_D])],
        of="error",
    ),
    # 5.1.1: raw and with the sampler.
    Order(
        *("thesis_5_1", ["EKFAC Raw", "EKFAC Sampler"], ["Baseline"], [*ALPHAS, BALANCED]),
        wrong=[("EKFAC Sampler", ALPHAS[2])],
    ),
    Order("thesis_5_1", ["EKFAC Sampler"], ["EKFAC Raw"], ALPHAS[:2]),
    Order("thesis_5_1", ["EKFAC Raw"], ["EKFAC Sampler"], [ALPHAS[2], BALANCED]),
    Order("thesis_5_2", ["iEF Sampler", "GDN Sampler", "AdamW Sampler"], ["Baseline"], [BAL[CREMA_D]]),
    Order("thesis_5_2", ["Baseline"], ["iEF RAW", "GDN RAW"], [BAL[CREMA_D]]),
    Order("thesis_5_2", ["Baseline"], ["AdamW Sampler"], [ACC[CREMA_D]], [("AdamW Sampler", ACC[CREMA_D])]),
    Order("thesis_5_3", ["iEF Raw", "iEF Sampler", "AdamW Sampler"], ["Baseline"], BAL_MSP),
    Order("thesis_5_3", ["Baseline"], ["AdamW Sampler"], ACC_MSP),
    Order("thesis_5_3", ["iEF Raw"], ["iEF Sampler"], ACC_MSP),
    Order("thesis_5_3", ["Baseline"], ["GDN Raw", "GDN Sampler"], BAL_MSP, [("GDN Sampler", BAL[TS2])]),
    # 5.1.2: re-weighting.
    Order(
        *("thesis_5_4", ["EKFAC Raw"], ["EKFAC IRW", "EKFAC DRW"], ALPHAS[:2]),
        wrong=[("EKFAC IRW", ALPHAS[1]), ("EKFAC DRW", ALPHAS[1])],
    ),
    Order("thesis_5_4", ["EKFAC DRW"], ["EKFAC IRW"], ALPHAS[:1]),
    Order("thesis_5_5", but("thesis_5_5", "Baseline"), ["Baseline"], [BAL[CREMA_D]]),
    Order("thesis_5_6", but("thesis_5_6", "Baseline"), ["Baseline"], BAL_MSP),
    # Escaping saddle points, 5.1 and 5.2.
    Order("saddle_1", ["CE + SAM"], ["CE"], [f"{d} / {g} accuracy" for d in (LT10, LT100) for g in ("head", "mid")]),
    Order("saddle_1", ["CE"], ["CE + SAM"], [f"{d} / tail accuracy" for d in (LT10, LT100)]),
    Order("saddle_3", ["LDAM + DRW + SAM"], ["LDAM + DRW"], [INATURALIST], by=3),
    Order("saddle_3", ["CE + DRW + SAM"], ["CE + DRW"], [INATURALIST], by=3),
    Order("saddle_3", ["LDAM + DRW + SAM"], ["cRT", "LWS", "MisLAS", "DisAlign"], ["ImageNet-LT / accuracy"]),
    # ABSGD, 4.1, 4.2 and 5.
    Order("absgd_1", ["ABSGD (CE)"], ["SGD (CE)"], ABSGD_ALL),
    Order("absgd_1", ["ABSGD (Focal)"], ["SGD (Focal)"], ABSGD_ALL),
    Order("absgd_1", ["ABSGD (CE)"], ["SGD (CE)"], [STEP_100, LT_100], [("ABSGD (CE)", LT_100)], by=2),
    Order("absgd_2", ["ABSGD (CB-CE)"], ["SGD (CB-CE)"], ABSGD_ALL),
    Order("absgd_2", ["ABSGD (CB-Focal)"], ["SGD (CB-Focal)"], ABSGD_ALL),
    Order("absgd_2", ["ABSGD (CB-LDAM)"], ["SGD (CB-LDAM)"], ABSGD_ALL, [("ABSGD (CB-LDAM)", STEP_10)]),
    Order("absgd_3", ["ABSGD"], but("absgd_3", "ABSGD"), ["ImageNet-LT / accuracy"]),
    Order("absgd_4", ["ABSGD"], but("absgd_4", "ABSGD"), ["Places-LT / accuracy"]),
    Order("absgd_6", ["ABSGD(SCE)"], but("absgd_6", "ABSGD(SCE)"), columns_of("absgd_6")),
    Order("absgd_7", ["ABSGD / SCE"], ["SGD / SCE", "EG / SCE"], ["Clothing1M / accuracy"]),
    Order("absgd_7", ["ABSGD / TCE"], ["SGD / TCE", "EG / TCE"], ["Clothing1M / accuracy"]),
    # Loss-conditional training, 5.2.
    Order("lct_3", ["Focal + LCT"], ["Focal"], columns_of("lct_3"), FOCAL_LCT_WRONG, ties=True),
    Order("lct_3", ["VS + LCT"], ["VS"], columns_of("lct_3"), VS_LCT_WRONG, ties=True),
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: f"{order.name}-{order.higher[0]}-{order.lower[0]}")
def test_rows_stand_in_the_order_that_the_text_tells(order):
    wrong = set()
    for high in order.higher:
        for low in order.lower:
            for column in order.columns:
                one, other = (getattr(lookup(order.name, row, column), order.of) for row in (high, low))
                if not (one - other > order.by or (order.ties and one == other)):
                    cells = {(high, column), (low, column)} & set(order.wrong)
                    assert cells, (high, low, column, one, other)
                    wrong |= cells
    assert wrong == set(order.wrong)
    assert {(order.name, *cell) for cell in wrong} <= as_printed()


class Points(NamedTuple):
    """A row has so many points more than another."""

    name: str
    row: str
    over: str
    column: str
    points: float
    wrong: bool = False


POINTS = [
    Points("saddle_1", "CE + DRW + SAM", "CE + DRW", f"{LT10} / accuracy", 5.1),
    Points("saddle_1", "CE + DRW + SAM", "CE + DRW", f"{LT100} / accuracy", 3.6),
    Points("saddle_1", "CE + DRW + SAM", "CE + DRW", f"{LT10} / tail accuracy", 11.7),
    Points("saddle_1", "CE + DRW + SAM", "CE + DRW", f"{LT100} / tail accuracy", 7.7, wrong=True),
    Points("saddle_2", "CE + DRW + SAM", "CE + DRW", "CIFAR-10 step / accuracy", 7.1),
    Points("saddle_2", "CE + DRW + SAM", "CE + DRW", "CIFAR-10 step / tail accuracy", 14.6),
    Points("saddle_3", "CE + DRW + SAM", "CE + DRW", "ImageNet-LT / tail accuracy", 6.5),
    Points("absgd_3", "ABSGD", "META", "ImageNet-LT / accuracy", 0.2),
    Points("absgd_4", "ABSGD", "tau-normalized", "Places-LT / accuracy", 0.9, wrong=True),
    Points("absgd_5", "ABSGD (CB-CE)", "LWS (CB-CE)", "iNaturalist2018 / ResNet50 / accuracy", 0.3),
    Points("absgd_5", "ABSGD (CB-CE)", "tau-Normalized (CE)", "iNaturalist2018 / ResNet152 / accuracy", 0.6),
]


@pytest.mark.parametrize("claim", POINTS, ids=lambda claim: f"{claim.name}-{claim.column}")
def test_differences_are_those_that_the_text_tells(claim):
    found = gain(claim.name, claim.row, claim.over, claim.column)
    assert (abs(found - claim.points) < 0.05) != claim.wrong
    assert not claim.wrong or (claim.name, claim.row, claim.column) in as_printed()


def test_gains_by_sam_on_average():
    settings = [("saddle_1", data) for data in (LT10, LT100)]
    settings += [("saddle_2", data) for data in ("CIFAR-10 step", "CIFAR-100 step")]
    tails = [gain(name, "VS + SAM", "VS", f"{data} / tail accuracy") for name, data in settings]
    overall = [gain(name, "VS + SAM", "VS", f"{data} / accuracy") for name, data in settings]
    assert np.mean(tails) == pytest.approx(6.2, abs=0.05) and np.mean(overall) == pytest.approx(4, abs=0.5)
    others = [f"CE + DRW + {method}" for method in ("PGD", "LPF-SGD")]
    over = [gain("saddle_4", "CE + DRW + SAM", row, f"{d} / accuracy") for row in others for d in (LT10, LT100)]
    assert np.mean(over) == pytest.approx(2, abs=0.5)


def test_re_weighted_ekfac_falls_to_the_level_of_the_baseline():
    assert gain("thesis_5_4", "EKFAC IRW", "Baseline", ALPHAS[0]) == pytest.approx(0, abs=0.3)


def test_class_weights_improve_absgd():
    for loss in ("CE", "Focal"):
        for column in ABSGD_ALL:
            assert at("absgd_2", f"ABSGD (CB-{loss})", column) > at("absgd_1", f"ABSGD ({loss})", column)


SYMMETRIC_40 = "CIFAR-10 / symmetric / rate=0.4 / accuracy"


def test_the_gain_of_absgd_grows_with_the_rate_of_wrong_labels():
    shrinking = []
    for column in columns_of("absgd_6")[1::2]:
        low, high = (gain("absgd_6", "ABSGD(SCE)", "SGD(SCE)", c) for c in (column.replace("0.4", "0.2"), column))
        if high <= low:
            shrinking.append(column)
    assert shrinking == [SYMMETRIC_40]


STAGES = {("absgd_3", "ABSGD"): "FC", ("absgd_4", "ABSGD"): "FC+LB", ("absgd_5", "ABSGD (CB-CE)"): "FC+LB"}


def test_what_the_second_stage_trains_is_told_otherwise_in_the_text():
    for (name, row), told in STAGES.items():
        assert {lookup(name, row, "stage-2 variables").value, told} == {"FC", "FC+LB"}


def test_the_best_is_with_lct_except_for_animals_and_vehicles():
    for column in columns_of("lct_3"):
        values = {row: at("lct_3", row, column) for row in rows_of("lct_3")}
        best = [row for row, value in values.items() if value == max(values.values())]
        assert any(row.endswith("LCT") for row in best) == ("Animal" not in column)


def test_aucs_told_in_the_text_and_in_figures():
    without = [at("lct_4", row, "CIFAR-10/100 / Auto Truck / VS / AUC") for row in rows_of("lct_4")]
    assert without == [0.918, 0.930, 0.886]
    figures_4_and_5 = [at("lct_3", row, f"{MELANOMA} / beta=200 / AUC") for row in ("VS", "VS + LCT")]
    assert figures_4_and_5 == [0.884, 0.911]


def combinations(row, stage):
    """How many combinations of hyper-parameters there are."""
    texts = [cell.value for cell in read_table("lct_2") if cell.row == row and cell.column.startswith(stage)]
    return math.prod(len(re.findall(r"L\([^)]*\)|[\d.]+", text)) for text in texts)


def test_numbers_of_trained_and_evaluated_models():
    assert [combinations(row, "training") for row in rows_of("lct_2")] == [16] * 4
    assert combinations("VS + LCT", "inference") == 20
    assert combinations("Focal + LCT", "inference") == 16  # Figure 8 has 20


def test_sizes_of_the_medical_sets():
    test = {
        row: at("lct_12", row, "test / majority") + at("lct_12", row, "test / minority") for row in (MELANOMA, APTOS)
    }
    assert test[APTOS] / 3662 == pytest.approx(0.2, abs=0.001)
    assert at("lct_12", APTOS, "train / majority") * 0.25 == pytest.approx(
        at("lct_12", APTOS, "test / majority"), abs=1
    )
    images = 33126 + 25331
    assert round(100 * test[MELANOMA] / images, 1) == 22.8  # the text has 20
    left = images - test[MELANOMA] - at("lct_12", MELANOMA, "train / majority")
    assert left == 4071 < at("lct_12", MELANOMA, "train / minority / beta=10")


def test_all_notes_of_contradictions_are_tested():
    tested = {(order.name, *cell) for order in ORDERS for cell in order.wrong}
    tested |= {(claim.name, claim.row, claim.column) for claim in POINTS if claim.wrong}
    tested |= {(name, row, "stage-2 variables") for name, row in STAGES}
    tested |= {("absgd_6", "ABSGD(SCE)", SYMMETRIC_40)}
    tested |= {("lct_2", "Focal + LCT", "inference / phi")}
    tested |= {("lct_12", MELANOMA, column) for column in ("test / majority", "train / minority / beta=10")}
    in_test_published = {
        ("absgd_6", "SGD(CE)", "CIFAR-100 / asymmetric / rate=0.4 / accuracy"),
        ("lct_2", "Focal + LCT", "training / phi"),
        ("lct_3", "VS + SAM", "APTOS / beta=200 / AUC"),
        ("lct_12", "Dogs vs. Cats", "train / majority"),
        ("lct_19", "VS + SAM", "APTOS / beta=200 / AUC"),
        ("saddle_1", "VS + SAM", f"{LT10} / tail accuracy"),
        ("saddle_3", "DRO-LT", "ImageNet-LT / accuracy"),
        ("saddle_3", "DRO-LT", "iNaturalist 2018 / accuracy"),
        ("saddle_3", "DisAlign", "ImageNet-LT / accuracy"),
        ("saddle_3", "cRT", "iNaturalist 2018 / accuracy"),
    }
    assert as_printed() == tested | in_test_published
