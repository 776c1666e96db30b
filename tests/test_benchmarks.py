"""The benchmark: what it prints, and that its contenders train the same model on the same batches."""

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import epoch_throughput
from benchmarks.loops import OurLoop, PlainLoop
from imbal_jax.builders import NAMED
from imbal_jax.errors import InputError
from imbal_jax.training.programs import compile_programs

BATCH = 100  # 4 steps an epoch on the digits
HAS_TORCH = importlib.util.find_spec("torch") is not None
# Compilation dominates these tests; the values are the same without XLA's optimisations.
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def first_epoch(tmp_path_factory):
    """The small CNN's experiment and config, initial variables, and batches, losses and state of our first epoch."""
    folder = tmp_path_factory.mktemp("benchmark")
    experiment, config, _ = epoch_throughput.build("cnn", BATCH, steps=4, repeats=1, folder=folder)
    ours = OurLoop(experiment, compile_programs(experiment, stacked=False), (0,))
    variables = jax.device_get({"params": ours.state.params, **ours.state.model_state})
    batches = np.asarray(ours.programs.draw(ours.keys.order, 0))
    losses = ours.epoch()
    assert losses.shape == (4, 2, 1)
    return experiment, config, variables, batches, losses[:, 0, 0], ours.state


def test_plain_jax_loop_takes_our_steps(first_epoch):
    experiment, _, variables, batches, losses, state = first_epoch
    plain = PlainLoop(experiment, variables)
    np.testing.assert_allclose(plain.take(batches), losses, rtol=1e-4)
    assert losses[-1] < 0.9 * losses[0]
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(plain.state.params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert len(plain.epoch()) == 4


def test_torch_loop_takes_our_steps(first_epoch):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_models import MEMORY_FORMATS, TorchLoop, TorchSettings, state_dict_of

    experiment, config, variables, batches, losses, state = first_epoch
    expected = state_dict_of({"params": state.params, **state.model_state})
    for memory_format in MEMORY_FORMATS:
        loop = TorchLoop(experiment, config.step_rule, variables, TorchSettings(memory_format, threads=1))
        np.testing.assert_allclose(loop.take(torch.tensor(batches)), losses, rtol=1e-4)
        reached = loop.model.state_dict()
        for name, values in expected.items():
            np.testing.assert_allclose(reached[name].numpy(), values.numpy(), atol=1e-4, err_msg=name)
        assert len(loop.epoch()) == 4


@pytest.mark.parametrize(
    ("name", "side", "channels", "options"),
    [
        ("mlp", 4, 3, {}),
        ("resnet32", 8, 3, {"width": 4}),
        pytest.param("vgg11_bn", 32, 3, {}, marks=pytest.mark.slow),
    ],
)
def test_torch_models_are_ours(name, side, channels, options):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_models import load_variables, torch_model

    model = NAMED["model"][name](10, **options)
    images = np.random.default_rng(0).normal(size=(2, side, side, channels)).astype(np.float32)
    apply = {"train": False}
    variables = jax.jit(functools.partial(model.init, **apply), compiler_options=QUICK)(jax.random.key(0), images)
    ours, _ = jax.jit(functools.partial(model.apply, **apply), compiler_options=QUICK)(variables, jnp.asarray(images))
    reference = torch_model(model, images.shape[1:], 10)
    load_variables(reference, variables)
    with torch.no_grad():
        theirs = reference.eval()(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_loops_take_turns_after_one_epoch_each(monkeypatch):
    clock = iter([7.0, 1.5, *(1.0, 4.0, 2.0, 6.0, 3.0, 5.0)])  # first epochs, then turns of two epochs
    taken = []

    class Named:
        def __init__(self, name):
            self.name = name

        def epoch(self):
            taken.append(self.name)

    def seconds(action, times):
        for _ in range(times):
            action()
        return next(clock)

    monkeypatch.setattr(epoch_throughput, "_seconds", seconds)
    turns, compiling = epoch_throughput.time_in_turns({"a": Named("a"), "b": Named("b")}, epochs=2, repeats=3)
    assert "".join(taken) == "ab" + 3 * "aabb"
    assert turns["a"].tolist() == [1, 2, 3]
    assert turns["b"].tolist() == [4, 6, 5]
    assert compiling == {"a": 7 - 2 / 2, "b": 0}


def check_spread(values):
    assert 0 < values["min"] <= values["median"] <= values["max"]


@pytest.mark.slow
def test_prints_one_json_object_per_comparison(capsys):
    arguments = ["--models=mlp", f"--batch={BATCH}", "--steps=6", "--repeats=2", "--seeds=2"]
    assert epoch_throughput.run(arguments) == 0
    loops, seeds = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    names = ["ours", "plain_jax"] + ["torch"] * HAS_TORCH
    assert list(loops["images_per_second"]) == list(loops["compile_seconds"]) == names
    assert list(loops["ratios"]) == [f"ours_over_{name}" for name in names[1:]]
    assert (loops["torch"] is not None) == HAS_TORCH
    assert list(seeds["images_per_second"]) == ["together", "one_after_another"]
    assert (loops["comparison"], seeds["comparison"], seeds["seeds"]) == ("loops", "seeds", 2)
    for result in (loops, seeds):
        assert (result["model"], result["data"], result["batch"]) == ("mlp", "digits", BATCH)
        assert (result["steps"], result["epochs"], result["repeats"]) == (8, 2, 2)
        for values in (*result["images_per_second"].values(), *result["ratios"].values()):
            check_spread(values)
        assert result["machine"]["cpu_count"] >= 1
        assert result["machine"]["devices"]
        assert ("torch" in result["machine"]["packages"]) == HAS_TORCH
    # A ratio of throughputs, ours on top: it lies between the extremes that the two allow.
    ours, plain = loops["images_per_second"]["ours"], loops["images_per_second"]["plain_jax"]
    ratio = loops["ratios"]["ours_over_plain_jax"]
    assert ratio["max"] <= ours["max"] / plain["min"] * (1 + 1e-9)
    assert ratio["min"] >= ours["min"] / plain["max"] * (1 - 1e-9)


def test_large_models_train_on_synthetic_images(tmp_path):
    experiment, _, epochs = epoch_throughput.build("vgg11_bn", 8, steps=3, repeats=4, folder=tmp_path)
    images, labels = experiment.data.train
    assert (images.shape, images.dtype) == ((24, 32, 32, 3), np.uint8)
    assert (experiment.horizon.steps_per_epoch, epochs) == (3, 1)
    assert experiment.horizon.epochs == 1 + 4
    # Images of a class share a pattern under noise.
    first, same, other = images[labels == 0][0], images[labels == 0][1], images[labels == 1][0]
    assert np.abs(first - same.astype(float)).mean() < 0.9 * np.abs(first - other.astype(float)).mean()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--models=cnm", "--models: no 'cnm'; did you mean 'cnn'"),
        ("--repeats=0", "--repeats: expected a number >= 1, got 0"),
        ("--steps=0", "--steps: expected a number >= 1, got 0"),
    ],
)
def test_refuses_what_it_cannot_measure(argument, message):
    with pytest.raises(InputError, match=message):
        epoch_throughput.run([argument])
