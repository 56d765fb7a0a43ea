"""The loss of fine-tuning: cross-entropy of the classes, with smoothed labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def smoothed_cross_entropy(
    logits: Float[Array, "B classes"],
    labels: Int[Array, " B"],
    smoothing: float,
    other: Int[Array, " B"] | None = None,
    share: Float[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean over the batch of CE((1 - e) onehot(label) + e / classes, softmax(logits)), e the smoothing.

    An image without a class (label -1) contributes zero.

    Args:
        other, share: with mixup, the class of the image mixed in, whose CE has the weight 1 - share.

    Returns:
        The loss, and the terms that a run logs: the loss, and the share of images whose label has the largest
        logit.
    """
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))

    def errors(labels):
        true = jnp.take_along_axis(logs, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
        error = -(1 - smoothing) * true - smoothing * logs.mean(axis=1)
        return jnp.where(labels >= 0, error, 0.0)

    error = errors(labels)
    if share is not None:
        error = share * error + (1 - share) * errors(other)
    loss = jnp.mean(error)
    right = jnp.mean((logits.argmax(axis=1) == labels).astype(jnp.float32))
    return loss, {"class_loss": loss, "class_accuracy": right}
