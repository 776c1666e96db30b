"""HuBERT with LoRA and a classification head (Hsu et al. 2021; Hu et al. 2022)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from imbal_jax.errors import InputError
from imbal_jax.models.heads import check_size
from imbal_jax.models.hubert_config import HUBERT_BASE, HubertConfig, least_samples
from imbal_jax.models.hubert_encoder import Encoder, HiddenStates
from imbal_jax.models.hubert_inputs import (
    EncoderInput,
    Features,
    check_inputs,
    frame_mask,
    masked_mean,
    span_mask,
)
from imbal_jax.models.hubert_layers import PADDINGS, Blueprint, FeatureExtractor, FeatureProjection, Padding
from imbal_jax.models.initialisers import bias_uniform, fan_in_uniform
from imbal_jax.models.lora import LoraSpec, check_layers
from imbal_jax.types import Array, Params, PyTree, Waveforms

Inputs = Waveforms | Features | EncoderInput


class Hubert(nn.Module):
    """HuBERT without a head."""

    blueprint: Blueprint

    def setup(self) -> None:
        """Has the transformer at hand for what comes before its layers and for these."""
        self.encoder = Encoder(self.blueprint)

    def __call__(self, inputs: Inputs, train: bool, masked_frames: Array | None = None) -> HiddenStates:
        """Encodes clips.

        Args:
          inputs: clips, or what the first modules made of them.
          train: whether there is noise.
          masked_frames: bool [batch, frames], for SpecAugment to mask instead of drawing them.
        """
        check_inputs(self.blueprint.config, inputs)
        if not isinstance(inputs, EncoderInput):
            inputs = self.embed(inputs, train, masked_frames)
        elif masked_frames is not None or self._has_early_noise(train):
            raise InputError(
                "inputs: expected Waveforms or Features, as SpecAugment or feat_proj_dropout comes before EncoderInput"
            )
        frames = inputs.frames
        if self.blueprint.dtype is not None:  # a cache may keep another one
            frames = frames.astype(self.blueprint.dtype)
        return self.encoder(frames, self._mask(inputs.lengths, frames.shape[1]), train)

    @nn.compact
    def embed(self, inputs: Waveforms | Features, train: bool, masked_frames: Array | None = None) -> EncoderInput:
        """What the transformer's layers receive; arguments as of a call."""
        check_inputs(self.blueprint.config, inputs)
        if isinstance(inputs, Waveforms):
            inputs = FeatureExtractor(self.blueprint, name="feature_extractor")(inputs)
        frames, lengths = inputs
        hidden = FeatureProjection(self.blueprint, name="feature_projection")(frames, train)
        hidden = self._augment(hidden, lengths, train, masked_frames)
        return EncoderInput(self.encoder.embed(hidden, self._mask(lengths, frames.shape[1])), lengths)

    def _mask(self, lengths: Array, frames: int) -> Array | None:
        """Which frames belong to the clips; None for all."""
        return None if self.blueprint.padding == "hf_nomask" else frame_mask(lengths, frames)

    def _has_early_noise(self, train: bool) -> bool:
        """Whether there is noise before the positional convolution."""
        return train and self.blueprint.config.has_early_noise

    def _augment(self, hidden: Array, lengths: Array, train: bool, masked_frames: Array | None) -> Array:
        """SpecAugment: masked frames become a vector of their own, masked channels zero."""
        blueprint, config, (batch, frames, channels) = self.blueprint, self.blueprint.config, hidden.shape
        if config.has_mask_embedding:  # part of the model also where nothing is masked
            init = nn.initializers.uniform(1.0)
            embedding = blueprint.weight(self, "masked_spec_embed", init, (channels,)).astype(hidden.dtype)
        if not config.apply_spec_augment:
            return hidden
        if masked_frames is None and train and config.mask_time_prob > 0:
            # Hugging Face lets spans fall into padding; a clip alone has none.
            whole = lengths if blueprint.padding == "exact" else jnp.full((batch,), frames)
            masked_frames = self._spans("time", whole, frames)
        if masked_frames is not None:
            hidden = jnp.where(masked_frames[..., None], embedding, hidden)
        if train and config.mask_feature_prob > 0:
            masked_channels = self._spans("feature", jnp.full((batch,), channels), channels)
            hidden = jnp.where(masked_channels[:, None], 0, hidden)
        return hidden

    def _spans(self, axis: str, lengths: Array, size: int) -> Array:
        """Random spans of frames or channels, bool [batch, size]."""
        share, span, least = (
            getattr(self.blueprint.config, f"mask_{axis}_{name}") for name in ("prob", "length", "min_masks")
        )
        if size < span:
            what = {"time": "frames", "feature": "channels"}[axis]
            raise InputError(f"mask_{axis}_length: expected at most {size}, all {what}, got {span}")
        key = self.make_rng("specaugment" if self.has_rng("specaugment") else "dropout")
        return span_mask(key, lengths, size, share=share, span=span, least=least)


class LayerMixture(nn.Module):
    """A weighted mean with weights softmax(w), w trained from zero."""

    @nn.compact
    def __call__(self, vectors: tuple[Array, ...]) -> Array:
        """The mean of vectors [batch, size]."""
        weights = nn.softmax(self.param("weights", nn.initializers.zeros, (len(vectors),)))
        return sum((weight * vector for weight, vector in zip(weights, vectors, strict=True)), jnp.zeros(()))


class HubertClassifier(nn.Module):
    """HuBERT and a linear head; see `hubert`."""

    num_classes: int
    blueprint: Blueprint
    projection: int
    head_bias: bool
    weighted_layer_sum: bool

    def setup(self) -> None:
        """Names the parts as Hugging Face does."""
        self.hubert = Hubert(self.blueprint)
        if self.weighted_layer_sum:
            self.layer_mixture = LayerMixture()
        self.projector = self._dense(self.projection, self.blueprint.config.hidden_size)
        self.classifier = self._dense(self.num_classes, self.projection)

    def _dense(self, outputs: int, inputs: int) -> nn.Dense:
        """A layer of the head, in PyTorch's default initialisation."""
        return nn.Dense(outputs, use_bias=self.head_bias, kernel_init=fan_in_uniform(), bias_init=bias_uniform(inputs))

    def __call__(self, inputs: Inputs, train: bool) -> tuple[Array, Array]:
        """Maps clips to logits [batch, num_classes] and features [batch, projection]."""
        return self.head(self.hubert(inputs, train))

    def head(self, states: HiddenStates) -> tuple[Array, Array]:
        """Logits [batch, num_classes] and features [batch, projection] of what HuBERT made of clips."""
        # The mean before the projection is the mean after it, for one position instead of many.
        if self.weighted_layer_sum:
            pooled = self.layer_mixture(tuple(masked_mean(each, states.mask) for each in states.layers))
        else:
            pooled = masked_mean(states.last, states.mask)
        features = self.projector(pooled)
        return self.classifier(features), features

    def hidden_states(self, inputs: Inputs, train: bool = False, masked_frames: Array | None = None) -> HiddenStates:
        """What the head receives, by `apply(..., method="hidden_states")`; arguments as of `Hubert`."""
        return self.hubert(inputs, train, masked_frames)

    def encoder_input(self, inputs: Waveforms | Features) -> EncoderInput:
        """What the transformer's layers receive without noise, by `apply(..., method="encoder_input")`, to keep it."""
        return self.hubert.embed(inputs, train=False)


def hubert(
    num_classes: int,
    *,
    config: HubertConfig = HUBERT_BASE,
    lora: LoraSpec | None = LoraSpec(),  # noqa: B008 (immutable)
    projection: int = 256,
    head_bias: bool = False,
    weighted_layer_sum: bool = False,
    padding: Padding = "exact",
    frozen: bool = True,
    dtype: Any = None,
) -> HubertClassifier:
    """HuBERT with low-rank adaptation and a head: 493,056 trained parameters for HuBERT Base and six classes.

    The head is a dense layer to `projection` units, the mean over frames and a dense layer to the classes, without
    activation. Trained weights are the collection "params", the others the collection "frozen", which is never changed
    and whose convolutions are not differentiated.

    The treatments of padding: "exact" gives every clip what it has alone, whatever its batch: padding counts neither
    in the statistics of the first convolution's norm nor as frames. "hf_mask" is Hugging Face's with an attention mask,
    where it counts in those statistics; "hf_nomask" is without one, where padding is part of the clip.

    Args:
      num_classes: the number of logits.
      config: the architecture and the noise of its training.
      lora: of the transformer's dense layers; None for none.
      projection: the number of features.
      head_bias: whether the head's two layers have biases.
      weighted_layer_sum: pool a trained mixture of all hidden states rather than the last.
      padding: "exact", "hf_mask" or "hf_nomask".
      frozen: False puts the weights of HuBERT itself among the parameters as well.
      dtype: of the computation in HuBERT, such as bfloat16; norms, softmax, mean and head stay in float32. By default
        that of inputs and weights.

    Returns:
      A module applied as `apply({"params": ..., "frozen": ...}, inputs, train=...)` to `Waveforms`, to the `Features`
      of `encode`, or to the `EncoderInput` of its method `encoder_input` where no noise comes before that. It returns
      (logits [batch, num_classes], features [batch, projection]). In training it draws from the rngs "dropout",
      "specaugment" ("dropout" where it is missing) and "layerdrop", one key for all clips of a step.

    Raises:
      InputError: an argument is out of its range; when applied, the inputs are no clips.
    """
    check_size("num_classes", num_classes, least=2)
    check_size("projection", projection)
    if lora is not None:
        check_layers(lora, config.num_hidden_layers)
    blueprint = _blueprint(config, lora, padding, frozen, dtype)
    return HubertClassifier(num_classes, blueprint, projection, head_bias, weighted_layer_sum)


def initial_params(model: HubertClassifier, key: Array) -> Params:
    """The collection "params" alone; nothing else is computed.

    Args:
      model: of `hubert`.
      key: of the random numbers.
    """
    return _initialise(model, key, "params")


def random_frozen(model: HubertClassifier, key: Array) -> PyTree:
    """The collection "frozen" of a model that nothing was loaded into: of random weights, to try things out.

    Args:
      model: of `hubert`, frozen.
      key: of the random numbers.
    """
    return _initialise(model, key, "frozen")


def encode(
    config: HubertConfig, frozen: PyTree, waveforms: Waveforms, *, padding: Padding = "exact", dtype: Any = None
) -> Features:
    """The convolutions alone, for instance to keep what they give: nothing in them is random or trained.

    Args:
      config: of the weights.
      frozen: the collection "frozen".
      waveforms: clips.
      padding: as of `hubert`; with "exact" the frames of a clip are those that it has alone, and those after its
        length have no meaning.
      dtype: of the computation.

    Raises:
      InputError: an argument is out of its range, or these are no clips.
    """
    blueprint = _blueprint(config, None, padding, True, dtype)
    if not isinstance(waveforms, Waveforms):
        raise InputError(f"waveforms: expected Waveforms, got {type(waveforms).__name__}")
    check_inputs(config, waveforms)
    extractor: Any = FeatureExtractor(blueprint)
    return extractor.apply({"frozen": frozen["hubert"]["feature_extractor"]}, waveforms)


def _initialise(model: HubertClassifier, key: Array, collection: str) -> PyTree:
    """A collection of a model; what it does not need is not computed."""
    least = least_samples(model.blueprint.config)
    clip = Waveforms(jnp.zeros((1, least)), jnp.full((1,), least))
    return jax.jit(lambda key: model.init(key, clip, train=False)[collection])(key)


def _blueprint(config: HubertConfig, lora: LoraSpec | None, padding: str, frozen: bool, dtype: Any) -> Blueprint:
    """What all modules of one model share, checked."""
    if padding not in PADDINGS:
        raise InputError(f"padding: expected one of {', '.join(PADDINGS)}, got {padding!r}")
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f"dtype: expected a floating type, got {dtype!r}")
    return Blueprint(config, lora, padding, frozen, dtype)
