"""The second half of a HuBERT, its transformer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from imbal_jax.errors import InputError
from imbal_jax.models.activations import gelu, softmax, wide_product
from imbal_jax.models.hubert_layers import Blueprint
from imbal_jax.types import Array


class HiddenStates(NamedTuple):
    """What a HuBERT makes of clips."""

    layers: tuple[Array, ...]  # [batch, frames, hidden_size] the input of the first layer, and every layer's output
    last: Array  # the last of them, normalised where the layers normalise first
    mask: Array | None  # [batch, frames] which frames belong to the clips; None for all


class PositionalConvolution(nn.Module):
    """Tells frames where they are: a wide grouped convolution, and GELU."""

    blueprint: Blueprint

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        """Maps [batch, frames, hidden_size] to the same shape."""
        config = self.blueprint.config
        kernel = config.num_conv_pos_embeddings
        # An even kernel looks one frame further back than ahead.
        padding = [(kernel // 2, kernel // 2 - (kernel + 1) % 2)]
        convolution = self.blueprint.conv(
            config.hidden_size,
            kernel,
            "conv",
            padding=padding,
            feature_group_count=config.num_conv_pos_embedding_groups,
        )
        return gelu(convolution(hidden))


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, Eq. 1)."""

    blueprint: Blueprint
    layer: int

    @nn.compact
    def __call__(self, hidden: Array, mask: Array | None, train: bool) -> Array:
        """Maps [batch, frames, hidden_size] to the same shape; frames outside of the mask are not attended to."""
        config = self.blueprint.config

        def project(target: str, inputs: Array) -> Array:
            return self.blueprint.adapted(target, self.layer, config.hidden_size, inputs, train)

        def by_head(outputs: Array) -> Array:
            # Heads first: XLA's CPU backend is slower at products that leave them in the middle.
            return outputs.reshape(*hidden.shape[:-1], config.num_attention_heads, -1).swapaxes(1, 2)

        query, key, value = (by_head(project(name, hidden)) for name in ("q_proj", "k_proj", "v_proj"))
        scores = wide_product(query * query.shape[-1] ** -0.5, key.swapaxes(2, 3))
        if mask is not None:
            # Finite, so that a clip without frames does not become NaN; any score vanishes beside it.
            scores = scores + jnp.where(mask, 0, jnp.finfo(scores.dtype).min)[:, None, None, :]
        weights = softmax(scores).astype(value.dtype)
        weights = nn.Dropout(config.attention_dropout, deterministic=not train)(weights)
        mixed = jnp.matmul(weights, value).swapaxes(1, 2)
        return project("out_proj", mixed.reshape(hidden.shape))


class FeedForward(nn.Module):
    """Two dense layers with GELU between them, frame by frame."""

    blueprint: Blueprint
    layer: int

    @nn.compact
    def __call__(self, hidden: Array, train: bool) -> Array:
        """Maps [batch, frames, hidden_size] to the same shape."""
        config, adapted = self.blueprint.config, self.blueprint.adapted
        inner = adapted("intermediate_dense", self.layer, config.intermediate_size, hidden, train)
        inner = gelu(inner)
        inner = nn.Dropout(config.activation_dropout, deterministic=not train)(inner)
        outer = adapted("output_dense", self.layer, config.hidden_size, inner, train)
        return nn.Dropout(config.hidden_dropout, deterministic=not train)(outer)


class EncoderLayer(nn.Module):
    """A transformer layer: attention and a feed-forward network, each with a residual and a norm."""

    blueprint: Blueprint
    layer: int

    @nn.compact
    def __call__(self, hidden: Array, mask: Array | None, train: bool) -> Array:
        """Maps [batch, frames, hidden_size] to the same shape."""
        blueprint = self.blueprint
        attention = Attention(blueprint, self.layer, name="attention")
        feed_forward = FeedForward(blueprint, self.layer, name="feed_forward")
        norm, final_norm = blueprint.layer_norm("layer_norm"), blueprint.layer_norm("final_layer_norm")
        dropout = nn.Dropout(blueprint.config.hidden_dropout, deterministic=not train)
        if blueprint.config.do_stable_layer_norm:
            hidden = hidden + dropout(attention(norm(hidden), mask, train))
            return hidden + feed_forward(final_norm(hidden), train)
        hidden = norm(hidden + dropout(attention(hidden, mask, train)))
        return final_norm(hidden + feed_forward(hidden, train))


class Encoder(nn.Module):
    """The transformer, with what comes before its layers."""

    blueprint: Blueprint

    def setup(self) -> None:
        """Names the parts as Hugging Face does."""
        self.pos_conv_embed = PositionalConvolution(self.blueprint)
        self.layer_norm = self.blueprint.layer_norm()
        self.dropout = nn.Dropout(self.blueprint.config.hidden_dropout)
        self.layers = [EncoderLayer(self.blueprint, i) for i in range(self.blueprint.config.num_hidden_layers)]

    def embed(self, hidden: Array, mask: Array | None) -> Array:
        """Gives frames [batch, frames, hidden_size] their places; this is what the layers receive, but for dropout."""
        if mask is not None:
            hidden = jnp.where(mask[..., None], hidden, 0)
        hidden = hidden + self.pos_conv_embed(hidden)
        return hidden if self.blueprint.config.do_stable_layer_norm else self.layer_norm(hidden)

    def __call__(self, embedded: Array, mask: Array | None, train: bool) -> HiddenStates:
        """Encodes what `embed` gives, [batch, frames, hidden_size]."""
        config = self.blueprint.config
        states = [self.dropout(embedded, deterministic=not train)]
        kept = self._kept_layers() if train and config.layerdrop > 0 else None
        for i, layer in enumerate(self.layers):
            after = layer(states[-1], mask, train)
            states.append(after if kept is None else jnp.where(kept[i], after, states[-1]))
        last = self.layer_norm(states[-1]) if config.do_stable_layer_norm else states[-1]
        return HiddenStates(tuple(states), last, mask)

    def _kept_layers(self) -> Array:
        """One draw for every layer, bool [layers]; alike for all clips only if its key is."""
        if not self.has_rng("layerdrop"):
            raise InputError(
                "layerdrop: expected the random stream 'layerdrop', one key for all clips of a step, got none"
            )
        config = self.blueprint.config
        return jax.random.uniform(self.make_rng("layerdrop"), (config.num_hidden_layers,)) >= config.layerdrop
