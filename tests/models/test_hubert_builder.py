"""HuBERT as a choice of a config: what its options build and refuse, and what its cached convolutions are."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.errors import InputError
from imbal_jax.losses import cross_entropy_losses
from imbal_jax.models import hubert as core
from imbal_jax.models.hubert_builder import frozen_encoder, frozen_weights, hubert
from imbal_jax.models.hubert_config import HUBERT_BASE, HUBERT_TINY, deterministic, frame_lengths, hf_train
from imbal_jax.models.hubert_inputs import EncoderInput, Features
from imbal_jax.models.hubert_weights import load_hubert
from imbal_jax.types import Waveforms
from tests.recordings import write_hubert

# Compilation dominates these tests; the values are the same without XLA's optimisations.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(hubert).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hubert(tmp_path_factory.mktemp("hubert") / "small")


def built(**options):
    """The model, its frozen weights and its encoder, as a config with these options has them."""
    options = DEFAULTS | options
    model = hubert(3, **options)
    weights = frozen_weights(model, **options)
    return model, weights, frozen_encoder(model, weights, **options)


def clips(lengths=(1_600, 3_000), pad_to=3_200):
    samples = np.random.default_rng(1).normal(size=(len(lengths), pad_to)).astype(np.float32)
    samples *= np.arange(pad_to) < np.array(lengths)[:, None]
    return Waveforms(samples, np.array(lengths, np.int32))


def test_the_default_is_the_thesis_s_setting():
    model = hubert(6)
    blueprint = model.blueprint
    assert blueprint.config == deterministic(HUBERT_BASE)
    assert (blueprint.lora.rank, blueprint.lora.alpha, blueprint.lora.targets) == (8, 16.0, ("q_proj", "v_proj"))
    assert (model.projection, model.head_bias, model.weighted_layer_sum) == (256, False, False)
    assert (blueprint.padding, blueprint.frozen, blueprint.dtype) == ("exact", True, None)


def test_options_reach_the_model():
    model = hubert(
        3,
        size="tiny",
        noise="hf_train",
        lora_rank=2,
        lora_alpha=4.0,
        lora_dropout=0.1,
        lora_targets=("k_proj",),
        projection=5,
        head_bias=True,
        weighted_layer_sum=True,
        padding="hf_mask",
        frozen=False,
        dtype="bfloat16",
    )
    spec = model.blueprint.lora
    assert (spec.rank, spec.alpha, spec.dropout, spec.targets) == (2, 4.0, 0.1, ("k_proj",))
    assert model.blueprint.config == hf_train(HUBERT_TINY)
    assert (model.num_classes, model.projection, model.head_bias, model.weighted_layer_sum) == (3, 5, True, True)
    assert (model.blueprint.padding, model.blueprint.frozen, model.blueprint.dtype) == ("hf_mask", False, jnp.bfloat16)
    assert hubert(3, size="tiny", lora_rank=0).blueprint.lora is None


def test_the_noise_of_the_config_json(tmp_path):
    folder = write_hubert(tmp_path / "noisy", hidden_dropout=0.25, layerdrop=0.5)
    assert hubert(3, path=str(folder), noise="config").blueprint.config.hidden_dropout == 0.25
    assert hubert(3, path=str(folder), noise="hf_train").blueprint.config.layerdrop == 0.1
    assert hubert(3, path=str(folder)).blueprint.config.layerdrop == 0.0


def test_frozen_weights_are_those_of_the_folder(folder):
    model, weights, _ = built(path=str(folder))
    assert model.blueprint.config.conv_dim == (4, 6)
    jax.tree.map(np.testing.assert_array_equal, weights, {"frozen": load_hubert(folder)[1]})


def test_without_a_folder_they_are_random_by_their_own_seed(caplog, monkeypatch):
    monkeypatch.setattr(core, "random_frozen", lambda model, key: key)
    for seed in (0, 3):
        assert built(size="tiny", weights_seed=seed)[1] == {"frozen": jax.random.key(seed)}
    assert "the frozen weights of HuBERT are random" in caplog.text


def test_a_model_that_is_trained_whole_has_no_frozen_weights():
    assert built(size="tiny", frozen=False)[1:] == (None, None)


def test_a_missing_folder_can_be_described_but_not_trained(tmp_path, caplog):
    model = hubert(3, path=str(tmp_path / "absent"))
    assert model.blueprint.config == deterministic(HUBERT_BASE)
    assert "is no folder; the architecture is taken to be that of size 'base'" in caplog.text
    with pytest.raises(InputError, match=r"absent"):
        built(path=str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "huge"}, r"model\.size: no 'huge' .*base, tiny"),
        ({"noise": "hf"}, r"model\.noise: no 'hf'"),
        ({"dtype": "float16"}, r"model\.dtype: no 'float16'"),
        ({"lora_rank": -1}, r"rank: expected a whole number >= 1, got -1"),
        ({"lora_targets": ("query",)}, r"targets: no 'query'"),
        ({"padding": "none"}, r"padding: expected one of exact, hf_mask, hf_nomask, got 'none'"),
        ({"cache": "ram"}, r"model\.cache: no 'ram' .*none, memory, disk"),
        ({"cache_stage": "projection"}, r"model\.cache_stage: no 'projection' .*convolutions, encoder_input"),
        (
            {"cache": "memory", "cache_stage": "encoder_input", "noise": "hf_train"},
            r"model\.cache_stage: 'encoder_input' needs a noise without SpecAugment .*got 'hf_train'",
        ),
        ({"cache_dtype": "bfloat16"}, r"model\.cache_dtype: no 'bfloat16'"),
        ({"cache": "disk"}, r"model\.cache_dir: expected a folder for model\.cache='disk', got ''"),
        ({"cache": "memory", "frozen": False}, r"model\.cache: 'memory' needs model\.frozen=true"),
        (
            {"cache": "memory", "padding": "hf_mask"},
            r"model\.cache: 'memory' needs model\.padding='exact', got 'hf_mask'",
        ),
        ({"cache": "memory", "padding": "hf_nomask"}, r"depend on the length that its batch is padded to"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        hubert(3, **({"size": "tiny"} | options))


def test_without_a_cache_there_is_no_encoder(folder):
    assert built(path=str(folder))[2] is None


def test_the_encoder_is_the_model_s_own_convolutions(folder):
    model, weights, encoder = built(path=str(folder), cache="memory")
    config, inputs = model.blueprint.config, clips()
    frames, lengths = encoder.encode(inputs)
    expected = core.encode(config, weights["frozen"], inputs)
    np.testing.assert_allclose(frames, expected.frames, rtol=1e-5, atol=1e-6)
    assert lengths.tolist() == encoder.count(inputs.lengths).tolist() == expected.lengths.tolist()
    assert encoder.count(3_200) == frame_lengths(config, 3_200) == frames.shape[1]
    assert encoder.channels == frames.shape[2]
    assert encoder.inputs is Features


def test_the_model_gives_the_same_for_frames_as_for_clips(folder):
    model, weights, encoder = built(path=str(folder), cache="memory", noise="hf_train")
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), clips(), train=False)["params"])
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    rngs = {"dropout": jax.random.key(1), "layerdrop": jax.random.key(2)}
    frames, lengths = encoder.encode(clips())
    padded = Features(np.where(np.arange(frames.shape[1])[:, None] < lengths[:, None, None], frames, 0), lengths)

    @quick
    def logits(inputs):
        told = [model.apply({"params": params, **weights}, inputs, train=train, rngs=rngs) for train in (False, True)]
        return [each[0] for each in told]

    of_clips, of_frames = logits(clips()), logits(padded)
    assert not np.allclose(*of_clips, rtol=1e-2)  # the noise is heard
    np.testing.assert_allclose(of_frames, of_clips, rtol=1e-4, atol=1e-5)


def test_parameters_start_alike_for_frames_and_clips(folder):
    model, _, encoder = built(path=str(folder), cache="memory")

    @quick
    def initial(inputs):
        return model.init(jax.random.key(0), inputs, train=False)["params"]

    by_clips, by_frames = initial(clips()), initial(encoder.encode(clips()))
    jax.tree.map(np.testing.assert_array_equal, by_clips, by_frames)


def test_the_identity_tells_weights_and_computations_apart(folder, tmp_path):
    other = write_hubert(tmp_path / "other", conv_bias=True)
    options = [{"path": str(folder)}, {"path": str(other)}, {"path": str(folder), "dtype": "bfloat16"}]
    identities = [built(cache="memory", **each)[2].identity for each in options]
    assert len(set(identities)) == 3
    same = {"path": str(folder), "noise": "hf_train", "lora_rank": 2, "cache_dtype": "float16", "projection": 7}
    assert built(cache="memory", **same)[2].identity == identities[0]


def test_one_weight_of_the_convolutions_changes_the_identity(folder):
    model, weights, encoder = built(path=str(folder), cache="memory")
    convolutions = weights["frozen"]["hubert"]["feature_extractor"]
    kernel = convolutions["conv_layers_1"]["conv"]["kernel"]
    convolutions["conv_layers_1"]["conv"]["kernel"] = kernel.at[0, 0, 0].add(1e-3)
    options = DEFAULTS | {"cache": "memory"}
    assert frozen_encoder(model, weights, **options).identity != encoder.identity


def test_where_frames_are_kept(folder, tmp_path):
    memory = built(path=str(folder), cache="memory", cache_dir=str(tmp_path))[2]
    disk = built(path=str(folder), cache="disk", cache_dir=str(tmp_path), cache_dtype="float16")[2]
    assert (memory.folder, memory.dtype) == ("", np.float32)
    assert (disk.folder, disk.dtype) == (str(tmp_path), np.float16)


def test_a_step_from_the_encoder_s_input_is_that_from_clips(folder):
    model, weights, encoder = built(path=str(folder), cache="memory", cache_stage="encoder_input")
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), clips(), train=False)["params"])
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    frames, lengths = encoder.encode(clips())
    assert encoder.inputs is EncoderInput and frames.shape[2] == encoder.channels == model.blueprint.config.hidden_size
    assert lengths.tolist() == encoder.count(clips().lengths).tolist()
    # As they are kept: what is behind a clip is lost.
    padded = np.where(np.arange(frames.shape[1])[:, None] < np.asarray(lengths)[:, None, None], frames, 0)

    @quick
    def gradients(inputs):
        def losses(params):
            logits, _ = model.apply({"params": params, **weights}, inputs, train=True)
            return cross_entropy_losses(logits, jnp.array([0, 2]))

        return losses(params), jax.jacrev(losses)(params)

    of_clips, of_frames = gradients(clips()), gradients(EncoderInput(padded, lengths))
    for got, expected in zip(jax.tree.leaves(of_frames), jax.tree.leaves(of_clips), strict=True):
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_each_clip_s_encoder_input_is_that_of_the_clip_alone(folder):
    encoder = built(path=str(folder), cache="memory", cache_stage="encoder_input")[2]
    samples, lengths = clips()
    together, counts = encoder.encode(clips())
    for clip, length in enumerate(lengths):
        alone = encoder.encode(Waveforms(samples[clip : clip + 1, :length], lengths[clip : clip + 1])).frames
        np.testing.assert_allclose(together[clip : clip + 1, : counts[clip]], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_noise_after_the_encoder_s_input_does_not_matter(tmp_path):
    folder = write_hubert(tmp_path / "late", hidden_dropout=0.25, layerdrop=0.5, apply_spec_augment=False)
    options = {"path": str(folder), "noise": "config", "cache": "memory", "cache_stage": "encoder_input"}
    model, weights, encoder = built(**options)
    params = model.init(jax.random.key(0), clips(), train=False)["params"]
    rngs = {"dropout": jax.random.key(1), "layerdrop": jax.random.key(2)}
    heard = [
        quick(lambda inputs: model.apply({"params": params, **weights}, inputs, train=True, rngs=rngs)[0])(inputs)
        for inputs in (clips(), encoder.encode(clips()))
    ]
    np.testing.assert_allclose(heard[1], heard[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_encoder_s_input_is_refused_where_noise_comes_before_it(folder):
    quiet, weights, encoder = built(path=str(folder), cache="memory", cache_stage="encoder_input")
    inputs, noisy = encoder.encode(clips()), hubert(3, path=str(folder), noise="hf_train")
    params = quiet.init(jax.random.key(0), clips(), train=False)["params"]
    with pytest.raises(InputError, match="as SpecAugment or feat_proj_dropout comes before EncoderInput"):
        noisy.apply({"params": params, **weights}, inputs, train=True, rngs={"dropout": jax.random.key(1)})


def test_the_stage_and_its_weights_change_the_identity(folder):
    options = {"cache": "memory", "path": str(folder)}
    at_convolutions = built(**options)[2].identity
    model, weights, encoder = built(**options, cache_stage="encoder_input")
    norm = weights["frozen"]["hubert"]["encoder"]["layer_norm"]
    norm["scale"] = norm["scale"].at[0].add(1e-3)
    changed = frozen_encoder(model, weights, **(DEFAULTS | options | {"cache_stage": "encoder_input"})).identity
    assert len({at_convolutions, encoder.identity, changed}) == 3
