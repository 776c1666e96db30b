"""Thesis Tables 4.4, 5.3, 5.6 and B.9: HuBERT Base with LoRA on MSP-Podcast (4.1.4, Tables B.3 and B.7).

  python -m imbal_jax.main --config=configs/msp_podcast.py --task=check --config.data.root=MSP-Podcast-1.10
  python -m imbal_jax.main --config=configs/msp_podcast.py --config.data.root=MSP-Podcast-1.10 \
    --config.data.cache=cache --config.model.path=hubert-base-ls960 --workdir=runs/msp_podcast
  python -m imbal_jax.main --config=configs/msp_podcast.py:ief_drw --workdir=runs/msp_podcast_ief_drw

Needs release 1.10, which its authors give out under an agreement, and HuBERT Base's weights in Hugging Face's
safetensors, see experiments/convert_checkpoint.py. 20 epochs of 1395 steps of batch 32 (697 of batch 64 with a sampler
or influence_balanced) for each of three seeds: for a GPU. Decoded recordings take up to 14 GB, in memory or in the
folder data.cache. --config.model.cache=disk --config.model.cache_dir=cache --config.model.cache_dtype=float16 needs up
to 23 GB more and saves a sixth of the time.

The thesis reports, over three seeds, accuracy, balanced accuracy and macro F1 in % on `test`, then on `test_2`:
  baseline            58.21 +- 0.09  30.40 +- 0.32  30.38 +- 0.36   64.16 +- 0.55  24.54 +- 0.15  25.03 +- 0.21
  sampler             52.55 +- 0.18  31.87 +- 0.10  28.55 +- 0.41   51.22 +- 0.63  26.10 +- 0.34  22.29 +- 0.39
  inverse_frequency   45.96 +- 1.47  35.70 +- 0.36  30.96 +- 0.25   41.35 +- 3.81  29.20 +- 0.32  22.28 +- 0.94
  class_balanced      57.83 +- 0.07  30.32 +- 0.53  30.48 +- 0.64   64.05 +- 0.41  24.43 +- 0.25  24.92 +- 0.35
  focal               57.48 +- 0.20  30.54 +- 0.28  30.44 +- 0.28   63.64 +- 0.57  24.36 +- 0.35  24.64 +- 0.56
  alpha_focal         45.54 +- 1.01  34.93 +- 0.35  30.55 +- 0.05   41.88 +- 2.80  28.28 +- 0.39  21.99 +- 0.57
  ldam                59.23 +- 0.21  28.19 +- 0.15  27.40 +- 0.15   65.03 +- 0.11  24.05 +- 0.11  23.96 +- 0.11
  ldam_drw            59.07 +- 0.11  28.08 +- 0.25  27.50 +- 0.29   65.04 +- 0.08  24.04 +- 0.17  24.14 +- 0.10
  influence_balanced  48.64 +- 5.20  32.20 +- 1.10  29.25 +- 0.91   51.78 +- 6.92  25.88 +- 0.95  23.22 +- 0.84
  ief_raw             55.11 +- 0.53  31.01 +- 0.16  31.41 +- 0.26   59.88 +- 0.19  24.74 +- 0.29  25.26 +- 0.30
  ief_sampler         50.50 +- 0.49  31.20 +- 0.32  27.45 +- 0.35   47.70 +- 1.94  24.90 +- 0.46  20.65 +- 0.65
  ief_irw             42.03 +- 0.69  33.44 +- 0.35  29.74 +- 0.18   40.46 +- 1.58  27.84 +- 0.78  23.20 +- 0.58
  ief_drw             45.09 +- 0.65  34.69 +- 0.09  31.36 +- 0.34   42.98 +- 0.31  27.79 +- 0.45  23.68 +- 0.31
  gdn_raw             55.66 +- 0.42  29.18 +- 0.50  29.50 +- 0.36   61.22 +- 0.43  24.47 +- 0.68  24.53 +- 0.42
  gdn_sampler         51.99 +- 1.66  29.57 +- 0.93  26.94 +- 0.27   50.95 +- 3.39  24.91 +- 0.06  21.02 +- 0.80
  gdn_irw             42.96 +- 1.25  32.52 +- 0.08  29.20 +- 0.53   40.59 +- 2.51  27.30 +- 0.42  22.19 +- 0.57
  gdn_drw             43.09 +- 0.28  32.61 +- 0.36  29.57 +- 0.38   38.03 +- 0.86  26.82 +- 0.32  22.10 +- 0.11
It does not state clip lengths, the treatment of padding, noise in training or damping: these are ours.
"""

from ml_collections import ConfigDict

from imbal_jax.recipes import correction, parse_speech_method, speech_steps

LEARNING_RATES = {"gradient": 1e-4, "ief": 10.0, "gdn": 10.0}


def get_config(method: str = "baseline") -> ConfigDict:
    """The study; `method` is read by `imbal_jax.recipes.parse_speech_method`."""
    chosen = parse_speech_method(method)
    learning_rate = LEARNING_RATES[chosen.direction]
    if chosen.direction != "gradient" and chosen.correction == "inverse_frequency":
        learning_rate /= 2
    steps = speech_steps(chosen, learning_rate, switch_factor=0.5)
    large = chosen.sampler != "uniform" or chosen.correction == "influence_balanced"
    return ConfigDict(
        {
            "seeds": "0,1,2",
            "data": {"name": "msp_podcast", "root": "MSP-Podcast-1.10"},
            "profile": {"name": "natural"},
            "sampler": {"name": chosen.sampler},
            "augmentation": {"name": "none"},
            "model": {"name": "hubert", "path": "hubert-base-ls960", "noise": steps["noise"]},
            "correction": correction(chosen.correction, cosines=False),
            "direction": steps["direction"],
            "step_rule": steps["step_rule"],
            "schedule": steps["schedule"],
            "training": {"epochs": 20, "batch_size": 64 if large else 32, "select": "validation/macro_f1"},
            "evaluation": {"batch_size": 64},
        }
    )
