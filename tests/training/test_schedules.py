"""Learning-rate schedules at every step of a short horizon, against their formulas in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.class_counts import class_counts
from imbal_jax.corrections.compose import deferred
from imbal_jax.corrections.weights import inverse_frequency
from imbal_jax.errors import InputError
from imbal_jax.training import schedules
from imbal_jax.types import Horizon, Prediction

HORIZON = Horizon(steps_per_epoch=4, epochs=6)
STEPS = np.arange(HORIZON.total_steps)
ALL = [schedules.constant, schedules.linear, schedules.cosine, schedules.multi_step, schedules.switch]
TOLERANCE = {"rtol": 2e-6, "atol": 1e-8}


def at_all_steps(schedule, steps=STEPS):
    """The learning rate at every step, computed under jit."""
    rates = jax.jit(jax.vmap(schedule))(jnp.asarray(steps, jnp.int32))
    assert rates.dtype == jnp.float32
    return np.asarray(rates)


def warmup(epochs):
    """(e + 1) / epochs during the first epochs, then 1."""
    return np.array([min(1.0, (step // 4 + 1) / epochs) if epochs else 1.0 for step in STEPS])


def progress(warmup_epochs):
    """Fraction of the steps after the warm-up."""
    return np.array([max(step - 4 * warmup_epochs, 0) / (24 - 4 * warmup_epochs) for step in STEPS])


def test_total_steps():
    assert HORIZON.total_steps == 24


@pytest.mark.parametrize("warmup_epochs", [0, 1, 3])
class TestFormulas:
    def test_constant(self, warmup_epochs):
        schedule = schedules.constant(HORIZON, learning_rate=0.3, warmup_epochs=warmup_epochs)
        np.testing.assert_allclose(at_all_steps(schedule), 0.3 * warmup(warmup_epochs), **TOLERANCE)

    @pytest.mark.parametrize("end_factor", [0.0, 0.25, 1.0])
    def test_linear(self, warmup_epochs, end_factor):
        schedule = schedules.linear(HORIZON, learning_rate=0.3, end_factor=end_factor, warmup_epochs=warmup_epochs)
        done = progress(warmup_epochs)
        expected = 0.3 * warmup(warmup_epochs) * ((1 - done) + done * end_factor)
        np.testing.assert_allclose(at_all_steps(schedule), expected, **TOLERANCE)

    @pytest.mark.parametrize("end_factor", [0.0, 0.25])
    def test_cosine(self, warmup_epochs, end_factor):
        schedule = schedules.cosine(HORIZON, learning_rate=0.3, end_factor=end_factor, warmup_epochs=warmup_epochs)
        half_cosine = np.cos(np.pi / 2 * progress(warmup_epochs)) ** 2
        expected = 0.3 * warmup(warmup_epochs) * (end_factor + (1 - end_factor) * half_cosine)
        np.testing.assert_allclose(at_all_steps(schedule), expected, **TOLERANCE)

    def test_multi_step(self, warmup_epochs):
        schedule = schedules.multi_step(
            HORIZON, learning_rate=0.3, boundaries=(2, 4.5), factors=(0.5, 0.1), warmup_epochs=warmup_epochs
        )
        factor = np.array([1.0 if step < 8 else 0.5 if step < 18 else 0.1 for step in STEPS])
        np.testing.assert_allclose(at_all_steps(schedule), 0.3 * warmup(warmup_epochs) * factor, **TOLERANCE)


@pytest.mark.parametrize("build", [schedules.linear, schedules.cosine])
def test_what_is_left_at_the_end_stays(build):
    schedule = build(HORIZON, learning_rate=0.3, end_factor=0.25)
    np.testing.assert_allclose(at_all_steps(schedule, [24, 25, 1000]), 0.3 * 0.25, **TOLERANCE)


def test_schedule_of_cao_et_al():
    # Their adjust_learning_rate: lr (e + 1) / 5 in epochs 0-4, 1e-2 of it from epoch 160, 1e-4 from epoch 180.
    horizon = Horizon(steps_per_epoch=3, epochs=200)
    schedule = schedules.multi_step(
        horizon, learning_rate=0.1, boundaries=(160, 180), factors=(1e-2, 1e-4), warmup_epochs=5
    )
    by_epoch = np.full(200, 0.1)
    by_epoch[:5] = [0.02, 0.04, 0.06, 0.08, 0.1]
    by_epoch[160:180] = 1e-3
    by_epoch[180:] = 1e-5
    np.testing.assert_allclose(at_all_steps(schedule, np.arange(600)), np.repeat(by_epoch, 3), rtol=2e-6, atol=0)


def test_boundaries_are_exact_where_numbers_are_rounded():
    # 0.55 * 200 is 110.00000000000001, and 0.29 * 100 is 28.999999999999996.
    horizon = Horizon(steps_per_epoch=7, epochs=200)
    schedule = schedules.multi_step(
        horizon, learning_rate=1.0, boundaries=(0.29 * 100, 0.55 * 200), factors=(0.5, 0.25)
    )
    rates = at_all_steps(schedule, [29 * 7 - 1, 29 * 7, 110 * 7 - 1, 110 * 7])
    np.testing.assert_array_equal(rates, np.array([1.0, 0.5, 0.5, 0.25], np.float32))


def test_boundaries_are_exact_where_the_device_would_round():
    # float32 cannot tell these steps apart.
    horizon = Horizon(steps_per_epoch=1_000_003, epochs=100)
    schedule = schedules.multi_step(horizon, learning_rate=1.0, boundaries=(99,), factors=(0.5,))
    rates = at_all_steps(schedule, [99 * 1_000_003 - 1, 99 * 1_000_003])
    np.testing.assert_array_equal(rates, np.array([1.0, 0.5], np.float32))


@pytest.mark.parametrize("at", [0.0, 1 / 3, 0.5, 0.7, 1.0])
def test_switch_is_in_step_with_a_deferred_correction(at):
    rates = at_all_steps(schedules.switch(HORIZON, learning_rate=10.0, at=at, factor=0.5))
    counts = class_counts(np.array([8, 2]))
    correct = deferred(after=inverse_frequency(counts), at=at).correct
    prediction, labels = Prediction(jnp.zeros((2, 2))), jnp.array([0, 1])
    reweighted = [
        np.ptp(correct(prediction, labels, jnp.float32(step) / HORIZON.total_steps).weights) > 0 for step in STEPS
    ]
    np.testing.assert_array_equal(rates, np.where(reweighted, np.float32(5.0), np.float32(10.0)))


@pytest.mark.parametrize("options", [{"at": 1.5}, {"at": -0.1}, {"factor": -1.0}])
def test_switch_refuses(options):
    with pytest.raises(InputError, match=rf"^{next(iter(options))}: expected a number"):
        schedules.switch(HORIZON, **options)


def test_no_boundaries_is_constant():
    np.testing.assert_array_equal(at_all_steps(schedules.multi_step(HORIZON, learning_rate=0.5)), np.float32(0.5))


@pytest.mark.parametrize("build", ALL)
def test_host_and_device_agree(build):
    # Records ask for the learning rate of one step on the host.
    schedule = build(HORIZON, learning_rate=0.3, warmup_epochs=2)
    np.testing.assert_allclose([float(schedule(int(step))) for step in STEPS], at_all_steps(schedule), rtol=1e-6)


def test_a_run_may_be_all_warm_up():
    for build in (schedules.constant, schedules.linear, schedules.cosine):
        schedule = build(HORIZON, learning_rate=0.3, warmup_epochs=6)
        np.testing.assert_allclose(at_all_steps(schedule), 0.3 * warmup(6), **TOLERANCE)


@pytest.mark.parametrize("build", ALL)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, r"^learning_rate: expected a number > 0, got 0\.0$"),
        ({"learning_rate": float("nan")}, r"^learning_rate: expected a number > 0, got nan$"),
        ({"warmup_epochs": -1}, r"^warmup_epochs: expected 0 to the number of epochs, got -1$"),
        ({"warmup_epochs": 7}, r"^warmup_epochs: expected 0 to the number of epochs, got 7$"),
    ],
)
def test_refuses(build, options, message):
    with pytest.raises(InputError, match=message):
        build(HORIZON, **options)


@pytest.mark.parametrize("build", [schedules.linear, schedules.cosine])
@pytest.mark.parametrize("end_factor", [-0.1, 1.1, float("nan")])
def test_refuses_an_end_factor_out_of_range(build, end_factor):
    with pytest.raises(InputError, match=rf"^end_factor: expected a number in \[0, 1\], got {end_factor}$"):
        build(HORIZON, end_factor=end_factor)


@pytest.mark.parametrize(
    ("boundaries", "factors", "message"),
    [
        ((2, 4), (0.1,), r"^factors: expected one per boundary \(2\), got \(0\.1,\)$"),
        ((4, 2), (0.1, 0.01), r"^boundaries: expected ascending epochs, got \(4, 2\)$"),
        ((2, 2), (0.1, 0.01), r"^boundaries: expected ascending epochs, got \(2, 2\)$"),
        ((2,), (-0.1,), r"^factors: expected a number >= 0, got -0\.1$"),
        ((2,), (float("nan"),), r"^factors: expected a number >= 0, got nan$"),
    ],
)
def test_multi_step_refuses(boundaries, factors, message):
    with pytest.raises(InputError, match=message):
        schedules.multi_step(HORIZON, boundaries=boundaries, factors=factors)
