"""HuBERT's files: what is read and written, and what is refused."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imbal_jax.errors import InputError
from imbal_jax.models.hubert import hubert, random_frozen
from imbal_jax.models.hubert_layers import HUBERT_BASE, HubertConfig
from imbal_jax.models.hubert_weights import count_stored, export_hubert, load_hubert, read_hubert_config

FIXTURE = "fixtures/hubert_tiny"
SMALL = HubertConfig(
    conv_dim=(4, 6),
    conv_kernel=(4, 3),
    conv_stride=(2, 2),
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=10,
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
)
LARGE = dataclasses.replace(
    SMALL, feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True, mask_time_prob=0.0
)


def random_weights(config):
    model = hubert(2, config=config, lora=None)
    shapes = jax.eval_shape(functools.partial(random_frozen, model), jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def assert_trees_close(got, expected, rtol):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rtol)


@pytest.fixture
def exported(tmp_path):
    """A folder with a small HuBERT; the test may change its tensors."""
    folder = tmp_path / "model"
    export_hubert(SMALL, random_weights(SMALL), folder)
    return folder


def change(folder, edit):
    """Writes the file anew after an edit of its dictionary of tensors."""
    tensors = load_file(folder / "model.safetensors")
    tensors = edit(tensors) or tensors
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_published_layout(shared_path, tmp_path):
    config, frozen = load_hubert(shared_path(FIXTURE))
    stored = load_file(shared_path(FIXTURE) / "model.safetensors")
    assert config.conv_dim == (16, 20, 18) and config.hidden_size == 24 and config.num_conv_pos_embeddings == 10
    assert len(jax.tree.leaves(frozen)) == len(stored) - 1 == 46
    assert count_stored(frozen) == sum(tensor.size for tensor in stored.values())
    model = frozen["hubert"]
    np.testing.assert_array_equal(model["masked_spec_embed"], stored["masked_spec_embed"])
    query = model["encoder"]["layers_1"]["attention"]["q_proj"]
    np.testing.assert_array_equal(query["kernel"], stored["encoder.layers.1.attention.q_proj.weight"].T)
    conv = model["feature_extractor"]["conv_layers_2"]["conv"]["kernel"]
    np.testing.assert_array_equal(conv, stored["feature_extractor.conv_layers.2.conv.weight"].transpose(2, 1, 0))
    g, v = (stored[f"encoder.pos_conv_embed.conv.parametrizations.weight.original{i}"] for i in (0, 1))
    kernel = model["encoder"]["pos_conv_embed"]["conv"]["kernel"]
    for place in range(10):
        expected = v[:, :, place] * g[0, 0, place] / np.linalg.norm(v[:, :, place])
        np.testing.assert_allclose(kernel[place], expected.T, rtol=1e-6)
    # Names before PyTorch's parametrisations.
    shutil.copy(shared_path(FIXTURE) / "config.json", tmp_path)
    shutil.copy(shared_path(f"{FIXTURE}/legacy") / "model.safetensors", tmp_path)
    assert_trees_close(load_hubert(tmp_path)[1], frozen, rtol=0)


@pytest.mark.parametrize("config", [SMALL, LARGE], ids=["base", "large"])
def test_round_trip(config, tmp_path):
    frozen = random_weights(config)
    export_hubert(config, frozen, tmp_path / "model")
    got_config, got = load_hubert(tmp_path / "model")
    assert got_config == config
    assert_trees_close(got, frozen, rtol=3e-7)


def test_prefixes_heads_and_other_precisions(exported):
    expected = load_hubert(exported)[1]
    heads = {f"{name}.weight": np.zeros((2, 8), np.float32) for name in ("lm_head", "projector", "classifier")}
    heads |= {"layer_weights": np.zeros(3, np.float32), "classifier.bias": np.zeros(2, np.float32)}
    change(exported, lambda tensors: {f"hubert.{name}": tensor for name, tensor in tensors.items()} | heads)
    assert_trees_close(load_hubert(exported)[1], expected, rtol=0)
    for dtype, rtol in ((np.float16, 2e-2), (jnp.bfloat16, 5e-2)):
        change(exported, lambda tensors, dtype=dtype: {name: t.astype(dtype) for name, t in tensors.items()})
        got = load_hubert(exported)[1]
        assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {np.dtype(np.float32)}
        assert_trees_close(got, expected, rtol=rtol)


def test_a_mask_vector_that_is_never_used_is_ignored(exported):
    change_config(exported, mask_time_prob=0.0)
    assert "masked_spec_embed" not in load_hubert(exported)[1]["hubert"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: {name: each for name, each in t.items() if name != "encoder.layer_norm.bias"},
            "lacks encoder.layer_norm.bias$",
        ),
        (lambda t: t | {"encoder.more": t["encoder.layer_norm.bias"]}, "has unexpected encoder.more$"),
        (
            lambda t: {name.replace("layers.1", "layers.2"): tensor for name, tensor in t.items()},
            r"lacks encoder.layers.1.* and 7 more; has unexpected encoder.layers.2.* and 7 more$",
        ),
        (
            lambda t: t | {"masked_spec_embed": np.zeros(9, np.float32)},
            r"expected other shapes of masked_spec_embed \(9,\) instead of \(8,\)",
        ),
        (
            lambda t: t | {"encoder.layer_norm.bias": np.full(8, np.nan, np.float32)},
            "expected finite numbers, got others in encoder.layer_norm.bias",
        ),
        (
            lambda t: t | {"hubert.masked_spec_embed": t["masked_spec_embed"]},
            "expected every tensor once, got masked_spec_embed twice",
        ),
        (
            lambda t: t | {"masked_spec_embed": np.zeros(8, np.int8)},
            "masked_spec_embed: expected one of float16, bfloat16, float32, float64, got int8",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(exported, edit, message):
    change(exported, edit)
    with pytest.raises(InputError, match=rf"model\.safetensors: {message}"):
        load_hubert(exported)


def test_damaged_files_are_refused(exported):
    file = exported / "model.safetensors"
    complete = file.read_bytes()
    for content in (complete[:-5], complete[:100], b"", b"\xff" * 64):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors: expected a complete safetensors file: \S") as error:
            load_hubert(exported)
        assert "\n" not in str(error.value)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 377\n")
    with pytest.raises(InputError, match="got a Git LFS pointer; fetch the file: git lfs pull"):
        load_hubert(exported)


def test_other_formats_are_refused_with_the_way_out(exported, tmp_path):
    file = exported / "model.safetensors"
    file.rename(exported / "pytorch_model.bin")
    command = rf"python -m experiments.convert_checkpoint {exported}/pytorch_model.bin {file}$"
    for path in (exported, exported / "pytorch_model.bin"):
        with pytest.raises(
            InputError, match=rf"expected model.safetensors, got pytorch_model.bin; convert .*{command}"
        ):
            load_hubert(path)
    (exported / "pytorch_model.bin").rename(exported / "model.safetensors.index.json")
    with pytest.raises(InputError, match=r"expected model\.safetensors in one piece, got several in"):
        load_hubert(exported)
    with pytest.raises(InputError, match=r"path: expected model\.safetensors, found none in"):
        load_hubert(tmp_path)
    with pytest.raises(InputError, match=r"path: expected a folder with config.json and model.safetensors, got .*none"):
        load_hubert(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "wav2vec2"}, "model_type: expected 'hubert', got 'wav2vec2'"),
        ({"hidden_act": "relu"}, "hidden_act: expected 'gelu', got 'relu'"),
        ({"feat_extract_activation": "gelu_new"}, "feat_extract_activation: expected 'gelu', got 'gelu_new'"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm: expected False, got True"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim: expected None, got 16"),
        ({"num_feat_extract_layers": 3}, "num_feat_extract_layers: expected 2 as conv_dim has, got 3"),
        ({"hidden_size": "8"}, "hidden_size: expected a whole number >= 1, got '8'"),
    ],
)
def test_other_models_are_refused(exported, changes, message):
    change_config(exported, **changes)
    with pytest.raises(InputError, match=rf"config\.json: {message}"):
        read_hubert_config(exported / "config.json")


def test_configurations_that_are_none_are_refused(exported, tmp_path):
    path = exported / "config.json"
    for content in ("{", "[]", "{}", "\udcff"):
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(InputError, match=r"config\.json: expected Hugging Face's config.json"):
            read_hubert_config(path)
    with pytest.raises(InputError, match=r"config\.json: expected Hugging Face's config.json: .*No such file"):
        read_hubert_config(tmp_path / "config.json")


def test_what_a_configuration_leaves_out_has_the_published_defaults(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "hubert", "feat_proj_dropout": 0.1, "vocab_size": 3}')
    config = read_hubert_config(tmp_path / "config.json")
    assert config == read_hubert_config(tmp_path)
    assert config == dataclasses.replace(HUBERT_BASE, feat_proj_dropout=0.1)


def test_what_cannot_be_exported_is_refused(exported, tmp_path):
    frozen = random_weights(SMALL)
    with pytest.raises(InputError, match=r"folder: expected one without config.json, got"):
        export_hubert(SMALL, frozen, exported)
    with pytest.raises(InputError, match="frozen: lacks hubert/encoder/layers_2/attention/k_proj/bias"):
        export_hubert(dataclasses.replace(SMALL, num_hidden_layers=3), frozen, tmp_path / "new")
    with pytest.raises(InputError, match="frozen: has unexpected hubert/encoder/layers_1/attention/k_proj/bias"):
        export_hubert(dataclasses.replace(SMALL, num_hidden_layers=1), frozen, tmp_path / "new")
    with pytest.raises(InputError, match="frozen: expected other shapes of"):
        export_hubert(dataclasses.replace(SMALL, intermediate_size=11), frozen, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads: expected a divisor of 768, got 5"),
        ({"conv_stride": (5, 2)}, "conv_stride: expected a tuple with one entry per convolution"),
        ({"conv_kernel": (10, 3, 3, 3, 3, 2, 0)}, "conv_kernel: expected a whole number >= 1, got 0"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm: expected 'group' or 'layer', got 'batch'"),
        ({"hidden_dropout": 1.0}, r"hidden_dropout: expected a number in \[0, 1\), got 1.0"),
        ({"layerdrop": "0.1"}, r"layerdrop: expected a number in \[0, 1\), got '0.1'"),
        ({"conv_bias": 1}, "conv_bias: expected true or false, got 1"),
        ({"mask_time_min_masks": -1}, "mask_time_min_masks: expected a whole number >= 0, got -1"),
    ],
)
def test_impossible_architectures_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(HUBERT_BASE, **changes)
