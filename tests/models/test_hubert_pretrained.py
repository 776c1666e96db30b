"""What the training of a HuBERT starts from: pretrained weights that are trained too, and adapters."""

import functools

import chex
import jax
import numpy as np
import pytest

from imbal_jax.errors import InputError
from imbal_jax.models import hubert as core
from imbal_jax.models.adapters import write_adapter
from imbal_jax.models.hubert_builder import hubert, pretrained
from imbal_jax.models.hubert_weights import load_hubert
from imbal_jax.models.lora import LoraSpec
from tests.recordings import write_hubert


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_hubert(tmp_path_factory.mktemp("hubert") / "small"))


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    """A folder with an adapter of the default sizes, and its parameters."""
    model = hubert(3, path=folder)
    shapes = jax.eval_shape(functools.partial(core.initial_params, model), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    home = tmp_path_factory.mktemp("adapter")
    write_adapter(home, params, model.blueprint.lora)
    return str(home), params


def start(*, path="", frozen=True, adapter="", **options):
    model = hubert(3, path=path, frozen=frozen, adapter=adapter, **options)
    return pretrained(model, path=path, frozen=frozen, adapter=adapter, **options)


def test_frozen_weights_are_no_start(folder):
    assert start(path=folder) is None


def test_weights_that_are_trained_start_from_the_folder(folder):
    chex.assert_trees_all_equal(start(path=folder, frozen=False), {"params": load_hubert(folder)[1]})


def test_random_weights_that_are_trained_are_told(caplog):
    assert start(size="tiny", frozen=False) is None
    assert "training starts from random weights of HuBERT" in caplog.text


def test_training_starts_from_an_adapter(folder, adapter):
    home, params = adapter
    chex.assert_trees_all_equal(start(path=folder, adapter=home), {"params": params})


def test_an_adapter_on_weights_that_are_trained(folder, adapter):
    home, params = adapter
    both = start(path=folder, frozen=False, adapter=home)["params"]
    query = both["hubert"]["encoder"]["layers_1"]["attention"]["q_proj"]
    ours = params["hubert"]["encoder"]["layers_1"]["attention"]["q_proj"]
    theirs = load_hubert(folder)[1]["hubert"]["encoder"]["layers_1"]["attention"]["q_proj"]
    chex.assert_trees_all_equal(query, {**ours, **theirs})
    chex.assert_trees_all_equal(both["projector"], params["projector"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": 4}, r"model\.adapter: expected LoraSpec\(rank=4, .* got LoraSpec\(rank=8"),
        ({"lora_alpha": 8.0}, r"model\.adapter: expected LoraSpec\(rank=8, alpha=8\.0"),
        ({"lora_rank": 0}, r"model\.adapter: expected none, for lora_rank is 0"),
        ({"lora_layers": (1,)}, r"model\.adapter: expected LoraSpec\(.*layers=\(1,\)"),
        ({"projection": 7}, r"model\.adapter: expected a projector of .*\(8, 7\).* got .*\(8, 256\)"),
        ({"head_bias": True}, r"model\.adapter: expected a projector of .*bias"),
        ({"adapter": "/nowhere"}, r"/nowhere/adapter_config\.json: expected peft's"),
    ],
)
def test_adapters_of_another_kind_are_refused(folder, adapter, options, message):
    with pytest.raises(InputError, match=message):
        start(path=folder, **({"adapter": adapter[0]} | options))


def test_layers_by_option():
    assert hubert(3, size="tiny", lora_layers=(1,)).blueprint.lora == LoraSpec(layers=(1,))
    with pytest.raises(InputError, match=r"layers: expected indices below 2"):
        hubert(3, size="tiny", lora_layers=(2,))
