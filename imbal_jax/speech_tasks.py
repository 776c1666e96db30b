"""What the command line does with recordings rather than images: scan them, count a HuBERT, load, export."""

import pathlib
from typing import Any

import numpy as np

from imbal_jax.data.audio_faults import report_lines, scan
from imbal_jax.data.clips import load_clips
from imbal_jax.data.corpora import counts
from imbal_jax.data.crema_d import lfs_pointers, missing_audio
from imbal_jax.data.speech import ClipSet, SpeechSource
from imbal_jax.errors import InputError
from imbal_jax.models.adapters import count_as_peft, write_adapter
from imbal_jax.models.hubert import HubertClassifier
from imbal_jax.models.hubert_weights import count_stored
from imbal_jax.training.loop import Best
from imbal_jax.types import PyTree

_SHOWN = 10  # missing files named


def corpus_report(source: SpeechSource) -> tuple[dict[str, Any], list[str]]:
    """Class counts by split from the tables alone, the audio that is missing, and every fault of the audio there is.

    Args:
      source: of a resolved config.

    Returns:
      A report for JSON, and the faults, one line each. Missing audio is no fault but told apart.
    """
    corpus = source.corpus
    pairs = [
        (path, corpus.class_names[label])
        for split in corpus.splits.values()
        for path, label in zip(split.paths, split.labels, strict=True)
    ]
    missing = set(missing_audio(corpus))
    pointers = set(lfs_pointers(path for path, _ in pairs))
    held = [(path, label) for path, label in pairs if path not in missing and path not in pointers]
    by_split = {
        name: {
            "examples": len(corpus.splits[name].labels),
            "class_counts": row,
            "speakers": None if (speakers := corpus.splits[name].speakers) is None else len(set(speakers)),
        }
        for name, row in counts(corpus).items()
    }
    report: dict[str, Any] = {
        "dataset": corpus.name,
        "class_names": corpus.class_names,
        "splits": by_split,
        "notes": corpus.notes,
        "missing_audio": {"files": len(missing), "first": sorted(map(str, missing))[:_SHOWN]},
        "git_lfs_pointers": {"files": len(pointers), "first": sorted(map(str, pointers))[:_SHOWN]},
    }
    faults: list[str] = []
    if held:
        found = scan([path for path, _ in held], [label for _, label in held])
        faults = [f"{fault.kind}: {fault.path}: {fault.detail}" for fault in found.faults]
        report["audio"] = [line for line in report_lines(found) if line not in faults]
    return report, faults


def parameter_counts(variables: PyTree) -> dict[str, int]:
    """The parameters of a model with frozen weights, truly and as peft counts them; of shapes or arrays."""
    found = count_as_peft(variables["params"], count_stored(variables["frozen"]))
    return {
        "num_params": found.total,
        "num_trainable": found.trainable,
        "num_params_as_peft_counts": found.as_peft,
    }


def export_adapter(model: Any, best: Best, base_model: str, folder: pathlib.Path) -> None:
    """Writes trained LoRA weights and a head in peft's files, see `write_adapter`.

    Args:
      model: of the run.
      best: the parameters.
      base_model: where the frozen weights came from; "" for random ones.
      folder: made if it does not exist.

    Raises:
      InputError: the model is no HuBERT with LoRA over frozen weights, or its head is not one that peft's files hold;
        or the folder holds a model.
    """
    if not isinstance(model, HubertClassifier):
        raise InputError(f"model.name: expected 'hubert' to export an adapter, got a run of {type(model).__name__}")
    if model.blueprint.lora is None or not model.blueprint.frozen or model.weighted_layer_sum:
        raise InputError(
            "config.model: expected lora_rank >= 1, frozen=true and weighted_layer_sum=false to export an adapter:"
            " peft's files hold LoRA weights and the head alone"
        )
    write_adapter(folder, best.variables["params"], model.blueprint.lora, base_model=base_model or None)


def clips_of(source: SpeechSource, paths: list[pathlib.Path]) -> ClipSet:
    """The clips of sound files, made as those of a corpus.

    Raises:
      InputError: files are faulty, all of them named.
    """
    return ClipSet(load_clips(paths, source.options), np.arange(len(paths)), source.num_buckets)
