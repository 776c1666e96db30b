"""Step rules over five steps, against NumPy float64 and, where it is installed, PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imbal_jax.errors import InputError
from imbal_jax.training import step_rules

STEPS = 5
RATES = np.array([0.1, 0.05, 0.2, 0.02, 0.3])  # of every step, so that no schedule's count can be off by one
_RNG = np.random.default_rng(0)
PARAMS = {"kernel": _RNG.normal(size=(3, 4)), "bias": _RNG.normal(size=4)}
DIRECTIONS = [{name: _RNG.normal(size=value.shape) for name, value in PARAMS.items()} for _ in range(STEPS)]

SGD = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "decay": {"weight_decay": 0.1},
    "momentum and decay": {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov and decay": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
}
ADAMW = {
    "defaults": {},
    "no decay": {"weight_decay": 0.0},
    "thesis": {"b2": 0.99, "weight_decay": 0.1},
    "large eps": {"b1": 0.5, "eps": 0.3},
}


def schedule(count):
    """A learning rate that differs at every step."""
    return jnp.asarray(RATES, jnp.float32)[count]


def run(rule):
    """The parameters after each step of a rule."""
    params = jax.tree.map(jnp.float32, PARAMS)
    state = rule.init(params)
    path = []

    @jax.jit
    def step(params, state, direction):
        updates, state = rule.update(direction, state, params)
        return optax.apply_updates(params, updates), state

    for direction in DIRECTIONS:
        params, state = step(params, state, jax.tree.map(jnp.float32, direction))
        path.append(params)
    return path


def sgd_reference(
    *, momentum=0.0, nesterov=False, weight_decay=0.0, decoupled=False, decay_vectors=True, clip_norm=0.0
):
    """PyTorch's documented algorithm, leaf by leaf."""
    params = {name: value.copy() for name, value in PARAMS.items()}
    buffer = {name: np.zeros_like(value) for name, value in PARAMS.items()}
    path = []
    for rate, direction in zip(RATES, DIRECTIONS, strict=True):
        norm = np.sqrt(sum(np.sum(value**2) for value in direction.values()))
        for name, value in direction.items():
            step = value * (min(1.0, clip_norm / norm) if clip_norm else 1.0)
            decay = weight_decay * params[name] * (decay_vectors or params[name].ndim > 1)
            step = step if decoupled else step + decay
            buffer[name] = momentum * buffer[name] + step
            step = step + momentum * buffer[name] if nesterov else buffer[name]
            params[name] = params[name] - rate * (step + decay if decoupled else step)
        path.append(dict(params))
    return path


def adamw_reference(
    *, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, decay_vectors=True, clip_norm=0.0, bias_correction=True
):
    """Loshchilov and Hutter 2019, Algorithm 2, leaf by leaf; the decay is multiplied by the learning rate.

    Without bias correction it is Eq. 9 of ABSGD's paper, with eps for G_0.
    """
    params = {name: value.copy() for name, value in PARAMS.items()}
    first = {name: np.zeros_like(value) for name, value in PARAMS.items()}
    second = {name: np.zeros_like(value) for name, value in PARAMS.items()}
    path = []
    for t, (rate, direction) in enumerate(zip(RATES, DIRECTIONS, strict=True), start=1):
        norm = np.sqrt(sum(np.sum(value**2) for value in direction.values()))
        for name, value in direction.items():
            value = value * (min(1.0, clip_norm / norm) if clip_norm else 1.0)
            first[name] = b1 * first[name] + (1 - b1) * value
            second[name] = b2 * second[name] + (1 - b2) * value**2
            gathered = (1 - b1**t, 1 - b2**t) if bias_correction else (1, 1)
            scaled = first[name] / gathered[0] / (np.sqrt(second[name] / gathered[1]) + eps)
            decay = weight_decay * params[name] * (decay_vectors or params[name].ndim > 1)
            params[name] = params[name] - rate * (scaled + decay)
        path.append(dict(params))
    return path


def assert_same_path(path, expected):
    """Every step's parameters agree, and the path leads somewhere."""
    assert len(path) == len(expected) == STEPS
    for params, wanted in zip(path, expected, strict=True):
        for name, value in wanted.items():
            np.testing.assert_allclose(params[name], value, rtol=2e-5, atol=2e-6)
    assert all(np.abs(expected[-1][name] - PARAMS[name]).max() > 0.1 for name in PARAMS)


DECOUPLED = {
    "decoupled": {"momentum": 0.9, "weight_decay": 0.1, "decoupled": True},
    "decoupled nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "decoupled": True},
    "decoupled without momentum": {"weight_decay": 0.1, "decoupled": True},
}
MATRICES_ONLY = {
    "matrices only": {"momentum": 0.9, "weight_decay": 0.1, "decay_vectors": False},
    "decoupled, matrices only": {"weight_decay": 0.1, "decay_vectors": False, "decoupled": True},
}
CLIPPED = {
    "clipped": {"clip_norm": 2.0},
    "clipped before decay": {"clip_norm": 0.5, "weight_decay": 0.5, "momentum": 0.9},
    "clip never reached": {"clip_norm": 1e3},
}


@pytest.mark.parametrize("options", (SGD | DECOUPLED | MATRICES_ONLY | CLIPPED).values(), ids=str)
def test_sgd_equals_numpy(options):
    assert_same_path(run(step_rules.sgd(schedule, **options)), sgd_reference(**options))


@pytest.mark.parametrize(
    "options",
    # Adam undoes the scale of its direction, so only a large eps shows whether it was clipped.
    [
        *ADAMW.values(),
        {"weight_decay": 0.1, "decay_vectors": False},
        {"clip_norm": 1.0, "eps": 0.1},
        {"bias_correction": False},
        {"bias_correction": False, "b1": 0.5, "b2": 0.9, "eps": 0.3, "weight_decay": 0.1, "clip_norm": 1.0},
    ],
    ids=str,
)
def test_adamw_equals_numpy(options):
    assert_same_path(run(step_rules.adamw(schedule, **options)), adamw_reference(**options))


def run_torch(make_optimiser):
    """The parameters after each step of a PyTorch optimiser in float64."""
    torch = pytest.importorskip("torch")
    params = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in PARAMS.items()}
    optimiser = make_optimiser(torch.optim, params.values())
    path = []
    for rate, direction in zip(RATES, DIRECTIONS, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = rate
        for name, value in direction.items():
            params[name].grad = torch.tensor(value)
        optimiser.step()
        path.append({name: value.detach().numpy().copy() for name, value in params.items()})
    return path


@pytest.mark.parametrize("options", SGD.values(), ids=SGD.keys())
def test_sgd_equals_pytorch(options):
    expected = run_torch(lambda optim, params: optim.SGD(params, lr=1.0, **options))
    assert_same_path(run(step_rules.sgd(schedule, **options)), expected)


@pytest.mark.parametrize("options", ADAMW.values(), ids=ADAMW.keys())
def test_adamw_equals_pytorch(options):
    named = {name: value for name, value in options.items() if name not in ("b1", "b2")}
    betas = (options.get("b1", 0.9), options.get("b2", 0.999))
    expected = run_torch(lambda optim, params: optim.AdamW(params, lr=1.0, betas=betas, **named))
    assert_same_path(run(step_rules.adamw(schedule, **options)), expected)


def test_adamw_defaults_are_those_of_pytorch():
    expected = run_torch(lambda optim, params: optim.AdamW(params))
    assert_same_path(run(step_rules.adamw(schedule)), expected)


def test_coupled_and_decoupled_decay_differ_under_momentum():
    options = {"momentum": 0.9, "weight_decay": 0.1}
    coupled, decoupled = (sgd_reference(**options, decoupled=value)[-1]["kernel"] for value in (False, True))
    assert np.abs(coupled - decoupled).max() > 1e-2  # so the two cases above test two things


def test_bias_correction_matters_most_at_the_first_step():
    corrected, plain = (
        adamw_reference(weight_decay=0.0, bias_correction=value)[0]["kernel"] for value in (True, False)
    )
    # 0.1 g / sqrt(0.001 g^2) in place of g / |g|
    np.testing.assert_allclose((plain - PARAMS["kernel"]) / (corrected - PARAMS["kernel"]), 10**0.5, rtol=1e-5)


def test_the_clipped_norm_is_global():
    direction = {"kernel": jnp.full((3, 4), 3.0), "bias": jnp.full(4, 4.0)}
    rule = step_rules.sgd(lambda count: 1.0, clip_norm=2.0)
    updates, _ = jax.jit(rule.update)(direction, rule.init(direction), direction)
    np.testing.assert_allclose(optax.global_norm(updates), 2.0, rtol=1e-6)
    scale = 2.0 / np.sqrt(12 * 9 + 4 * 16)
    np.testing.assert_allclose(updates["kernel"], -3.0 * scale * np.ones((3, 4)), rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -4.0 * scale * np.ones(4), rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (step_rules.sgd, {"momentum": 1.0}, r"^momentum: expected a number in \[0, 1\), got 1\.0$"),
        (step_rules.sgd, {"momentum": -0.1}, r"^momentum: expected a number in \[0, 1\), got -0\.1$"),
        (step_rules.sgd, {"nesterov": True}, r"^nesterov: needs momentum > 0, got momentum 0$"),
        (step_rules.sgd, {"weight_decay": -1.0}, r"^weight_decay: expected a number >= 0, got -1\.0$"),
        (step_rules.sgd, {"clip_norm": -1.0}, r"^clip_norm: expected a number >= 0, got -1\.0$"),
        (step_rules.sgd, {"clip_norm": float("nan")}, r"^clip_norm: expected a number >= 0, got nan$"),
        (step_rules.adamw, {"b1": 1.0}, r"^b1: expected a number in \[0, 1\), got 1\.0$"),
        (step_rules.adamw, {"b2": -0.1}, r"^b2: expected a number in \[0, 1\), got -0\.1$"),
        (step_rules.adamw, {"eps": 0.0}, r"^eps: expected a number > 0, got 0\.0$"),
        (step_rules.adamw, {"weight_decay": float("nan")}, r"^weight_decay: expected a number >= 0, got nan$"),
        (step_rules.adamw, {"clip_norm": -1.0}, r"^clip_norm: expected a number >= 0, got -1\.0$"),
    ],
)
def test_refuses(build, options, message):
    with pytest.raises(InputError, match=message):
        build(schedule, **options)


def test_frozen_layers_are_left_as_they_are():
    params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.full((2,), 3.0), "bias": jnp.ones(2)}}
    gradients = jax.tree.map(lambda leaf: 0.5 * jnp.ones_like(leaf), params)
    options = {"momentum": 0.9, "weight_decay": 0.1, "clip_norm": 1.0}
    rule = step_rules.leaving(step_rules.sgd(lambda count: 0.1, **options), frozenset({"a"}))
    state, moved = rule.init(params), params
    for _ in range(3):
        updates, state = rule.update(gradients, state, moved)
        moved = optax.apply_updates(moved, updates)
    np.testing.assert_array_equal(moved["a"]["kernel"], params["a"]["kernel"])
    # As though the frozen layers were not there, in the clipped norm as well.
    alone = step_rules.sgd(lambda count: 0.1, **options)
    state, expected = alone.init({"b": params["b"]}), {"b": params["b"]}
    for _ in range(3):
        updates, state = alone.update({"b": gradients["b"]}, state, expected)
        expected = optax.apply_updates(expected, updates)
    jax.tree.map(np.testing.assert_array_equal, moved["b"], expected["b"])
    assert (moved["b"]["kernel"] != params["b"]["kernel"]).all()
    assert step_rules.leaving(alone, frozenset()) is alone
