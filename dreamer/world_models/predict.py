"""Open-loop prediction: what a model expects of sequences whose beginning alone it has seen."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from dreamer.nn.observations import reconstruction_losses
from dreamer.types import Action, Batch, Metrics, Spaces
from dreamer.world_models.base import WorldModel
from dreamer.world_models.imagine import follow


def predict(
    model: WorldModel, spaces: Spaces, batch: Batch, key: Array, context: int
) -> tuple[dict[str, Float32[Array, "B T *shape"]], Metrics]:
    """See the first ``context`` steps of each sequence, then imagine the rest blindly.

    The model is given the recorded actions but no observation after the context. Sequences that cross a reset after the
    context count only up to it.

    Args:
        model: parameters.
        spaces: observation spaces.
        batch: B sequences of T steps.
        key: random key.
        context: steps that are seen, less than T.

    Returns:
        Predicted observations ``[B, T, ...]`` (context reconstructed, rest imagined), and their errors: the loss of
        each key averaged over the imagined steps, and the same for the prediction "as in the last step seen". Nothing
        of either if the model does not predict observations.
    """
    observe_key, imagine_key = jax.random.split(key)
    seen = jax.tree.map(lambda x: x.swapaxes(0, 1)[:context], model.observe(batch, observe_key).states)
    action: Action = {name: jnp.swapaxes(value, 0, 1)[context:] for name, value in batch.prev_action.items()}
    dreamt = follow(model, jax.tree.map(lambda x: x[-1], seen), action, imagine_key)
    states = jax.tree.map(lambda a, b: jnp.concatenate([a, b]).swapaxes(0, 1), seen, dreamt)
    predictions = model.decode(states)
    if predictions is None:
        return {}, {}
    steps = batch.reward.shape[1]
    valid = jnp.cumprod(1.0 - jnp.asarray(batch.is_first, jnp.float32)[:, context:], 1)
    repeated = jax.tree.map(lambda x: jnp.repeat(x[:, context - 1 : context], steps, 1), predictions)
    metrics = {}
    for name, guess in (("open_loop", predictions), ("repeat_last", repeated)):
        for loss, error in reconstruction_losses(guess, batch.obs, spaces).items():
            average = (error[:, context:] * valid).sum() / jnp.maximum(1, valid.sum())
            metrics[f"report/{name}/{loss.removeprefix('obs/')}"] = average
    return predictions, metrics


__all__ = ["predict"]
