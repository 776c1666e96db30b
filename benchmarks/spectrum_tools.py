"""What the benchmark of spectra compares: our Hessian products and spectra, PyHessian's and curvlinops'.

Every tool has `product(setting)` and `spectra(setting)`, which get everything ready and return the function to be
timed, and `read`, which turns what that of a product returns into a vector in our order.
"""

import functools
import importlib
import importlib.util
import itertools
import os
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.epoch_throughput import torch_device
from imbal_jax.builders import NAMED
from imbal_jax.corrections.weights import cross_entropy
from imbal_jax.curvature.class_samples import class_groups, sample_classes
from imbal_jax.curvature.lanczos import lanczos, ritz
from imbal_jax.curvature.products import Data, Operands, Problem, make_operator
from imbal_jax.curvature.spectrum import spectrum
from imbal_jax.curvature.subsets import select_parameters
from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.training.class_curvature import operands_of
from imbal_jax.training.objective import make_objective

MODELS: dict[str, dict[str, Any]] = {"resnet32": {}, "cnn": {}, "mlp": {"hidden": (512, 512)}}
IMAGE_SHAPE, NUM_CLASSES = (32, 32, 3), 10
KEY = functools.partial(jax.random.key, 0)  # of the probes
GIBIBYTE = 2**30
PACKAGES = {"pyhessian": "pyhessian", "curvlinops": "curvlinops-for-pytorch"}


class Case(NamedTuple):
    """What every tool gets; NumPy arrays, so that other processes can be sent it."""

    model: Any  # the Flax module
    variables: dict[str, Any]
    images: np.ndarray  # float32 [n, height, width, channels], standardised
    labels: np.ndarray  # int32 [n]
    starts: np.ndarray  # float32 [probes, size]
    torch: Any = None  # benchmarks.torch_models.TorchSettings, None without PyTorch


class Setting(NamedTuple):
    """What is measured."""

    what: str
    classes: int
    probes: int
    examples: int  # of each class
    steps: int


class Tool(NamedTuple):
    """What computes."""

    name: str
    kind: str  # one of KINDS
    micro_batch: int | None  # None for all examples at once
    linearise_gib: float | None = None
    together: bool = False  # all probes in one product
    classes_by_vmap: bool = False


def make_case(model: str, classes: int, examples: int, probes: int) -> Case:
    """A network of MODELS with its initial weights and the statistics of a batch, and random images.

    Args:
      model: the name.
      classes: of the images.
      examples: of each class.
      probes: starts, those that `spectrum` draws from KEY.
    """
    module = NAMED["model"][model](NUM_CLASSES, **MODELS[model])
    images = np.random.default_rng(0).normal(size=(classes * examples, *IMAGE_SHAPE)).astype(np.float32)
    variables = jax.jit(functools.partial(module.init, train=False))(jax.random.key(0), images[:1])
    state = {name: value for name, value in variables.items() if name != "params"}
    if state:
        apply = jax.jit(functools.partial(module.apply, train=True, mutable=list(state)))
        _, blended = apply(variables, images[:64])
        # Undoes the blending: what would be reached after many such batches.
        state = jax.tree.map(lambda old, new: old + (new - old) / BatchNorm.momentum, state, blended)
    size = select_parameters(variables["params"]).size
    key, _ = jax.random.split(KEY())
    starts = [jax.random.normal(jax.random.fold_in(key, probe), (size,)) for probe in range(probes)]
    labels = np.repeat(np.arange(classes, dtype=np.int32), examples)
    return Case(module, jax.device_get({**variables, **state}), images, labels, np.stack(starts))


def missing(kind: str) -> str | None:
    """Why a kind of tool cannot be run, or None."""
    if kind == "ours":
        return None
    if torch_device() is None:
        return "PyTorch is not installed for this kind of device"
    return None if importlib.util.find_spec(kind) else f"{PACKAGES[kind]} is not installed"


class Ours:
    """Our products and spectra."""

    def __init__(self, case: Case, tool: Tool):
        self.case, self.tool = case, tool
        self.state = {name: value for name, value in case.variables.items() if name != "params"}
        correction = cross_entropy()

        def objective(state):
            return make_objective(case.model, correction, "mean", model_state=state, progress=0.0, train=False)

        self.make = make_operator(
            Problem(objective, lambda keys, images: images, select_parameters(case.variables["params"])),
            driver="compiled" if tool.classes_by_vmap else "auto",
            linearise_below=(tool.linearise_gib or 0) * GIBIBYTE,
        )
        self.data = Data(jnp.asarray(case.images), jnp.asarray(case.labels))

    def product(self, setting: Setting) -> Callable[[], Any]:
        """A product with the Hessian of the first class."""
        operator = self.make(self._operands(setting)[0])
        vector = jnp.asarray(self.case.starts[:1])
        product = jax.jit(operator.product) if operator.traceable else operator.product
        return lambda: jax.block_until_ready(product(operator.operands, vector, 0))

    def spectra(self, setting: Setting) -> Callable[[], list]:
        """The extreme eigenvalues of each class, [classes, 2]."""
        each = self._operands(setting)
        if self.tool.classes_by_vmap:
            return self._by_vmap(each, setting.steps)
        options: Any = {"order": setting.steps, "probes": setting.probes, "together": self.tool.together}

        def action() -> list:
            found = [spectrum(self.make(operands), **options, key=KEY()) for operands in each]
            return [(one.lambda_min, one.lambda_max) for one in found]

        return action

    def timed(self, what: str) -> str:
        """What the time is that of."""
        if what == "product":
            return "make_operator's product; what linearise_gib keeps is made beforehand"
        return "make_operator's operator and spectrum(), class by class" + " in one program" * self.tool.classes_by_vmap

    def read(self, product: Any) -> np.ndarray:
        """A product as a vector [size]."""
        return np.asarray(product)[0]

    def _operands(self, setting: Setting) -> list[Operands]:
        """The arrays of each class's products."""
        labels, names = self.case.labels, tuple(map(str, range(NUM_CLASSES)))
        samples = sample_classes(labels, NUM_CLASSES, setting.examples, seed=0)
        wanted, size = tuple(range(setting.classes)), self.tool.micro_batch or setting.examples
        groups = class_groups(labels, names, samples, wanted, whole=False, size=size)
        params, key, state = self.case.variables["params"], jax.random.key(0), self.state
        return [operands_of(params, state, self.data, group.batches, key) for group in groups]  # type: ignore[arg-type]

    def _by_vmap(self, each: list[Operands], steps: int) -> Callable[[], list]:
        """The spectra of all classes in one program, from the first start."""
        one = self.make(each[0])
        axes = Operands(None, None, None, 0, None)  # type: ignore[arg-type]
        stacked = jax.tree.map(lambda *batches: jnp.stack(batches), *(operands.batches for operands in each))

        def product(operands, vectors, draw):
            def of_class(operands, vector):
                return one.product(operands, vector[None], draw)[0]

            return jax.vmap(of_class, in_axes=(axes, 0))(operands, vectors)

        operator = one._replace(operands=each[0]._replace(batches=stacked), product=product)
        starts = jnp.repeat(jnp.asarray(self.case.starts[:1]), len(each), axis=0)

        def action() -> list:
            found = ritz(lanczos(operator, starts, steps, key=KEY()))
            return [(one.values[0], one.values[-1]) for one in found]

        return action


class InTorch:
    """The network and the examples in PyTorch."""

    def __init__(self, case: Case, tool: Tool):
        import torch

        from benchmarks.torch_models import MEMORY_FORMATS, load_variables, state_dict_of, torch_model

        importlib.import_module(tool.kind)
        self.case, self.tool, self.torch, self.device = case, tool, torch, case.torch.device
        torch.set_num_threads(case.torch.threads)
        torch.backends.cudnn.allow_tf32 = False  # float32 throughout, as ours
        memory_format: Any = MEMORY_FORMATS[case.torch.memory_format]
        self.model = torch_model(case.model, case.images.shape[1:], NUM_CLASSES)
        load_variables(self.model, case.variables)
        self.model.to(self.device, memory_format=memory_format).eval()  # type: ignore[call-overload]
        self.loss = torch.nn.CrossEntropyLoss()
        images = torch.tensor(case.images).permute(0, 3, 1, 2)
        self.images = images.to(self.device).contiguous(memory_format=memory_format)
        self.labels = torch.tensor(case.labels, dtype=torch.long, device=self.device)
        # Where each entry of PyTorch's parameters is in our vector.
        params, size = case.variables["params"], case.starts.shape[1]
        places = state_dict_of({"params": select_parameters(params).insert(params, np.arange(size))})  # type: ignore[arg-type]
        self.order = torch.cat([places[name].flatten() for name, _ in self.model.named_parameters()]).numpy()
        self.starts = [torch.tensor(start[self.order], device=self.device) for start in case.starts]

    def read(self, product: Any) -> np.ndarray:
        """A product as a vector [size], in our order."""
        parts = product if isinstance(product, tuple | list) else [product]
        found = np.empty(len(self.order), np.float32)
        found[self.order] = self.torch.cat([part.detach().flatten() for part in parts]).cpu().numpy()
        return found

    def waited(self, action: Callable[[], Any]) -> Callable[[], Any]:
        """The action, waiting for the device."""
        return (lambda: (action(), self.torch.cuda.synchronize())[0]) if self.device == "cuda" else action

    def batches(self, setting: Setting, index: int) -> list[tuple[Any, Any]]:
        """Images and labels of a class."""
        members = sample_classes(self.case.labels, NUM_CLASSES, setting.examples, seed=0)[index]
        chosen, size = self.torch.tensor(members, device=self.device), self.tool.micro_batch or setting.examples
        return list(zip(self.images[chosen].split(size), self.labels[chosen].split(size), strict=True))


class PyHessian(InTorch):
    """PyHessian's products and `density`."""

    def product(self, setting: Setting) -> Callable[[], Any]:
        """A product with the Hessian of the first class."""
        from pyhessian.utils import hessian_vector_product

        found = self._hessian(self.batches(setting, 0))
        vector = self._parts(self.starts[0])
        if self.tool.micro_batch:
            return self.waited(lambda: found.dataloader_hv_product(vector)[1])
        return self.waited(lambda: hessian_vector_product(found.gradsH, found.params, vector))

    def spectra(self, setting: Setting) -> Callable[[], list]:
        """The extreme eigenvalues of each class, [classes, 2]."""
        each = [self.batches(setting, index) for index in range(setting.classes)]

        def eig(matrix: Any, eigenvectors: bool) -> tuple[Any, Any]:
            values, vectors = self.torch.linalg.eigh(matrix)
            return self.torch.stack([values, self.torch.zeros_like(values)], dim=1), vectors

        def extremes(batches: list) -> tuple[float, float]:
            starts = [part.clone() for start in self.starts[: setting.probes] for part in self._parts(start)]
            drawn = mock.patch.object(self.torch, "randint_like", side_effect=starts)
            with drawn, mock.patch.object(self.torch, "eig", eig, create=True):
                values, _ = self._hessian(batches).density(iter=setting.steps, n_v=setting.probes)
            return float(np.min(values)), float(np.max(values))

        return self.waited(lambda: [extremes(batches) for batches in each])

    def timed(self, what: str) -> str:
        """What the time is that of."""
        if what == "product":
            kept = "hessian_vector_product with the graph of the gradient made beforehand"
            return "hessian(dataloader=...).dataloader_hv_product" if self.tool.micro_batch else kept
        data = "dataloader" if self.tool.micro_batch else "data"
        return f"hessian({data}=...).density(), with torch.linalg.eigh for torch.eig and from our starts"

    def _hessian(self, batches: list) -> Any:
        """PyHessian's object."""
        from pyhessian import hessian

        data: Any = {"dataloader": batches} if self.tool.micro_batch else {"data": batches[0]}
        warnings.filterwarnings("ignore", "Using backward.. with create_graph=True will create a reference cycle")
        found = hessian(self.model, self.loss, **data, cuda=self.device == "cuda")
        self.model.zero_grad()  # breaks that cycle
        return found

    def _parts(self, vector: Any) -> list[Any]:
        """A vector cut into the shapes of the parameters."""
        params = list(self.model.parameters())
        parts = vector.split([param.numel() for param in params])
        return [part.reshape(param.shape) for part, param in zip(parts, params, strict=True)]


class Curvlinops(InTorch):
    """The products of curvlinops and its `fast_lanczos`."""

    def product(self, setting: Setting) -> Callable[[], Any]:
        """A product with the Hessian of the first class."""
        operator = self._operator(self.batches(setting, 0))
        return self.waited(lambda: operator @ self.starts[0])

    def spectra(self, setting: Setting) -> Callable[[], list]:
        """The extreme eigenvalues of each class, [classes, 2]."""
        from curvlinops.papyan2020traces import spectrum as theirs

        each = [self.batches(setting, index) for index in range(setting.classes)]

        def extremes(batches: list) -> tuple[float, float]:
            operator = self._operator(batches)
            with mock.patch.object(theirs, "randn", side_effect=[start.clone() for start in self.starts]):
                found = [theirs.fast_lanczos(operator, setting.steps)[0] for _ in range(setting.probes)]
            return min(float(values.min()) for values in found), max(float(values.max()) for values in found)

        return self.waited(lambda: [extremes(batches) for batches in each])

    def timed(self, what: str) -> str:
        """What the time is that of."""
        operator = "HessianLinearOperator(check_deterministic=False)"
        return f"{operator} @ v" if what == "product" else f"{operator} and fast_lanczos from our starts"

    def _operator(self, batches: list) -> Any:
        """The Hessian as a linear operator."""
        from curvlinops import HessianLinearOperator

        params = list(self.model.parameters())
        return HessianLinearOperator(self.model, self.loss, params, batches, check_deterministic=False)


KINDS: dict[str, Any] = {"ours": Ours, "pyhessian": PyHessian, "curvlinops": Curvlinops}


def fastest_torch(case: Case, examples: int) -> Any:
    """The memory format, and one thread or one per core, with which PyTorch's double backward is fastest; or None.

    On cores shared with others one thread can be many times faster. Each choice takes one gradient with its graph and a
    product to warm up, and three products of which the shortest counts.
    """
    if torch_device() is None:
        return None
    from benchmarks.torch_models import MEMORY_FORMATS, TorchSettings

    def shortest_try(settings: TorchSettings) -> float:
        import torch

        made = InTorch(case._replace(torch=settings), Tool("torch", "torch", None))
        ((images, labels),) = made.batches(Setting("product", 1, 1, examples, 1), 0)
        params, seconds = list(made.model.parameters()), []
        gradients = torch.autograd.grad(made.loss(made.model(images), labels), params, create_graph=True)
        action = made.waited(lambda: torch.autograd.grad(gradients, params, gradients, retain_graph=True))
        for _ in range(4):
            started = time.perf_counter()
            action()
            seconds.append(time.perf_counter() - started)
        return min(seconds[1:])

    choices = itertools.product(MEMORY_FORMATS, sorted({1, os.cpu_count() or 1}))
    return min((TorchSettings(name, threads, torch_device() or "cpu") for name, threads in choices), key=shortest_try)
