"""Adapters in peft's files, and the counts of parameters."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imbal_jax.errors import InputError
from imbal_jax.models.adapters import count_as_peft, read_adapter, write_adapter
from imbal_jax.models.hubert import hubert, initial_params, random_frozen
from imbal_jax.models.hubert_layers import HUBERT_TINY
from imbal_jax.models.hubert_weights import count_stored, load_hubert
from imbal_jax.models.lora import TARGETS, LoraSpec

FIXTURE = "fixtures/hubert_tiny"


def random_params(spec, **options):
    model = hubert(6, config=HUBERT_TINY, lora=spec, projection=5, **options)
    shapes = jax.eval_shape(functools.partial(initial_params, model), jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def assert_trees_equal(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def written(tmp_path):
    """A folder with an adapter."""
    write_adapter(tmp_path / "adapter", random_params(LoraSpec()), LoraSpec())
    return tmp_path / "adapter"


def change_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change(folder, edit):
    tensors = edit(load_file(folder / "adapter_model.safetensors"))
    save_file(tensors, folder / "adapter_model.safetensors")


def test_counts_of_hubert_base():
    model = hubert(6)
    shapes = [jax.eval_shape(functools.partial(f, model), jax.random.key(0)) for f in (initial_params, random_frozen)]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes[1])) == 94_371_712 - 128
    assert count_stored(shapes[1]) == 94_371_712
    counts = count_as_peft(shapes[0], count_stored(shapes[1]))
    assert counts == (493_056, 94_864_768, 95_062_912)
    biased = jax.eval_shape(functools.partial(initial_params, hubert(6, head_bias=True)), jax.random.key(0))
    assert count_as_peft(biased, 94_371_712)[::2] == (493_318, 95_063_436)


def test_an_adapter_of_peft(shared_path, tmp_path):
    config, _ = load_hubert(shared_path(FIXTURE))
    params, spec = read_adapter(shared_path(FIXTURE) / "adapter", config)
    assert spec == LoraSpec(rank=4, alpha=8) and spec.scale == 2
    model = hubert(6, config=config, lora=spec, projection=8)
    expected = jax.eval_shape(functools.partial(initial_params, model), jax.random.key(0))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), expected
    )
    write_adapter(tmp_path, params, spec)
    stored = load_file(shared_path(FIXTURE) / "adapter" / "adapter_model.safetensors")
    assert_trees_equal(load_file(tmp_path / "adapter_model.safetensors"), stored)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    published = json.loads((shared_path(FIXTURE) / "adapter" / "adapter_config.json").read_text())
    assert content == published | {"layers_to_transform": None, "layers_pattern": None}


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (LoraSpec(rank=3, alpha=2.5, dropout=0.1, targets=TARGETS), {}),
        (LoraSpec(targets=("k_proj", "output_dense"), layers=(1,), rank_stabilised=True), {"head_bias": True}),
    ],
)
def test_round_trip(spec, options, tmp_path):
    params = random_params(spec, **options)
    write_adapter(tmp_path / "adapter", params, spec, base_model="base")
    got, got_spec = read_adapter(tmp_path / "adapter", HUBERT_TINY)
    assert got_spec == spec
    assert_trees_equal(got, params)


def test_writing_again_replaces(written):
    params = jax.tree.map(jnp.zeros_like, random_params(LoraSpec()))
    write_adapter(written, params, LoraSpec())
    assert_trees_equal(read_adapter(written, HUBERT_TINY)[0], params)


def test_not_beside_a_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"folder: expected one without config.json, .*: transformers loads an adapter"
    ):
        write_adapter(tmp_path, random_params(LoraSpec()), LoraSpec())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (LoraSpec(rank=4), {}, r"spec: expected the rank of the weights, \[8\], got 4"),
        (LoraSpec(targets=("q_proj",)), {}, "params: has unexpected base_model.model.hubert.encoder.layers.0"),
        (LoraSpec(layers=(0,)), {}, "params: has unexpected base_model.model.hubert.encoder.layers.1"),
        (LoraSpec(), {"weighted_layer_sum": True}, "params: has unexpected base_model.model.layer_mixture.weights"),
        (LoraSpec(), {"frozen": False}, "params: has unexpected base_model.model.hubert"),
    ],
)
def test_what_is_no_adapter_is_not_written(spec, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write_adapter(tmp_path / "adapter", random_params(LoraSpec(), **options), spec)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora: expected it to be off, which is all that is implemented, got True"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern: expected it to be off"),
        ({"some_new_option": 3}, "some_new_option: expected it to be off"),
        ({"peft_type": "ADALORA"}, "peft_type: expected 'LORA', got 'ADALORA'"),
        ({"bias": "all"}, "bias: expected 'none', got 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: expected True, got 'pissa'"),
        ({"layers_pattern": "blocks"}, "layers_pattern: expected None, got 'blocks'"),
        ({"target_modules": "all-linear"}, "target_modules: expected a list of names, got 'all-linear'"),
        ({"target_modules": ["q_proj", "fc1"]}, "targets: no 'fc1'"),
        ({"r": 0}, "rank: expected a whole number >= 1, got 0"),
        ({"layers_to_transform": [0, 5]}, r"expected layers below 2, got \(0, 5\)"),
    ],
)
def test_other_adapters_are_refused(written, changes, message):
    change_config(written, **changes)
    with pytest.raises(InputError, match=rf"adapter_config\.json: {message}"):
        read_adapter(written, HUBERT_TINY)


def test_what_peft_writes_besides_is_accepted(written):
    change_config(
        written,
        peft_version="0.21.2",
        task_type="SEQ_CLS",
        megatron_core="megatron.core",
        qalora_group_size=16,
        alpha_pattern={},
        loftq_config={},
        corda_config=None,
        lora_bias=False,
        auto_mapping=None,
        init_lora_weights=True,
        layers_to_transform=None,
        layers_pattern=[],
        revision=None,
        modules_to_save=["projector", "classifier", "classifier", "score"],
        target_modules=["v_proj", "q_proj"],
    )
    assert read_adapter(written, HUBERT_TINY)[1] == LoraSpec()
    change_config(written, layers_to_transform=1)
    head_and_second = lambda tensors: {name: t for name, t in tensors.items() if "layers.0" not in name}  # noqa: E731
    change(written, head_and_second)
    assert read_adapter(written, HUBERT_TINY)[1] == LoraSpec(layers=(1,))


NAME = "base_model.model.hubert.encoder.layers.1.attention.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: {name: each for name, each in t.items() if name != NAME}, f"lacks {NAME}"),
        (lambda t: {name: each for name, each in t.items() if "projector" not in name}, "lacks .*projector.weight"),
        (lambda t: t | {"base_model.model.score.weight": t[NAME]}, "has unexpected base_model.model.score.weight"),
        (
            lambda t: t | {NAME: t[NAME].T.copy()},
            r"expected other shapes of .*lora_B.weight \(8, 32\) instead of \(32, 8\)",
        ),
        (lambda t: t | {NAME: t[NAME] * np.inf}, f"expected finite numbers, got others in {NAME}"),
        (
            lambda t: t | {"base_model.model.classifier.weight": np.zeros((6, 4), np.float32)},
            r"expected other shapes of base_model.model.classifier.weight \(6, 4\) instead of \(6, 5\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(written, edit, message):
    change(written, edit)
    with pytest.raises(InputError, match=rf"adapter_model\.safetensors: {message}"):
        read_adapter(written, HUBERT_TINY)


def test_missing_and_damaged_files_are_refused(written):
    (written / "adapter_model.safetensors").write_bytes(b"{}")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: expected a complete safetensors file"):
        read_adapter(written, HUBERT_TINY)
    for content in ("{", "[]", "{}"):
        (written / "adapter_config.json").write_text(content)
        with pytest.raises(InputError, match=r"adapter_config\.json: expected peft's adapter_config.json"):
            read_adapter(written, HUBERT_TINY)
    shutil.rmtree(written)
    with pytest.raises(InputError, match=r"adapter_config\.json: expected peft's adapter_config.json: .*No such file"):
        read_adapter(written, HUBERT_TINY)
