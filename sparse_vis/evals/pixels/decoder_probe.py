"""The published reconstruction probe: a new decoder, trained on the frozen features of any encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Num

from sparse_vis.evals.baselines import as_unit
from sparse_vis.evals.features import AnyArray
from sparse_vis.losses.reconstruction import code_cross_entropy, pixel_mse
from sparse_vis.models.block import Compute, Sizes
from sparse_vis.models.decoder import Decoder
from sparse_vis.models.vqgan import VQGAN
from sparse_vis.ops.resize import resize_bicubic
from sparse_vis.runtime.errors import UserError
from sparse_vis.train.optimizer import make_optimizer


@dataclass(frozen=True)
class Protocol:
    """How the decoder is built and trained; the defaults are the released ones (docs/method.md section 8).

    Attributes:
        target: "vq", codes of the tokenizer, or "pixel".
        learning_rate, weight_decay: of AdamW, constant. clip: maximum global gradient norm.
        batch_size: images per step. epochs: passes over train.
        validation: share of train that is held out (and not used here).
        scale: range of crop area / image area.
        width, layers, heads, mlp_dim: of the decoder (docs/method.md section 4).
        dtype: of its computation; norms, head and loss are always float32.
    """

    target: str = "vq"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    clip: float = 5.0
    batch_size: int = 128
    epochs: int = 20
    validation: float = 0.1
    scale: tuple[float, float] = (0.36, 1.0)
    width: int = 512
    layers: int = 6
    heads: int = 8
    mlp_dim: int = 2048
    dtype: str = "bfloat16"


class DecoderProbe:
    """Trains a decoder on batches of frozen features.

    Args:
        grid: (rows, columns) of the patches. size: side of the images in pixels. protocol: Protocol.
        tokenizer: module and parameters that compute the codes of the VQ target; None for the pixel target.
        seed: of the initial weights.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        size: int,
        protocol: Protocol,
        tokenizer: tuple[VQGAN, dict] | None,
        seed: int,
    ):
        if size % grid[0]:
            raise UserError(
                f"images of {size} px are no multiple of {grid[0]} patches; change the image size."
            )
        self.grid, self.patch, self.protocol, self.seed = grid, size // grid[0], protocol, seed
        self.tokenizer, self.tokenizer_params = tokenizer or (None, None)
        self.params, self._state, self.decoder = None, None, None

    def learn(self, Z: Float[AnyArray, "B n d"], images: Num[np.ndarray, "B H W 3"]) -> float:
        """One step of the optimizer; returns the loss.

        Args:
            Z: frozen features of the images. images: uint8 or float in [0, 1], to be reconstructed.
        """
        Z, p = jnp.asarray(Z), self.protocol
        if self.decoder is None:
            codes = self.tokenizer.num_embeddings if self.tokenizer else 0
            sizes = Sizes(p.width, p.layers, p.heads, p.mlp_dim)
            self.decoder = Decoder(Z.shape[-1], sizes, self.patch, codes, Compute(p.dtype))
            self.params = self.decoder.init(jax.random.key(self.seed), Z, self.grid)["params"]
            self._state = _optimizer(p).init(self.params)
        target = _target(self.tokenizer_params, as_unit(images), self.tokenizer, self.grid)
        self.params, self._state, loss = _update(
            self.params, self._state, Z, target, self.decoder, self.grid, p
        )
        return float(loss)  # reading it keeps one step in flight; many can hang JAX on few cores

    def reconstruct(self, Z: Float[AnyArray, "B n d"]) -> Float[np.ndarray, "B h w 3"]:
        """Pixels in [0, 1]; with the VQ target every patch becomes one code of the tokenizer."""
        params = self.params, self.tokenizer_params
        return np.asarray(_reconstruct(params, jnp.asarray(Z), self.decoder, self.tokenizer, self.grid))


def fit(probe: DecoderProbe, epoch: Callable[[int], Iterable[tuple[AnyArray, AnyArray]]]) -> list[float]:
    """Train for all epochs of the protocol; returns the mean loss of every epoch.

    Args:
        probe: untrained. epoch: number of the epoch → its batches of features and images.

    Raises:
        UserError: no batches.
    """
    losses = []
    for number in range(probe.protocol.epochs):
        found = [probe.learn(Z, images) for Z, images in epoch(number)]
        if not found:
            raise UserError("The reconstruction probe has no training batches; give at least one image.")
        losses.append(float(np.mean(found)))
    return losses


def _optimizer(protocol: Protocol) -> optax.GradientTransformation:
    rate = optax.constant_schedule(protocol.learning_rate)
    return make_optimizer(rate, weight_decay=protocol.weight_decay, b1=0.9, b2=0.999, clip=protocol.clip)


@partial(jax.jit, static_argnums=(2, 3))
def _target(
    params: dict | None, pixels: Float[AnyArray, "B H W 3"], tokenizer: VQGAN | None, grid: tuple[int, int]
) -> Array:
    """The pixels, or codes on the grid of patches, for which images are resized if necessary."""
    if tokenizer is None:
        return pixels
    size = (grid[0] * tokenizer.stride, grid[1] * tokenizer.stride)
    if pixels.shape[1:3] != size:
        pixels = resize_bicubic(pixels, size, align_corners=False)
    latent = tokenizer.apply({"params": params}, pixels, method="encode")
    return tokenizer.apply({"params": params}, latent, method="codes")


@partial(jax.jit, static_argnums=(4, 5, 6))
def _update(params: dict, state, Z: Array, target: Array, decoder: Decoder, grid, protocol: Protocol):
    def loss(params):
        out = decoder.apply({"params": params}, Z, grid)
        return code_cross_entropy(out, target) if decoder.codes else pixel_mse(out, target)

    value, gradient = jax.value_and_grad(loss)(params)
    change, state = _optimizer(protocol).update(gradient, state, params)
    moved = optax.apply_updates(params, change)
    return {**moved, "fourier": params["fourier"]}, state, value


@partial(jax.jit, static_argnums=(2, 3, 4))
def _reconstruct(params: tuple, Z: Array, decoder: Decoder, tokenizer: VQGAN | None, grid) -> Array:
    out = decoder.apply({"params": params[0]}, Z, grid)
    if tokenizer is None:
        return jnp.clip(out, 0, 1)
    codes = jnp.argmax(out, axis=-1).reshape(-1, *grid)
    return tokenizer.apply({"params": params[1]}, codes, method="decode")
