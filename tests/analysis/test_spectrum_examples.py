"""Which examples spectra are of, what must make no difference to them, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.analysis.class_spectra import class_spectra, groups_of
from imbal_jax.analysis.options import fixed, published
from imbal_jax.curvature import spectrum as spectrum_module
from imbal_jax.curvature.spectrum import OperatorError
from imbal_jax.errors import InputError
from tests.analysis.toy_runs import (
    IMAGES,
    LABELS,
    SHARES,
    SIZE,
    VALIDATION,
    Normalised,
    assert_spectra,
    class_matrices,
    cross_entropy,
    examples_of,
    make_setup,
    with_whole,
    write_data,
)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """What chooses the data and the network."""
    return write_data(tmp_path_factory.mktemp("data") / "toy.npz")


@pytest.fixture(scope="module")
def plain(flags):
    return make_setup(flags)


@pytest.fixture(scope="module")
def exact(plain):
    """The spectra of all groups with all steps."""
    return plain.spectra()


# The examples.


def test_other_splits(plain):
    found = plain.spectra(split="validation")
    matrices = class_matrices(plain.params, cross_entropy, VALIDATION.images, VALIDATION.labels)
    assert_spectra(found, with_whole(matrices, shares=(5 / 8, 3 / 8)))
    assert [each.group.available for each in found.values()] == [8, 5, 3]  # a class without examples is left out


def test_chosen_classes_in_their_order(plain):
    found = plain.spectra(classes=(2, 0), whole=False)
    matrices = class_matrices(plain.params, cross_entropy)
    assert_spectra(found, {name: matrices[name] for name in "20"})


def test_a_sample_of_examples_is_fixed_and_stands_for_its_class(plain):
    found = plain.spectra(examples=3)
    assert [each.group.sampled for each in found.values()] == [8, 3, 3, 2]
    assert [each.group.available for each in found.values()] == [15, 9, 4, 2]
    chosen = [examples_of(found[name].group) for name in "012"]
    assert [set(LABELS[each]) for each in chosen] == [{0}, {1}, {2}]
    rows = np.concatenate(chosen)
    matrices = class_matrices(plain.params, cross_entropy, IMAGES[rows], LABELS[rows])
    assert_spectra(found, with_whole(matrices))  # with the shares of the classes in the split, not in the sample
    # Whatever the other classes, and another one for another seed.
    (again,) = groups(plain, examples=3, classes=(1,), whole=False)
    np.testing.assert_array_equal(examples_of(again), chosen[1])
    others = [groups(plain, examples=3, classes=(0,), whole=False, seed=seed)[0] for seed in (1, 2)]
    assert not all(np.array_equal(examples_of(other), chosen[0]) for other in others)


def groups(setup, **changes):
    return groups_of(setup.experiment, setup.experiment.data.train, fixed(**changes))


def test_copies_are_augmented_in_raw_units_and_differ(flags, plain):
    def shift(key, images):
        assert images.shape == (1, 2, 2, 1)
        return images + 3 * jax.random.bernoulli(key, shape=(1, 1, 1, 1))

    setup = make_setup(flags, augmentation=shift)
    one = setup.spectra(augmentation="copies", copies=400, classes=(2,), whole=False, micro_batch=32)["2"]
    assert one.checks.change == 0
    half = [class_matrices(plain.params, cross_entropy, IMAGES + add)["2"] for add in (0.0, 3.0)]
    trace = np.trace(half[0] + half[1]) / 2
    # Of 400 copies of both examples about half are shifted: 800 draws have a standard error of 0.018.
    assert np.sum(one.spectrum.values[0]) == pytest.approx(trace, abs=0.06 * abs(np.trace(half[1] - half[0])))
    assert abs(np.trace(half[1] - half[0])) > 0.2 * abs(trace)


def test_copies_are_drawn_once(flags, exact):
    def noise(key, images):
        return images + jax.random.normal(key, images.shape, images.dtype)

    setup = make_setup(flags, augmentation=noise)
    found = setup.spectra(augmentation="copies", copies=2)
    other = setup.spectra(augmentation="copies", copies=2, micro_batch=7, classes=(1,))
    for name, each in other.items():
        np.testing.assert_allclose(each.spectrum.values, found[name].spectrum.values, atol=1e-9)
    assert abs(exact["all"].spectrum.lambda_max / found["all"].spectrum.lambda_max - 1) > 1e-2
    traces = np.stack([found[name].spectrum.traces for name in "012"])
    np.testing.assert_allclose(SHARES @ traces, found["all"].spectrum.traces, rtol=1e-12)


@pytest.mark.parametrize("driver", ["calls", pytest.param("compiled", marks=pytest.mark.slow)])
def test_redrawn_examples_have_no_matrix_and_the_published_protocol_goes_on(flags, driver):
    def noise(key, images):
        return images + jax.random.normal(key, images.shape, images.dtype)

    setup = make_setup(flags, augmentation=noise)
    (found,) = setup.take(published(order=5, driver=driver, micro_batch=4, classes=(2,), whole=False))
    assert found.checks.change > 0.05 and found.checks.asymmetry > 0.01
    assert found.spectrum.values.shape == (1, 5)
    if driver == "calls":
        with pytest.raises(OperatorError, match=r"^the products with the matrix change from one to the next, by \d"):
            setup.take(fixed(order=5, driver=driver)._replace(augmentation="redrawn"))


# How it is computed makes no difference.


@pytest.mark.parametrize(
    "changes", [{"driver": "compiled", "micro_batch": 100}, {"driver": "calls", "linearise_gib": 0.0, "micro_batch": 2}]
)
def test_drivers_memory_and_micro_batches_make_no_difference(plain, exact, changes):
    for name, each in plain.spectra(classes=(1,), **changes).items():
        np.testing.assert_allclose(each.spectrum.values, exact[name].spectrum.values, atol=1e-11)
        np.testing.assert_allclose(each.spectrum.traces, exact[name].spectrum.traces, rtol=1e-11)


def test_probes_are_the_same_together_and_one_after_the_other(plain, exact):
    found = [plain.spectra(probes=3, probes_together=how, order=5, classes=(1,))["1"] for how in ("yes", "no")]
    np.testing.assert_allclose(found[0].spectrum.values, found[1].spectrum.values, atol=1e-11)
    np.testing.assert_allclose(found[0].spectrum.traces, found[1].spectrum.traces, rtol=1e-11)
    assert found[0].spectrum.traces[0] == pytest.approx(exact["1"].spectrum.traces[0], rel=1e-11)
    assert len(set(found[0].spectrum.traces)) == 3


def test_the_seed_draws_the_probes(plain, exact):
    one = exact["1"].spectrum
    same, other = (plain.spectra(seed=seed, classes=(1,), whole=False)["1"].spectrum for seed in (0, 1))
    np.testing.assert_array_equal(one.values, same.values)
    np.testing.assert_array_equal(one.weights, same.weights)
    assert not np.array_equal(one.traces, other.traces)
    np.testing.assert_allclose(one.values, other.values, atol=1e-10)


def test_single_precision_and_rademacher_probes(plain, exact):
    found = plain.spectra(precision="float32", distribution="rademacher")
    for name, each in found.items():
        np.testing.assert_allclose(each.spectrum.values, exact[name].spectrum.values, atol=3e-6)
        assert not np.array_equal(each.spectrum.values, exact[name].spectrum.values)
        assert 0 < each.checks.asymmetry < 1e-5


def test_fewer_steps_bound_the_spectrum_from_inside(plain, exact):
    for name, each in plain.spectra(order=5, probes=3).items():
        assert each.spectrum.values.shape == (3, 5) and list(each.spectrum.steps) == [5] * 3
        assert exact[name].spectrum.lambda_min <= each.spectrum.lambda_min
        assert each.spectrum.lambda_max <= exact[name].spectrum.lambda_max
        told = each.spectrum.summary()
        nearest = np.min(np.abs(exact[name].spectrum.values[0] - told["lambda_min"]))
        assert nearest <= told["lambda_min_residual"] * (1 + 1e-9)
        assert told["lambda_max_standard_error"] > 0 and told["trace_standard_error"] > 0
    early = plain.spectra(tolerance=0.1, least=3, classes=(0,), whole=False)["0"].spectrum
    assert 3 <= early.steps[0] < SIZE


def test_probes_are_reported_and_the_caller_keeps_its_precision(plain):
    told, precisions = [], []
    options = fixed(precision="float64", order=2, probes=2, probes_together="no", micro_batch=4, classes=(1,))
    for _ in class_spectra(*plain, options, lambda name, done: told.append((name, done))):
        precisions.append(jnp.zeros(1).dtype)
    assert told == [("all", 1), ("all", 2), ("1", 1), ("1", 2)]
    assert precisions == [jnp.float32] * 2


# What is refused.


def test_faulty_parameters_are_named(plain):
    for value in (np.nan, np.inf):
        params = jax.tree.map(np.copy, plain.params)
        params["dense1"]["kernel"][2, 1] = value
        broken = plain._replace(trained=plain.trained._replace(variables={"params": params, "model_state": {}}))
        with pytest.raises(InputError, match=r"^params: dense1/kernel holds NaN or infinite values"):
            broken.spectra()


def test_running_statistics_that_are_not_finite(flags):
    setup = make_setup(flags, model=Normalised())
    setup.trained.variables["model_state"]["batch_stats"]["norm"]["var"][0] = np.nan
    with pytest.raises(OperatorError, match=r"^the products with the matrix are not finite"):
        setup.spectra(order=21)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": SIZE + 1}, r"^spectrum\.order: expected at most the 27 parameters of 'all', got 28"),
        ({"parameters": "last_layer", "order": 13}, "at most the 12 parameters of 'last_layer', got 13"),
        ({"parameters": "lora_and_head"}, r"^parameters: no '\*lora\*'"),
        ({"parameters": "conv*"}, r"^parameters: no 'conv\*'.*valid: all, last_layer, .*dense1/kernel"),
        ({"parameters": ","}, "^parameters: no ','"),
        ({"split": "validation", "classes": (2,)}, "^classes: class 2 has no example to look at"),
        ({"classes": (3,)}, r"^classes: expected class indices in 0\.\.2, got 3"),
        ({"classes": (-1,)}, r"^classes: expected class indices in 0\.\.2, got -1"),
        ({"statistics": "batch", "micro_batch": 16}, "^micro_batch: expected at most the 15 examples"),
    ],
    ids=str,
)
def test_impossible_options(plain, options, message):
    with pytest.raises(InputError, match=message):
        plain.spectra(**options)


def test_a_split_that_the_run_does_not_have(flags, plain):
    data = plain.experiment.data._replace(validation=None)
    with pytest.raises(InputError, match=r"^spectrum\.split: the run has no validation split"):
        make_setup(flags, data=data).spectra(split="validation")


def test_a_basis_beyond_the_memory_is_refused_before_anything_is_computed(plain, monkeypatch):
    monkeypatch.setattr(spectrum_module, "_memory", lambda: 2 * SIZE * 11 * 8 - 1)
    with pytest.raises(InputError, match=r"^order: a Lanczos basis of 11 x 27 numbers for 2 probe\(s\) needs"):
        plain.spectra(order=10, probes=2, probes_together="yes")
    assert len(plain.spectra(order=10, probes=2, probes_together="no", whole=False, classes=(0,))) == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("numpy"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes."),
        jax.errors.JaxRuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
    ],
    ids=["host", "device", "cuda"],
)
@pytest.mark.parametrize("where", ["resident_examples", "operands_of", "spectrum"])
def test_exhausted_memory_becomes_advice(plain, monkeypatch, error, where):
    def exhausted(*args, **options):
        raise error

    monkeypatch.setattr(f"imbal_jax.analysis.class_spectra.{where}", exhausted)
    with pytest.raises(InputError, match=r"^micro_batch: out of memory with 4 examples at once; choose fewer"):
        plain.spectra(order=1)


def test_other_errors_of_the_device_are_not_hidden(plain, monkeypatch):
    def broken(*args, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr("imbal_jax.analysis.class_spectra.operands_of", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        plain.spectra(order=1)
