"""Thesis Tables 4.3, 5.2, 5.5 and B.8: HuBERT Base with LoRA on CREMA-D (4.1.4, Tables B.2 and B.6).

  python -m imbal_jax.main --config=configs/crema_d.py --task=check --config.data.root=CREMA-D
  python -m imbal_jax.main --config=configs/crema_d.py --task=describe --config.data.root=CREMA-D
  python -m imbal_jax.main --config=configs/crema_d.py --config.data.root=CREMA-D \
    --config.model.path=hubert-base-ls960 --workdir=runs/crema_d
  python -m imbal_jax.main --config=configs/crema_d.py:ief_irw --config.model.cache=memory --workdir=runs/crema_d_ief

Needs a clone of CREMA-D with its audio and HuBERT Base's weights in Hugging Face's safetensors, see
experiments/convert_checkpoint.py; nothing is downloaded. 30 epochs of 73 steps for each of three seeds: for a GPU. On
two CPU cores an epoch takes more than an hour, by the number of its operations. --config.model.cache=memory needs 2 GB
and saves a sixth of the time.

The thesis reports, over three seeds (accuracy, balanced accuracy, macro F1 in %):
  baseline            74.33 +- 1.10   54.31 +- 1.05   54.95 +- 0.18
  sampler             74.98 +- 0.79   55.77 +- 0.78   56.45 +- 0.56
  inverse_frequency   67.53 +- 3.26   60.64 +- 1.08   54.86 +- 1.60
  class_balanced      72.72 +- 1.42   57.08 +- 0.57   55.56 +- 0.97
  focal               73.00 +- 0.91   55.10 +- 0.57   54.21 +- 0.38
  alpha_focal         68.53 +- 1.35   60.32 +- 1.76   55.20 +- 1.52
  ldam                75.31 +- 0.12   53.91 +- 0.55   55.19 +- 0.59
  ldam_drw            68.86 +- 0.98   58.29 +- 0.38   53.97 +- 0.37
  influence_balanced  70.25 +- 3.59   56.55 +- 4.22   54.22 +- 1.20
  ief_raw             72.19 +- 1.17   54.03 +- 0.75   53.35 +- 1.13
  ief_sampler         69.49 +- 0.47   57.53 +- 1.37   54.03 +- 1.50
  ief_irw             66.27 +- 1.63   60.69 +- 0.34   53.32 +- 0.67
  ief_drw             65.71 +- 0.43   57.34 +- 1.21   51.25 +- 0.85
  gdn_raw             67.71 +- 3.12   51.06 +- 1.94   48.35 +- 0.71
  gdn_sampler         58.49 +- 2.90   57.38 +- 0.25   49.34 +- 1.10
  gdn_irw             62.45 +- 2.82   56.08 +- 0.54   49.40 +- 2.10
  gdn_drw             65.76 +- 2.21   55.13 +- 0.89   50.44 +- 0.97
It does not state clip lengths, the treatment of padding, noise in training or damping: these are ours.
"""

from ml_collections import ConfigDict

from imbal_jax.recipes import correction, parse_speech_method, speech_steps

LEARNING_RATES = {"gradient": 5e-4, "ief": 50.0, "gdn": 10.0}


def get_config(method: str = "baseline") -> ConfigDict:
    """The study; `method` is read by `imbal_jax.recipes.parse_speech_method`."""
    chosen = parse_speech_method(method)
    steps = speech_steps(chosen, LEARNING_RATES[chosen.direction])
    return ConfigDict(
        {
            "seeds": "0,1,2",
            "data": {"name": "crema_d", "root": "CREMA-D", "labels": "voice"},
            "profile": {"name": "natural"},
            "sampler": {"name": chosen.sampler},
            "augmentation": {"name": "none"},
            "model": {"name": "hubert", "path": "hubert-base-ls960", "noise": steps["noise"]},
            "correction": correction(chosen.correction, cosines=False),
            "direction": steps["direction"],
            "step_rule": steps["step_rule"],
            "schedule": steps["schedule"],
            "training": {"epochs": 30, "batch_size": 64, "select": "validation/macro_f1"},
            "evaluation": {"batch_size": 64},
        }
    )
