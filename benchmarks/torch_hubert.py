"""HuBERT with LoRA in PyTorch, as transformers and peft have it; imported only where all three are installed."""

import dataclasses
import os
import time
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import HubertConfig as PublishedConfig
from transformers import HubertForSequenceClassification

from imbal_jax.models.hubert_config import HubertConfig

ATTENTIONS = ("eager", "sdpa")
LEARNING_RATE = 1e-6


class TorchSettings(NamedTuple):
    """How PyTorch computes."""

    attention: str  # one of ATTENTIONS
    threads: int
    device: str = "cpu"  # or "cuda"
    bfloat16: bool = False  # by autocast


class _Kept(nn.Module):
    """Stands in for the convolutions with what they gave."""

    def __init__(self, frames: torch.Tensor):
        super().__init__()
        self.frames = frames

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """The frames, whatever the samples."""
        return self.frames


class TorchStep:
    """A training step with AdamW: LoRA and head trained, the convolutions frozen and not differentiated.

    Args:
      config: architecture and noise.
      num_classes: the number of logits.
      samples: float32 [batch, samples], of one length, without an attention mask.
      labels: [batch].
      settings: how to compute.
      kept: whether the convolutions' output is computed once, before the first step.
    """

    def __init__(
        self,
        config: HubertConfig,
        num_classes: int,
        samples: np.ndarray,
        labels: np.ndarray,
        settings: TorchSettings,
        *,
        kept: bool = False,
    ):
        self.settings = settings
        torch.manual_seed(0)
        published = PublishedConfig(num_labels=num_classes, classifier_proj_size=256, **dataclasses.asdict(config))
        published._attn_implementation = settings.attention
        model = HubertForSequenceClassification(published)
        model.projector = nn.Linear(config.hidden_size, 256, bias=False)
        model.classifier = nn.Linear(256, num_classes, bias=False)
        adapters = LoraConfig(
            r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], modules_to_save=["projector", "classifier"]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.model: Any = get_peft_model(model, adapters)
        inner = self.model.base_model.model
        inner.freeze_feature_encoder()
        self.model.to(settings.device).train()
        self.samples = torch.tensor(samples, device=settings.device)
        self.labels = torch.tensor(labels, dtype=torch.long, device=settings.device)
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.num_trainable = sum(weight.numel() for weight in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.1)
        if kept:
            with torch.no_grad(), self._precision():
                inner.hubert.feature_extractor = _Kept(inner.hubert.feature_extractor(self.samples))

    def take(self) -> float:
        """Takes a step; returns the loss, for which it waits."""
        torch.set_num_threads(self.settings.threads)
        self.optimizer.zero_grad(set_to_none=True)
        with self._precision():
            logits = self.model(input_values=self.samples).logits
        loss = nn.functional.cross_entropy(logits.float(), self.labels)
        loss.backward()
        self.optimizer.step()
        if self.settings.device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    def _precision(self) -> Any:
        """The type of the computation."""
        return torch.autocast(self.settings.device, torch.bfloat16, enabled=self.settings.bfloat16)


def fastest_settings(
    config: HubertConfig,
    num_classes: int,
    samples: np.ndarray,
    labels: np.ndarray,
    *,
    device: str,
    bfloat16: bool,
) -> tuple[TorchSettings, dict[str, float]]:
    """The attention with which a step is fastest, with a thread for every core that the process may use.

    Each takes one step to warm up, then three turns; its shortest counts.

    Returns:
      The settings, and seconds of a step by attention.
    """
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    choices = [TorchSettings(attention, threads, device, bfloat16) for attention in ATTENTIONS]
    steps = [TorchStep(config, num_classes, samples, labels, settings) for settings in choices]
    for step in steps:
        step.take()
    seconds: dict[str, float] = {}
    for _ in range(3):
        for step, settings in zip(steps, choices, strict=True):
            started = time.perf_counter() if device == "cuda" else time.process_time()
            step.take()
            taken = (time.perf_counter() if device == "cuda" else time.process_time()) - started
            seconds[settings.attention] = min(taken, seconds.get(settings.attention, taken))
    return min(choices, key=lambda settings: seconds[settings.attention]), seconds
