"""What every correction promises, whatever it does: the contract of `imbal_jax.types.Correction`."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.builders import CORRECTIONS
from imbal_jax.class_counts import class_counts
from imbal_jax.corrections import margins, modulations, weights
from imbal_jax.errors import InputError
from imbal_jax.losses import corrected_losses
from imbal_jax.types import Correction, Prediction

# What families promise, each of whose members is a correction: tests/corrections/test_conditional.py
FAMILIES = ("conditional_vector_scaling", "conditional_focal")
BINARY = ("minority_weight",)  # of two classes only: tests/corrections/test_binary.py
BUILDERS = {name: builder for name, builder in CORRECTIONS.items() if name not in (*FAMILIES, *BINARY)}
WEIGHTING = ("inverse_frequency", "class_balanced", "alpha_focal", "influence_balanced", "composed", "deferred")
COUNTS = (60, 12, 3)
MASKED_COUNTS = (60, 12, 0)
LABELS = np.array([0, 1, 0, 1, 0, 1], np.int32)  # of classes that are never masked
ORDER = np.array([3, 0, 5, 1, 4, 2])
NAN = float("nan")


def _example():
    """Logits [6, 3], the last two saturated (one rightly, one wrongly), and features [6, 4]."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 3)).astype(np.float32)
    logits[4] = [1000.0, 0.0, -5.0]
    logits[5] = [1000.0, 0.0, -5.0]
    return logits, rng.normal(size=(6, 4)).astype(np.float32)


def _build(name, counts) -> Correction:
    """The correction of this name with its defaults, as a run builds it."""
    parts = {
        "composed": lambda: {
            "margin": margins.vector_scaling(counts),
            "modulation": modulations.focal(),
            "weight": weights.inverse_frequency(counts),
        },
        "deferred": lambda: {"after": weights.inverse_frequency(counts)},
    }
    options = parts[name]() if name in parts else {}
    if "counts" in inspect.signature(BUILDERS[name]).parameters:
        return BUILDERS[name](counts, **options)
    return BUILDERS[name](**options)


def _losses_of(correction):
    """The function (logits, features, labels, progress) -> corrected losses."""

    def losses(logits, features, labels, progress):
        return corrected_losses(correction.correct(Prediction(logits, features), labels, progress), labels)

    return losses


def _values_and_gradients(correction, logits, features, labels, progress):
    """What the contract says of a batch, as a dict."""
    losses = _losses_of(correction)
    by_logits, by_features = jax.grad(lambda z, h: losses(z, h, labels, progress).sum(), argnums=(0, 1))(
        logits, features
    )
    return {
        "corrected": correction.correct(Prediction(logits, features), labels, progress),
        "losses": losses(logits, features, labels, progress),
        "by_logits": by_logits,
        "by_features": by_features,
        "inferred": correction.infer(logits, progress),
    }


def _by_other_batches(correction, logits, features, labels, progress):
    """The same examples one by one, one alone, and in another order, as a dict."""
    losses = _losses_of(correction)

    def of_one_example(logits, features, label):
        return losses(logits[None], features[None], label[None], progress)[0]

    return {
        "of_each_example": jax.vmap(of_one_example)(logits, features, labels),
        "of_the_second_alone": losses(logits[1:2], features[1:2], labels[1:2], progress),
        "permuted": losses(logits[ORDER], features[ORDER], labels[ORDER], progress),
    }


def _at_both_ends(observe, correction):
    """One compiled program, run at the start and at the end of training: the dict of progress -> results."""
    compiled = jax.jit(functools.partial(observe, correction))
    return {progress: jax.device_get(compiled(*_example(), LABELS, jnp.float32(progress))) for progress in (0.0, 1.0)}


@functools.cache
def _observed(name):
    """Values, gradients, and values by other batches, by progress."""
    return _at_both_ends(
        lambda *arguments: _values_and_gradients(*arguments) | _by_other_batches(*arguments), _build(name, COUNTS)
    )


@functools.cache
def _observed_masked(name):
    """Values and gradients with a masked class, by progress."""
    masked = class_counts(MASKED_COUNTS, empty_classes="mask")
    return _at_both_ends(_values_and_gradients, _build(name, masked))


every_correction = pytest.mark.parametrize("name", BUILDERS)
every_moment = pytest.mark.parametrize("progress", [0.0, 1.0])


@every_correction
@every_moment
def test_shapes_and_dtypes_in_a_compiled_program_with_traced_progress(name, progress):
    observed = _observed(name)[progress]
    logits, *by_example = jax.tree.leaves(observed["corrected"])
    assert logits.shape == (6, 3)
    assert all(array.shape == (6,) for array in by_example)
    assert all(array.dtype == np.float32 for array in (logits, *by_example))
    assert observed["losses"].shape == (6,)
    assert observed["losses"].dtype == np.float32
    assert observed["inferred"].shape == (6, 3)
    assert observed["inferred"].dtype == np.float32


@every_correction
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_precisions_are_kept(name, dtype):
    correction = _build(name, COUNTS)
    with jax.enable_x64(True):
        prediction = Prediction(*(jnp.asarray(array, dtype) for array in _example()))
        corrected = jax.eval_shape(correction.correct, prediction, LABELS, np.float32(0.5))
        inferred = jax.eval_shape(correction.infer, prediction.logits, np.float32(0.5))
    assert {array.dtype for array in jax.tree.leaves((corrected, inferred))} == {jnp.dtype(dtype)}


@every_correction
def test_progress_may_be_a_python_number(name):
    correction = _build(name, COUNTS)
    logits, features = map(jnp.asarray, _example())
    for progress in (0.0, 1.0):
        corrected = correction.correct(Prediction(logits, features), jnp.asarray(LABELS), progress)
        expected = _observed(name)[progress]["corrected"]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), corrected, expected)


@every_correction
@every_moment
def test_losses_are_finite_and_not_negative_and_their_gradients_finite(name, progress):
    observed = _observed(name)[progress]
    assert np.isfinite(observed["losses"]).all()
    assert (observed["losses"] >= 0).all()
    assert (observed["losses"][:4] > 0).all()
    assert np.isfinite(observed["by_logits"]).all()
    assert np.isfinite(observed["by_features"]).all()


@every_correction
@every_moment
def test_examples_do_not_see_each_other(name, progress):
    observed = _observed(name)[progress]
    tolerance = {"rtol": 2e-5, "atol": 1e-6}
    np.testing.assert_allclose(observed["of_each_example"], observed["losses"], **tolerance)
    np.testing.assert_allclose(observed["of_the_second_alone"], observed["losses"][1:2], **tolerance)
    np.testing.assert_allclose(observed["permuted"], observed["losses"][ORDER], **tolerance)


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "cross_entropy"])
def test_switching_a_correction_on_changes_the_gradient(name):
    gradient = _observed(name)[1.0]["by_logits"][:4]
    plain = _observed("cross_entropy")[1.0]["by_logits"][:4]
    assert np.abs(gradient - plain).max() > 0.01 * np.abs(plain).max()


def test_cross_entropy_changes_nothing():
    observed = _observed("cross_entropy")[1.0]
    logits, _ = _example()
    np.testing.assert_array_equal(observed["corrected"].logits, logits)
    np.testing.assert_array_equal(observed["inferred"], logits)
    np.testing.assert_array_equal(observed["corrected"].weights, np.ones(6))
    np.testing.assert_array_equal(observed["corrected"].modulation, np.ones(6))


@every_correction
@every_moment
def test_masked_classes_leave_everything_finite(name, progress):
    observed = _observed_masked(name)[progress]
    for key in ("losses", "by_logits", "by_features", "inferred"):
        assert np.isfinite(observed[key]).all(), key
    assert (observed["losses"] >= 0).all()
    assert all(np.isfinite(array).all() for array in jax.tree.leaves(observed["corrected"]))


@pytest.mark.parametrize("name", WEIGHTING)
def test_masked_classes_have_no_weight(name):
    correction = _build(name, class_counts(MASKED_COUNTS, empty_classes="mask"))
    prediction = Prediction(jnp.zeros((3, 3)), jnp.ones((3, 2)))
    corrected = correction.correct(prediction, np.arange(3), 1.0)
    assert float(corrected.weights[2]) == 0.0
    assert (np.asarray(corrected.weights[:2]) > 0).all()


@pytest.mark.parametrize("name", ["logit_adjustment", "vector_scaling", "composed"])
def test_adjusted_softmax_gives_masked_classes_no_gradient(name):
    gradient = _observed_masked(name)[1.0]["by_logits"]
    np.testing.assert_array_equal(gradient[:, 2], 0.0)
    assert (np.abs(gradient[:4, :2]) > 0).all()


# For each builder, values that each of its options refuses.
NORMALIZATIONS = ("mean", "", None)
REFUSED = {
    "cross_entropy": {},
    "inverse_frequency": {"power": (-1.0, NAN), "normalization": NORMALIZATIONS},
    "class_balanced": {"beta": (-0.1, 1.0, 1.5, NAN), "normalization": NORMALIZATIONS},
    "focal": {"gamma": (-0.5, NAN)},
    "alpha_focal": {"gamma": (-0.5, NAN), "normalization": NORMALIZATIONS},
    "ldam": {"max_margin": (-0.1, NAN), "scale": (0.0, -1.0, NAN)},
    "influence": {"alpha": (0.0, -1.0, NAN), "epsilon": (0.0, -1.0, NAN)},
    "influence_balanced": {
        "alpha": (0.0, -1.0, NAN),
        "epsilon": (0.0, -1.0, NAN),
        "normalization": NORMALIZATIONS,
    },
    "logit_adjustment": {"tau": (-1.0, NAN)},
    "vector_scaling": {"multiplicative": (-0.1, NAN), "additive": (-0.1, NAN)},
    "class_dependent_temperatures": {"multiplicative": (-0.1, NAN)},
    "symmetric_cross_entropy": {
        "alpha": (-0.1, NAN),
        "beta": (-0.1, NAN),
        "log_clip": (0.0, 4.0, NAN),
        "probability_clip": (-1e-7, 1.0, NAN),
    },
    "generalized_cross_entropy": {
        "q": (0.0, -0.1, 1.1, NAN),
        "truncation": (-0.1, 1.0, NAN),
        "refresh": ("epoch", "", None),
        "start": (-1,),
        "every": (0, -1),
    },
    "composed": {},  # of nothing: tests/corrections/test_compose.py
    "deferred": {"at": (-0.1, 1.1, NAN)},
}
# Options that are corrections themselves, and the one that is a truth value.
UNCHECKED = {"margin", "modulation", "weight", "after", "before", "stop_gradient_factor"}
TAKE_COUNTS = [name for name, builder in BUILDERS.items() if "counts" in inspect.signature(builder).parameters]


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        (name, option, value)
        for name, refused in REFUSED.items()
        for option, values in refused.items()
        for value in values
    ],
)
def test_faulty_options_are_told(name, option, value):
    positional = (COUNTS,) if name in TAKE_COUNTS else ()
    required = {"after": weights.cross_entropy()} if name == "deferred" else {}
    with pytest.raises(InputError, match=rf"^{option}: expected .*, got {re.escape(repr(value))}$") as raised:
        BUILDERS[name](*positional, **required, **{option: value})
    assert "\n" not in str(raised.value)


@every_correction
def test_every_option_is_held_to_its_range(name):
    parameters = inspect.signature(BUILDERS[name]).parameters.values()
    options = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    assert options - UNCHECKED == set(REFUSED[name])


@pytest.mark.parametrize("name", TAKE_COUNTS)
def test_faulty_counts_are_told(name):
    for counts, told in (
        ((5, 0, 3), "classes [1] have no training example"),
        ((5, -1), "expected whole numbers >= 0, got [5, -1]"),
        ((5, 0.5), "expected whole numbers >= 0, got [5.0, 0.5]"),
        ((5,), "expected a vector of at least two classes"),
    ):
        with pytest.raises(InputError, match="^class counts: " + re.escape(told)):
            BUILDERS[name](counts)
