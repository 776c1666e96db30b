"""The benchmark of spectra: that its tools compute the same, and what it prints of them."""

import json
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import spectrum, spectrum_tools
from benchmarks.spectrum_tools import Setting, Tool
from imbal_jax.curvature.subsets import select_parameters
from imbal_jax.errors import InputError
from imbal_jax.main import EXIT_INPUT, guarded

EXAMPLES = 5
TOOLS = [
    Tool("ours", "ours", 2, 0.0),
    Tool("ours_classes_by_vmap", "ours", 2, classes_by_vmap=True),
    Tool("pyhessian", "pyhessian", None),
    Tool("pyhessian_loader", "pyhessian", 2),
    Tool("curvlinops", "curvlinops", None),
    Tool("curvlinops_batched", "curvlinops", 2),
]
SLOW = ("ours_classes_by_vmap", "curvlinops_batched")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(spectrum_tools.MODELS, "mlp", {"hidden": (4,)})
    monkeypatch.setitem(spectrum_tools.MODELS, "cnn", {"width": 2})
    monkeypatch.setattr(spectrum_tools, "IMAGE_SHAPE", (4, 4, 3))
    monkeypatch.setattr(spectrum, "PAUSE", 0.0)
    monkeypatch.setattr(spectrum, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(spectrum, "MICRO_BATCHES", (2, 4, 8))


@pytest.fixture(scope="module")
def dense():
    """A small CNN, and the Hessians of two classes in full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(spectrum_tools.MODELS, "cnn", {"width": 2})
        patch.setattr(spectrum_tools, "IMAGE_SHAPE", (4, 4, 3))
        case = spectrum_tools.make_case("cnn", classes=2, examples=EXAMPLES, probes=2)
    if spectrum_tools.torch_device() is not None:
        from benchmarks.torch_models import TorchSettings

        case = case._replace(torch=TorchSettings("contiguous", 1, "cpu"))
    params = case.variables["params"]
    subset = select_parameters(params)

    def loss(vector, images, label):
        variables = {**case.variables, "params": subset.insert(params, vector)}
        logits, _ = case.model.apply(variables, images, train=False)
        return -jnp.mean(jax.nn.log_softmax(logits)[:, label])

    at, classes = subset.extract(params), case.images.reshape(2, EXAMPLES, 4, 4, 3)
    hessian = jax.jit(jax.hessian(loss), compiler_options={"xla_backend_optimization_level": 0})
    return case, [np.asarray(hessian(at, images, label)) for label, images in enumerate(classes)]


@pytest.mark.parametrize(
    "tool", [pytest.param(tool, marks=[pytest.mark.slow] * (tool.name in SLOW), id=tool.name) for tool in TOOLS]
)
def test_every_tool_computes_the_same_as_the_matrix_in_full(dense, tool):
    if reason := spectrum_tools.missing(tool.kind):
        pytest.skip(reason)
    case, matrices = dense
    made = spectrum_tools.KINDS[tool.kind](case, tool)
    if not tool.classes_by_vmap:
        product = made.read(made.product(Setting("product", 1, 1, EXAMPLES, 1))())
        expected = matrices[0] @ case.starts[0]
        np.testing.assert_allclose(product, expected, atol=1e-5 * np.abs(expected).max())
    # All eigenvalues but those close to zero are found in this many steps.
    found = made.spectra(Setting("classes", 2, 1, EXAMPLES, 40))()
    ends = [np.linalg.eigvalsh(matrix)[[0, -1]] for matrix in matrices]
    np.testing.assert_allclose(found, ends, rtol=1e-4)
    if not tool.classes_by_vmap:
        action = made.spectra(Setting("probes", 1, 2, EXAMPLES, 3))
        # Three steps are too few: what is found is that of these two starts.
        np.testing.assert_allclose(action(), [few_steps(matrices[0], case.starts, 3)], rtol=1e-4)
        np.testing.assert_allclose(action(), action(), rtol=1e-6)


def few_steps(matrix, starts, steps):
    """The extreme eigenvalues of a matrix restricted to the Krylov spaces of starts."""
    values = []
    for start in starts:
        powers = np.stack([np.linalg.matrix_power(matrix.astype(np.float64), power) @ start for power in range(steps)])
        basis, _ = np.linalg.qr(powers.T)
        values.append(np.linalg.eigvalsh(basis.T @ matrix @ basis))
    return np.min(values), np.max(values)


def test_statistics_are_those_of_the_images(dense):
    case, _ = dense
    trained, _ = case.model.apply(case.variables, case.images, train=True, mutable=["batch_stats"])
    evaluated = case.model.apply(case.variables, case.images, train=False)
    # Running variances are the unbiased ones.
    np.testing.assert_allclose(evaluated[0], trained[0], rtol=0.1, atol=0.02)
    assert not np.allclose(case.variables["batch_stats"]["norm1"]["var"], 1, rtol=0.1)


@pytest.mark.slow
def test_prints_a_line_for_every_tool(capsys, tmp_path):
    arguments = ["--model=mlp", "--examples=5", "--micro-batch=2", "--steps=3", "--rounds=2", "--no-memory"]
    arguments += ["--what=product,probes", "--probes=2", f"--output={tmp_path}/lines"]
    assert spectrum.run(arguments) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "lines").read_text() == text
    conditions, *records = [json.loads(line) for line in text.splitlines()]
    assert (conditions["benchmark"], conditions["parameters"]) == ("spectrum", 48 * 4 + 4 + 4 * 10 + 10)
    torch_tools = {"pyhessian", "pyhessian_loader", "curvlinops", "curvlinops_batched"}
    expected = {
        "product": {"ours", "ours_micro_4", "ours_linearised_0", "ours_linearised_4"} | torch_tools,
        "probes": {"ours", "ours_one_by_one"} | torch_tools,
    }
    for what, names in expected.items():
        assert {record["tool"] for record in records if record["what"] == what} == names
    for record in records:
        assert (record["model"], record["examples"], record["steps"]) == ("mlp", 5, 3)
        if reason := spectrum_tools.missing(record["kind"]):
            assert record["skipped"] == reason
            continue
        assert "skipped" not in record, record
        least, most = record["time_ratio_range"]
        assert 0 < least <= record["time_ratio"] <= most
        assert record["difference"] <= 1e-4
        assert record["timed"]
        assert record["peak_mebibytes"] is None
        products = {"product": 1, "probes": 6}[record["what"]]
        assert record["seconds_per_product"] == pytest.approx(record["seconds"] / products)
        if record["tool"] == "ours":
            assert record["time_ratio_range"] == [1, 1]
            assert record["fastest_micro_batch"] in ({2, 4} if record["what"] == "product" else {None})
            installed = torch_tools - {other["tool"] for other in records if "skipped" in other}
            assert record["fastest_other"] in installed or not installed


def test_works_without_the_others(capsys, monkeypatch):
    monkeypatch.setattr(spectrum_tools, "torch_device", lambda: None)
    arguments = ["--model=mlp", "--examples=2", "--steps=2", "--rounds=1", "--what=product", "--no-memory"]
    assert spectrum.run([*arguments, "--tools=pyhessian"]) == 0
    _, *skipped, ours = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["tool"] for record in skipped] == ["pyhessian", "pyhessian_loader"]
    assert {record["skipped"] for record in skipped} == {"PyTorch is not installed for this kind of device"}
    assert (ours["tool"], ours["time_ratio"], ours["fastest_other"]) == ("ours", 1, None)
    monkeypatch.setattr(spectrum_tools, "torch_device", lambda: "cpu")
    monkeypatch.setattr(spectrum_tools.importlib.util, "find_spec", lambda name: None)
    assert spectrum_tools.missing("curvlinops") == "curvlinops-for-pytorch is not installed"


class Fake:
    """A tool whose results are off by a factor."""

    def __init__(self, case, tool):
        self.factor = 1 + (tool.linearise_gib or 0)

    def product(self, setting):
        return lambda: self.factor * np.array([3.0, 4.0])

    def spectra(self, setting):
        return lambda: [(self.factor * -1.0, self.factor * 5.0)]

    def read(self, product):
        return product

    def timed(self, what):
        return what


@pytest.mark.parametrize("what", ["product", "spectrum"])
def test_does_not_time_what_does_not_agree(what, monkeypatch):
    monkeypatch.setattr(spectrum, "KINDS", {"ours": Fake})
    tools = [Tool("ours", "ours", 1), *(Tool(str(off), "ours", 1, off) for off in (9e-4, 1.1e-3, float("nan")))]
    case: Any = None
    records = list(spectrum.measure(case, Setting(what, 1, 1, 1, 1), tools, rounds=1, memory=False))
    skipped = {record["tool"]: record["skipped"] for record in records if "skipped" in record}
    assert skipped == {
        "0.0011": "does not agree with ours: a relative difference of 1.1e-03",
        "nan": "does not agree with ours: a relative difference of nan",
    }
    assert [record["tool"] for record in records if "skipped" not in record] == ["ours", "0.0009"]
    assert records[-1]["difference"] == pytest.approx(9e-4)


def test_tools_take_turns(monkeypatch):
    clock, taken = [0.0], []

    def action(name, seconds):
        def act():
            taken.append(name)
            clock[0] += seconds

        return act

    fake = types.SimpleNamespace(sleep=lambda seconds: None, perf_counter=lambda: clock[0])
    monkeypatch.setattr(spectrum, "time", fake)
    monkeypatch.setattr(spectrum, "LEAST_SECONDS", 2.0)
    turns = spectrum.take_turns({"a": action("a", 1.0), "b": action("b", 5.0)}, rounds=2)
    assert "".join(taken) == "aabaab"
    assert {name: list(seconds) for name, seconds in turns.items()} == {"a": [1, 1], "b": [5, 5]}


def test_ratios_are_taken_within_rounds():
    turns = {"ours": np.array([1.0, 2.0, 4.0]), "theirs": np.array([3.0, 4.0, 12.0])}
    costs = spectrum.costs_of("theirs", turns, {"ours": 2**20, "theirs": 3 * 2**20})
    assert (costs["time_ratio"], costs["time_ratio_range"]) == (3, [2, 3])
    assert (costs["seconds"], costs["peak_memory_ratio"], costs["peak_mebibytes"]) == (4, 3, 3)
    assert spectrum.costs_of("theirs", turns, {"ours": None, "theirs": None})["peak_memory_ratio"] is None


def test_peak_memory_is_that_of_the_action():
    if spectrum.resident_memory() is None:
        pytest.skip("the system does not tell the resident memory")
    size = 2**27
    np.ones(2 * size, np.uint8).sum()  # an earlier peak does not count
    growth = spectrum.peak_growth(lambda: np.ones(size, np.uint8).sum(), spectrum.resident_memory)
    assert growth is not None
    assert 0.95 * size < growth < 1.2 * size


def test_memory_is_measured_in_another_process():
    case = spectrum_tools.make_case("mlp", classes=1, examples=EXAMPLES, probes=1)
    tool, setting = Tool("ours", "ours", 2, 0.0), Setting("product", 1, 1, EXAMPLES, 1)
    growth = spectrum.in_own_process(spectrum.peak_memory, case, tool, setting)
    assert growth is None or 0 < growth < 2**30


def test_settings():
    parsed = spectrum.parse([])
    assert spectrum.settings_of(parsed) == [Setting("product", 1, 1, 256, 20), Setting("spectrum", 1, 1, 256, 20)]
    assert (parsed.model, parsed.rounds, parsed.micro_batch) == ("resnet32", 3, 32)
    parsed = spectrum.parse(["--what=classes,probes,examples,all", "--classes=3,1", "--probes=2", "--sizes=7"])
    assert spectrum.settings_of(parsed) == [
        Setting("classes", 1, 1, 256, 20),
        Setting("classes", 3, 1, 256, 20),
        Setting("probes", 1, 2, 256, 20),
        Setting("examples", 1, 1, 7, 20),
        Setting("all", 10, 10, 256, 20),
    ]


def test_variants_of_ours():
    def names(model, what, classes=1, probes=1):
        tools = spectrum.tools_of(Setting(what, classes, probes, 8, 1), model, 4)
        return [tool.name.removeprefix("ours_") for tool in tools if tool.kind == "ours"]

    assert names("resnet32", "product") == ["ours", "micro_2", "micro_8", "linearised_0", "linearised_4"]
    assert names("resnet32", "spectrum") == ["ours", "linearised_0", "linearised_4"]
    assert names("resnet32", "classes", classes=2) == ["ours"]
    assert names("mlp", "classes", classes=2) == ["ours", "classes_by_vmap"]
    assert names("resnet32", "probes", probes=2) == ["ours", "together"]
    assert names("mlp", "probes", probes=2) == ["ours", "one_by_one"]
    assert names("mlp", "examples") == ["ours"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=resnet"], "--model: no 'resnet'; did you mean 'resnet32'?"),
        (["--what=product,spectra"], "--what: no 'spectra'; did you mean 'spectrum'?"),
        (["--steps=0"], "--steps: expected a number >= 1, got 0"),
        (["--micro-batch=-1"], "--micro-batch: expected a number >= 1, got -1"),
        (["--classes=1,11"], "--classes: expected whole numbers in 1..10 separated by commas, got '1,11'"),
        (["--probes=0"], "--probes: expected whole numbers >= 1 separated by commas, got '0'"),
        (["--tools=pyhesian"], "--tools: no 'pyhesian'; did you mean 'pyhessian' or 'pyhessian_loader'?"),
    ],
)
def test_refuses_what_it_cannot_measure_in_one_line(arguments, message, capsys):
    with pytest.raises(InputError) as raised:
        spectrum.run(arguments)
    assert message in str(raised.value)
    assert guarded(spectrum.run, arguments) == EXIT_INPUT
    assert capsys.readouterr().err.startswith(f"error: {message}")
