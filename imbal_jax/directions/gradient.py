"""The plain gradient of the mean corrected loss."""

import jax
import jax.numpy as jnp

from imbal_jax.types import Batch, Direction, Evidence, Objective, Params, Proposal


def gradient() -> Direction:
    """The gradient of the mean of the objective's losses: SGD and AdamW follow it (thesis Eq. 3.2)."""

    def propose(objective: Objective, params: Params, batch: Batch, state, key) -> Proposal:
        def loss(params):
            prediction = objective.predict(params, batch, key)
            losses = objective.losses(prediction, batch)
            return jnp.mean(losses), Evidence(losses, prediction)

        direction, evidence = jax.grad(loss, has_aux=True)(params)
        return Proposal(direction, evidence, state)

    return Direction(lambda params: (), propose)
