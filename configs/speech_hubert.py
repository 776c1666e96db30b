"""Your own recordings, listed in a csv file: HuBERT with LoRA and the thesis's recipe for speech (4.1.4).

  python -m imbal_jax.main --config=configs/speech_hubert.py --config.data.path=recordings.csv \
    --config.model.path=hubert-base-ls960 --workdir=runs/speech_hubert
  python -m imbal_jax.main --config=configs/speech_hubert.py:ief_irw --config.data.path=recordings.csv \
    --config.model.path=hubert-base-ls960 --config.model.cache=memory --workdir=runs/speech_hubert_ief
  python -m imbal_jax.main --task=predict --workdir=runs/speech_hubert --input=recording.wav
  python -m imbal_jax.main --task=export --workdir=runs/speech_hubert --output=adapter

The csv file is described in configs/speech.py, how to get the weights in experiments/convert_checkpoint.py. Without
--config.model.path the frozen weights are random, which is said: enough to see everything work, not to learn much.
--config.model.size=tiny is a network for trying things out. A step of HuBERT Base on four clips of 3 s takes seconds on
two CPU cores: training is for a GPU.
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
            "seeds": "0",
            "data": {"name": "manifest", "path": "recordings.csv"},
            "validation": {"fraction": 0.1, "balanced": False},
            "profile": {"name": "natural"},
            "sampler": {"name": chosen.sampler},
            "augmentation": {"name": "none"},
            "model": {"name": "hubert", "noise": steps["noise"]},
            "correction": correction(chosen.correction, cosines=False),
            "direction": steps["direction"],
            "step_rule": steps["step_rule"],
            "schedule": steps["schedule"],
            "training": {"epochs": 30, "batch_size": 32, "select": "validation/macro_f1"},
            "evaluation": {"batch_size": 32},
        }
    )
