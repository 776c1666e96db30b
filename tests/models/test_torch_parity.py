"""VGG11-BN and ResNet-32 against PyTorch models built here from the papers, with our weights copied."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.models.resnet import resnet32
from imbal_jax.models.vgg import vgg11_bn

torch = pytest.importorskip("torch")
nn = torch.nn

# Compilation dominates these tests; the values are the same without XLA's optimisations.
QUICK = {"xla_backend_optimization_level": 0}


class TorchVGG11(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        layer, inputs = 0, 3
        for entry in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
            if entry == "M":
                self.add_module(f"pool{layer}", nn.MaxPool2d(2, 2))
                continue
            layer += 1
            self.add_module(f"convolution{layer}", nn.Conv2d(inputs, entry, 3, padding=1))
            self.add_module(f"norm{layer}", nn.BatchNorm2d(entry))
            self.add_module(f"relu{layer}", nn.ReLU())
            inputs = entry
        self.dense1, self.dense2 = nn.Linear(512, 4096), nn.Linear(4096, 4096)
        self.classifier = nn.Linear(4096, num_classes)

    def forward(self, images):
        hidden = images
        for name, layer in self.named_children():
            if not name.startswith(("dense", "classifier")):
                hidden = layer(hidden)
        features = torch.relu(self.dense2(torch.relu(self.dense1(hidden.flatten(1)))))
        return self.classifier(features), features


class TorchBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.convolution1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.convolution2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, (outputs - inputs) // 2

    def forward(self, images):
        hidden = torch.relu(self.norm1(self.convolution1(images)))
        hidden = self.norm2(self.convolution2(hidden))
        kept = images[:, :, :: self.stride, :: self.stride]
        return torch.relu(hidden + nn.functional.pad(kept, (0, 0, 0, 0, self.added, self.added)))


class TorchResNet32(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        for stage, (inputs, outputs) in enumerate(((1, 1), (1, 2), (2, 4)), start=1):
            for block in range(1, 6):
                first = block == 1
                made = TorchBlock(
                    width * (inputs if first else outputs), width * outputs, 2 if first and stage > 1 else 1
                )
                self.add_module(f"stage{stage}_block{block}", made)
        self.classifier = nn.Linear(4 * width, num_classes)

    def forward(self, images):
        hidden = torch.relu(self.norm(self.convolution(images)))
        for name, block in self.named_children():
            if name.startswith("stage"):
                hidden = block(hidden)
        features = hidden.mean((2, 3))
        return self.classifier(features), features


def layer_tensors(params, statistics):
    """One layer's variables under PyTorch's names, in its layout."""
    tensors = {}
    if "kernel" in params:
        kernel = np.asarray(params["kernel"])
        tensors["weight"] = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
    if "scale" in params:
        tensors |= {"weight": params["scale"], "running_mean": statistics["mean"], "running_var": statistics["var"]}
    if "bias" in params:
        tensors["bias"] = params["bias"]
    return {name: torch.tensor(np.array(values)) for name, values in tensors.items()}


def torch_state(params, statistics, prefix=""):
    """PyTorch's state dictionary of nested variables, "stage1_block1.norm1.weight" and so on."""
    state = {}
    for name, entry in params.items():
        nested = statistics.get(name, {})
        if isinstance(next(iter(entry.values())), dict):
            state |= torch_state(entry, nested, f"{prefix}{name}.")
        else:
            state |= {f"{prefix}{name}.{key}": value for key, value in layer_tensors(entry, nested).items()}
    return state


def random_variables(model, images):
    """Initialised variables with norm layers moved away from the identity."""
    variables = jax.jit(functools.partial(model.init, train=False), compiler_options=QUICK)(jax.random.key(0), images)
    random = np.random.default_rng(0)

    def perturbed(path, leaf):
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(random.uniform(0.7, 1.4, leaf.shape), jnp.float32)
        if path[-1].key in ("bias", "mean"):
            return jnp.asarray(random.normal(0, 0.1, leaf.shape), jnp.float32)
        return leaf

    return jax.tree_util.tree_map_with_path(perturbed, variables)


def load(reference, variables):
    """Copies our weights; every tensor of the reference must be given."""
    state = torch_state(variables["params"], variables["batch_stats"])
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return reference


def assert_close(ours, expected, tolerance=1e-4):
    """Equal within `tolerance` of the largest expected magnitude."""
    expected = expected.detach().numpy()
    np.testing.assert_allclose(ours, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


def compare(model, reference, images, cotangent, gradient_of):
    """Evaluation, training, running statistics and the gradient of one kernel against a reference."""
    variables = random_variables(model, images)
    load(reference, variables)
    theirs = torch.tensor(np.asarray(images).transpose(0, 3, 1, 2))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def evaluate(variables, images):
        return model.apply(variables, images, train=False)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def train(variables, images):
        def weighted(params):
            outputs, new = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.sum(outputs[0] * cotangent), (outputs, new)

        (_, (outputs, new)), gradients = jax.value_and_grad(weighted, has_aux=True)(variables["params"])
        return outputs, new["batch_stats"], gradients

    reference.eval()
    for ours, expected in zip(evaluate(variables, images), reference(theirs), strict=True):
        assert_close(ours, expected)
    reference.train()
    outputs, statistics, gradients = train(variables, images)
    expected_outputs = reference(theirs)
    for ours, expected in zip(outputs, expected_outputs, strict=True):
        assert_close(ours, expected)
    (expected_outputs[0] * torch.tensor(cotangent)).sum().backward()
    new_state = torch_state(variables["params"], statistics)
    for name, buffer in reference.named_buffers():
        if "running" in name:
            assert_close(new_state[name], buffer)
    for name in gradient_of:
        expected = dict(reference.named_parameters())[name].grad
        assert_close(torch_state(gradients, statistics)[name], expected, tolerance=1e-3)


def draw(batch, side, num_classes):
    """Images and a cotangent of the logits."""
    random = np.random.default_rng(9)
    images = random.normal(size=(batch, side, side, 3)).astype(np.float32)
    return jnp.asarray(images), random.normal(size=(batch, num_classes)).astype(np.float32)


@pytest.mark.parametrize("side", [16, pytest.param(13, marks=pytest.mark.slow)])
def test_resnet32_matches_torch(side):
    images, cotangent = draw(8, side, 5)
    compare(
        resnet32(5, width=8),
        TorchResNet32(5, 8),
        images,
        cotangent,
        ["convolution.weight", "stage2_block1.convolution1.weight", "stage3_block5.norm2.bias", "classifier.weight"],
    )


def test_vgg11_matches_torch():
    images, cotangent = draw(2, 32, 10)
    compare(
        vgg11_bn(10, dropout=0.0),
        TorchVGG11(10),
        images,
        cotangent,
        ["convolution1.weight", "norm8.weight", "dense1.weight", "dense2.bias", "classifier.weight"],
    )
