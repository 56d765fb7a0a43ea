"""Classifiers on the tokens of an image: a linear map, or the vote of the nearest labelled images."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sparse_vis.types import Tokens

FEATURES = ("mean_S", "cls", "concat_S")  # named as in the tables of evaluations
INIT_STD = 0.01
LEAST = 1e-12  # smallest length by which a feature is divided


def feature_of(tokens: Tokens, feature: str) -> Float[Array, "B f"]:
    """One vector per image, float32: the mean of S, the class token, or all tokens of S in a row."""
    chosen = tokens.cls if feature == "cls" else tokens.S
    chosen = chosen.astype(jnp.float32)
    return chosen.mean(axis=1) if feature == "mean_S" else chosen.reshape(-1, math.prod(chosen.shape[1:]))


class LinearClassifier(nn.Module):
    """Logits = feature · kernel + bias."""

    classes: tuple[str, ...]  # their names
    feature: str  # one of FEATURES
    width: int  # f, of the feature

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[Array, "B classes"]:
        return _logits(self, feature_of(tokens, self.feature))


class Segmenter(nn.Module):
    """Class logits of every token of S."""

    classes: tuple[str, ...]  # their names
    width: int  # d

    @nn.compact
    def __call__(self, S: Float[Array, "B r d"]) -> Float[Array, "B r classes"]:
        return _logits(self, S.astype(jnp.float32))


def _logits(module: LinearClassifier | Segmenter, x: Float[Array, "*B f"]) -> Float[Array, "*B classes"]:
    shape = (module.width, len(module.classes))
    kernel = module.param("kernel", nn.initializers.normal(INIT_STD, jnp.float32), shape)
    bias = module.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)
    return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST) + bias


class NearestClassifier(nn.Module):
    """Logits = logarithms of the classes' shares of a vote, as in `evals/classes/knn.py`.

    The k labelled images of largest cosine vote for their class with weight exp(cosine / temperature).
    """

    classes: tuple[str, ...]  # this and the next two: as in LinearClassifier
    feature: str
    width: int
    count: int  # number of labelled images
    k: int  # number of images that vote
    temperature: float

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[Array, "B classes"]:
        zeros = nn.initializers.zeros
        gallery = self.param("gallery", zeros, (self.count, self.width), jnp.float32)  # rows of length 1
        label = self.param("label", zeros, (self.count,), jnp.int32)
        x = feature_of(tokens, self.feature)
        x = x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), LEAST)
        cosine = jnp.matmul(x, gallery.T, precision=jax.lax.Precision.HIGHEST)
        cosine, nearest = jax.lax.top_k(cosine, self.k)
        share = jax.nn.softmax(cosine / self.temperature, axis=1)
        votes = jax.nn.one_hot(label[nearest], len(self.classes), dtype=jnp.float32)
        return jnp.log(jnp.einsum("bk,bkc->bc", share, votes))
