"""Small recordings for tests, tones whose pitch tells the class, tables of them, and a small HuBERT for them."""

import csv
import functools

import jax
import numpy as np
import soundfile

from imbal_jax.models.hubert import hubert, random_frozen
from imbal_jax.models.hubert_layers import HubertConfig
from imbal_jax.models.hubert_weights import export_hubert

RATE = 16_000
PITCHES = {"low": 200.0, "middle": 500.0, "high": 1_200.0}
COUNTS = {"train": (12, 7, 5), "validation": (3, 3, 2), "test": (3, 3, 2)}


def tone(pitch, seconds, rng):
    """A tone with noise, float64 in [-1, 1]."""
    time = np.arange(round(seconds * RATE)) / RATE
    return 0.4 * np.sin(2 * np.pi * pitch * time + rng.uniform(0, 6)) + 0.05 * rng.normal(size=len(time))


def write_corpus(folder, counts=COUNTS, seconds=(0.2, 1.0), columns=("path", "label", "split")):
    """Writes wav files of 0.2 to 1.0 seconds and recordings.csv; returns its path.

    Args:
      folder: exists.
      counts: clips per class, by split.
      seconds: of the shortest and the longest clip; the others lie evenly between them.
      columns: the names of the table's columns.
    """
    rng = np.random.default_rng(0)
    rows, lengths = [], iter(rng.permutation(np.linspace(*seconds, sum(map(sum, counts.values())))))
    for split, numbers in counts.items():
        for (label, pitch), number in zip(PITCHES.items(), numbers, strict=True):
            for index in range(number):
                name = f"{split}_{label}_{index}.wav"
                soundfile.write(folder / name, tone(pitch, next(lengths), rng), RATE, subtype="PCM_16")
                rows.append((name, label, split))
    table = folder / "recordings.csv"
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return table


def write_hubert(folder, **changes):
    """Writes config.json and model.safetensors of a very small HuBERT with random weights; returns the folder."""
    config = HubertConfig(
        **{
            "conv_dim": (4, 6),
            "conv_kernel": (40, 8),
            "conv_stride": (20, 8),
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 12,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
            **changes,
        }
    )
    model = hubert(2, config=config, lora=None)
    shapes = jax.eval_shape(functools.partial(random_frozen, model), jax.random.key(0))
    rng = np.random.default_rng(0)
    frozen = jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)
    export_hubert(config, frozen, folder)
    return folder
