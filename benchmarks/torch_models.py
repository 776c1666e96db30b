"""The image models in PyTorch, and a plain training loop for them.

Submodules have the names of the Flax modules' parameters, so that weights go over by name.
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from imbal_jax.training.experiment import Experiment

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_VGG11_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class MLP(nn.Module):
    """As `imbal_jax.models.mlp` without dropout."""

    def __init__(self, hidden: Sequence[int], inputs: int, num_classes: int):
        super().__init__()
        self.depth = len(hidden)
        for layer, width in enumerate(hidden, start=1):
            self.add_module(f"dense{layer}", nn.Linear(inputs, width))
            inputs = width
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images [batch, channels, height, width] to logits; pixels are flattened with channels last."""
        features = images.permute(0, 2, 3, 1).flatten(1)
        for layer in range(1, self.depth + 1):
            features = functional.relu(self.get_submodule(f"dense{layer}")(features))
        return self.classifier(features)


class CNN(nn.Module):
    """As `imbal_jax.models.cnn`."""

    def __init__(self, width: int, channels: int, num_classes: int):
        super().__init__()
        self.convolution1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.convolution2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images [batch, channels, height, width] to logits."""
        hidden = functional.max_pool2d(functional.relu(self.norm1(self.convolution1(images))), 2)
        hidden = functional.max_pool2d(functional.relu(self.norm2(self.convolution2(hidden))), 2)
        return self.classifier(hidden.mean((2, 3)))


class VGG11(nn.Module):
    """As `imbal_jax.models.vgg`."""

    def __init__(self, dropout: float, channels: int, num_classes: int):
        super().__init__()
        self.dropout = dropout
        layer, inputs = 0, channels
        for stage in _VGG11_STAGES:
            for outputs in stage:
                layer += 1
                self.add_module(f"convolution{layer}", nn.Conv2d(inputs, outputs, 3, padding=1))
                self.add_module(f"norm{layer}", nn.BatchNorm2d(outputs))
                inputs = outputs
        self.dense1, self.dense2 = nn.Linear(512, 4096), nn.Linear(4096, 4096)
        self.classifier = nn.Linear(4096, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images [batch, channels, height, width] to logits."""
        hidden, layer = images, 0
        for stage in _VGG11_STAGES:
            for _ in stage:
                layer += 1
                convolution, norm = self.get_submodule(f"convolution{layer}"), self.get_submodule(f"norm{layer}")
                hidden = functional.relu(norm(convolution(hidden)))
            hidden = functional.max_pool2d(hidden, 2)
        features = hidden.mean((2, 3))
        for dense in (self.dense1, self.dense2):
            features = functional.dropout(functional.relu(dense(features)), self.dropout, self.training)
        return self.classifier(features)


class BasicBlock(nn.Module):
    """Two normalised convolutions around a shortcut without parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.convolution1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.convolution2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, (outputs - inputs) // 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps [batch, inputs, height, width] to [batch, outputs, height / stride, width / stride]."""
        hidden = functional.relu(self.norm1(self.convolution1(images)))
        hidden = self.norm2(self.convolution2(hidden))
        shortcut = images
        if self.added:
            kept = images[:, :, :: self.stride, :: self.stride]
            shortcut = functional.pad(kept, (0, 0, 0, 0, self.added, self.added))
        return functional.relu(hidden + shortcut)


class ResNet32(nn.Module):
    """As `imbal_jax.models.resnet`."""

    def __init__(self, width: int, channels: int, num_classes: int):
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks, inputs = [], width
        for stage in (1, 2, 3):
            for block in range(1, 6):
                outputs = width * 2 ** (stage - 1)
                self.blocks.append(f"stage{stage}_block{block}")
                self.add_module(self.blocks[-1], BasicBlock(inputs, outputs, outputs // inputs))
                inputs = outputs
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images [batch, channels, height, width] to logits."""
        hidden = functional.relu(self.norm(self.convolution(images)))
        for block in self.blocks:
            hidden = self.get_submodule(block)(hidden)
        return self.classifier(hidden.mean((2, 3)))


def torch_model(flax_model: Any, image_shape: Sequence[int], num_classes: int) -> nn.Module:
    """The PyTorch module of a Flax module with a linear classifier, with the same options.

    Args:
      flax_model: one of the image models.
      image_shape: [height, width, channels].
      num_classes: the number of logits.
    """
    height, width, channels = image_shape
    builders = {
        "MLP": lambda: MLP(flax_model.hidden, height * width * channels, num_classes),
        "CNN": lambda: CNN(flax_model.width, channels, num_classes),
        "VGG11": lambda: VGG11(flax_model.dropout, channels, num_classes),
        "ResNet32": lambda: ResNet32(flax_model.width, channels, num_classes),
    }
    return builders[type(flax_model).__name__]()


def load_variables(module: nn.Module, variables: Mapping[str, Any]) -> None:
    """Copies Flax variables, {"params": ..., "batch_stats": ...}, into a module of the same names."""
    counters = {name: value for name, value in module.state_dict().items() if name.endswith("num_batches_tracked")}
    module.load_state_dict(counters | state_dict_of(variables))


def state_dict_of(variables: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Flax variables under PyTorch's names and in its layout."""
    names = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    state = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        _, *modules, last = (entry.key for entry in path)
        values = np.array(leaf)
        if last == "kernel":
            values = values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T
        state[".".join([*modules, names[last]])] = torch.tensor(values)
    return state


class TorchSettings(NamedTuple):
    """How PyTorch computes."""

    memory_format: str  # one of MEMORY_FORMATS, of images and weights
    threads: int
    device: str = "cpu"  # or "cuda"


class TorchLoop:
    """Training in PyTorch: the data standardised beforehand, on the device, and the loss read at every step.

    Args:
      experiment: its data, model, schedule and horizon are followed; the loss is cross-entropy, without augmentation.
      step_rule: momentum and weight decay of its SGD.
      variables: initial weights and running statistics, as Flax has them.
      settings: how to compute.
    """

    def __init__(
        self,
        experiment: Experiment,
        step_rule: Mapping[str, Any],
        variables: Mapping[str, Any],
        settings: TorchSettings,
    ):
        data, horizon = experiment.data, experiment.horizon
        self.threads, self.memory_format = settings.threads, MEMORY_FORMATS[settings.memory_format]
        self.shape = (horizon.steps_per_epoch, experiment.training.batch_size)
        self.model = torch_model(experiment.model, data.train.images.shape[1:], len(data.class_names))
        load_variables(self.model, variables)
        self.model.to(settings.device, memory_format=self.memory_format).train()  # type: ignore[call-overload]
        images = torch.tensor(((data.train.images - data.mean) / data.std).astype(np.float32)).permute(0, 3, 1, 2)
        self.images = images.to(settings.device).contiguous(memory_format=self.memory_format)
        self.labels = torch.tensor(data.train.labels, dtype=torch.long, device=settings.device)
        self.learning_rates = [float(experiment.schedule(step)) for step in range(horizon.total_steps)]
        self.steps_taken = 0
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=self.learning_rates[0],
            momentum=step_rule["momentum"],
            weight_decay=step_rule["weight_decay"],
        )

    def epoch(self) -> list[float]:
        """Takes an epoch in a new random order; returns its losses."""
        order = torch.randperm(len(self.labels), device=self.labels.device)
        return self.take(order[: self.shape[0] * self.shape[1]].reshape(self.shape))

    def take(self, batches: torch.Tensor) -> list[float]:
        """Takes one step per row of indices [steps, batch]; returns their losses."""
        torch.set_num_threads(self.threads)
        return [self._step(indices) for indices in batches]

    def _step(self, indices: torch.Tensor) -> float:
        """One step of SGD; waits for its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rates[min(self.steps_taken, len(self.learning_rates) - 1)]
        images = self.images[indices].contiguous(memory_format=self.memory_format)
        loss = functional.cross_entropy(self.model(images), self.labels[indices])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.steps_taken += 1
        return loss.item()


def fastest_settings(
    experiment: Experiment, step_rule: Mapping[str, Any], variables: Mapping[str, Any], device: str
) -> TorchSettings:
    """The memory format, and one thread or one per core, with which PyTorch trains fastest.

    On small networks, and on cores shared with others, one thread can be many times faster. Each choice takes one step
    to warm up and three tries of five steps; its shortest try counts.
    """
    rows = torch.arange(experiment.training.batch_size, device=device).expand(5, -1)

    def shortest_try(settings: TorchSettings) -> float:
        loop, seconds = TorchLoop(experiment, step_rule, variables, settings), []
        loop.take(rows[:1])
        for _ in range(3):
            started = time.perf_counter()
            loop.take(rows)
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    threads = sorted({1, os.cpu_count() or 1})
    return min((TorchSettings(name, count, device) for name in MEMORY_FORMATS for count in threads), key=shortest_try)
