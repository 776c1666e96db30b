"""Per-class gradients of the final layer (thesis 5.2, Figures 5.1 to 5.3)."""

from collections.abc import Callable

import jax
import numpy as np
from flax import linen as nn

from imbal_jax.losses import corrected_losses
from imbal_jax.types import Array, Correction, Params, Prediction, PyTree


def make_class_gradients(
    model: nn.Module, correction: Correction, standardise: Callable[[Array], Array], num_classes: int
) -> Callable[..., Params]:
    """The function (params, model_state, progress, images, labels, counted) -> class sums of classifier gradients.

    Each leaf is [num_classes, *shape of the classifier's parameter]: the sum over the batch's examples of class c of
    the gradient of their corrected losses, in evaluation mode. Only the final layer is differentiated.
    """

    def class_gradients(
        params: Params, model_state: PyTree, progress, images: Array, labels: Array, counted: Array
    ) -> Params:
        inputs = standardise(images)

        def losses(classifier: Params) -> Array:
            variables = {"params": {**params, "classifier": classifier}, **model_state}
            prediction = Prediction(*model.apply(variables, inputs, train=False))
            return corrected_losses(correction.correct(prediction, labels, progress), labels)

        _, pull_back = jax.vjp(losses, params["classifier"])
        members = jax.nn.one_hot(labels, num_classes, axis=0) * counted
        return jax.vmap(lambda cotangent: pull_back(cotangent)[0])(members)

    return class_gradients


def class_gradient_norms(sums: list[Params], count: int) -> np.ndarray:
    """L2 norms of the class contributions (1 / n) sum_{y_n = c} grad loss_n, float64 [num_classes].

    The class contributions add up to the gradient of the mean loss, so a frequent class has a large one (the data
    proportion, C1); divide by pi_c for the gradient of the class's own mean.

    Args:
      sums: class sums per batch, from `make_class_gradients`.
      count: number of examples n.
    """
    total = jax.tree.map(lambda *leaves: np.sum([np.asarray(leaf, np.float64) for leaf in leaves], axis=0), *sums)
    squares = [np.sum(leaf.reshape(leaf.shape[0], -1) ** 2, axis=1) for leaf in jax.tree.leaves(total)]
    return np.sqrt(np.sum(squares, axis=0)) / count
