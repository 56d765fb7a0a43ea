"""Linear maps with the two initialisations of method.md section 5."""

from __future__ import annotations

from flax import linen as nn
from jax import random

INIT_STD = 0.02  # of the ViT, as published


def vit_init(std: float):
    """Initializer of the ViT; truncated at +-2 upstream, 100 standard deviations away."""
    return nn.initializers.normal(std)


def uniform_init(fan_in: int):
    """Initializer: uniform in +-1 / sqrt(fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=None: random.uniform(key, shape, dtype or "float32", -bound, bound)


def uniform_linear(features: int, fan_in: int, dtype=None, name: str | None = None) -> nn.Dense:
    """nn.Dense fan_in -> features whose weight and bias start uniform in +-1 / sqrt(fan_in)."""
    init = uniform_init(fan_in)
    return nn.Dense(features, dtype=dtype, kernel_init=init, bias_init=init, name=name)
