"""Pretrained weights under torchvision's names: what is read, left out and refused."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imbal_jax.errors import InputError
from imbal_jax.models.bottleneck import BottleneckResNet
from imbal_jax.models.bottleneck_weights import export_resnet, load_resnet, pretrained
from tests.models.test_bottleneck import random_variables

MODEL = BottleneckResNet(3, (1, 2, 1, 1), 2, "linear", False, "all")
OPTIONS = {"width": 2, "zero_last_scale": False}


@pytest.fixture(scope="module")
def variables():
    return random_variables(MODEL, np.zeros((1, 32, 32, 3), np.float32))


@pytest.fixture
def stored(variables, tmp_path):
    """The file of the variables, with PyTorch's counters."""
    file = tmp_path / "resnet.safetensors"
    export_resnet(MODEL, variables, file)
    tensors = load_file(file)
    counters = {name.replace("running_mean", "num_batches_tracked"): np.int64(7) for name in tensors if "_mean" in name}
    file.unlink()
    save_file(tensors | {name: np.asarray(value) for name, value in counters.items()}, file)
    return file


def changed(file, change):
    """The file with its tensors changed."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return file


def test_what_was_written_is_read(stored, variables):
    jax.tree.map(np.testing.assert_array_equal, load_resnet(stored, MODEL, with_classifier=True), variables)


def test_kernels_have_pytorch_s_order_of_axes(stored, variables):
    tensors = load_file(stored)
    kernel = np.asarray(variables["params"]["stage2_block1"]["convolution2"]["kernel"])
    assert tensors["layer2.0.conv2.weight"].shape == (4, 4, 3, 3)
    assert tensors["layer2.0.conv2.weight"][1, 2, 0, 1] == kernel[0, 1, 2, 1]
    assert tensors["conv1.weight"].shape == (2, 3, 7, 7)
    assert tensors["fc.weight"].shape == (3, 64)


def test_the_classifier_is_left_out_unless_asked_for(stored, variables):
    found = load_resnet(stored, MODEL, with_classifier=False)
    assert set(variables["params"]) - set(found["params"]) == {"classifier"}
    other = BottleneckResNet(5, (1, 2, 1, 1), 2, "cosine", False, "all")
    jax.tree.map(np.testing.assert_array_equal, load_resnet(stored, other, with_classifier=False), found)
    without = changed(stored, lambda tensors: [tensors.pop(name) for name in ("fc.weight", "fc.bias")])
    jax.tree.map(np.testing.assert_array_equal, load_resnet(without, MODEL, with_classifier=False), found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("layer2.1.bn3.running_var"), r"lacks layer2\.1\.bn3\.running_var$"),
        (
            lambda tensors: tensors.update({"layer2.2.conv1.weight": np.ones(1)}),
            r"unexpected layer2\.2\.conv1\.weight$",
        ),
        (lambda tensors: tensors.update({"fc.weight": np.ones((4, 64))}), r"fc\.weight \(4, 64\) instead of \(3, 64\)"),
        (lambda tensors: tensors["bn1.bias"].fill(np.nan), r"finite numbers, got others in bn1\.bias"),
        (lambda tensors: tensors.update({"bn1.bias": np.ones(2, np.int64)}), r"bn1\.bias: expected one of .*got int64"),
    ],
)
def test_other_tensors_are_refused(stored, change, message):
    changed(stored, change)
    with pytest.raises(InputError, match=message):
        load_resnet(stored, MODEL, with_classifier=True)


@pytest.mark.parametrize("name", ["resnet50.pth", "pytorch_model.bin"])
def test_pytorch_s_own_files_are_refused_with_the_converter(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=rf"^model\.weights: .*got {name}; convert it with python -m experiments\."):
        load_resnet(tmp_path / name, MODEL, with_classifier=False)


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"^model\.weights: expected a safetensors file, found none at .*none"):
        load_resnet(tmp_path / "none.safetensors", MODEL, with_classifier=False)
    (tmp_path / "bad.safetensors").write_bytes(b"abc")
    with pytest.raises(InputError, match="expected a complete safetensors file"):
        load_resnet(tmp_path / "bad.safetensors", MODEL, with_classifier=False)


def test_other_variables_are_not_written(variables, tmp_path):
    with pytest.raises(InputError, match="variables: lacks batch_stats"):
        export_resnet(MODEL, {"params": variables["params"]}, tmp_path / "x.safetensors")


def test_a_classifier_without_a_file_is_refused(variables, stored):
    with pytest.raises(InputError, match=r"weights_classifier: needs a file in model\.weights"):
        pretrained(MODEL, weights="", weights_classifier=True, **OPTIONS)
    assert pretrained(MODEL, weights="", weights_classifier=False, **OPTIONS) is None
    found = pretrained(MODEL, weights=str(stored), weights_classifier=True, **OPTIONS)
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_a_linear_classifier_is_no_cosine_classifier(stored):
    cosine = BottleneckResNet(3, (1, 2, 1, 1), 2, "cosine", False, "all")
    with pytest.raises(InputError, match=r"has unexpected fc\.bias$"):
        load_resnet(stored, cosine, with_classifier=True)


def test_an_existing_file_is_not_replaced(stored, variables, tmp_path):
    for file in (stored, tmp_path / "resnet.bin"):
        with pytest.raises(InputError, match=r"^--output: expected a new file that ends in \.safetensors, got "):
            export_resnet(MODEL, variables, file)
