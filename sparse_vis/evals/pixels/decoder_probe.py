"""The published reconstruction probe: a new decoder, trained on frozen Z = L S, or U without S and L."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Num
from ml_collections import ConfigDict

from sparse_vis.evals.columns import compared, quality
from sparse_vis.evals.dataset import Part
from sparse_vis.evals.features import AnyArray, Regrouped, as_unit, square_grid
from sparse_vis.evals.maps import published_images as published
from sparse_vis.evals.pixels.fid import Moments, at_256, to_uint8
from sparse_vis.evals.pixels.networks import identity
from sparse_vis.evals.task import Bench, Result, Task
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.losses.reconstruction import code_cross_entropy, pixel_mse
from sparse_vis.models.block import Compute, Sizes
from sparse_vis.models.decoder import Decoder
from sparse_vis.models.vqgan import VQGAN
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import Progress

read_tokenizer = cache(load_tokenizer)
TEST_KEY = 2**32  # in the seed of test crops, in place of the epoch, which never is as large


@dataclass(frozen=True)
class DecoderProtocol:
    """How the decoder is built and trained; the defaults are the released ones (docs/method.md section 8)."""

    target: str = "vq"  # "vq", codes of the tokenizer, or "pixel"
    learning_rate: float = 1e-4  # of AdamW, constant
    weight_decay: float = 1e-4
    clip: float = 5.0  # maximum global gradient norm
    batch_size: int = 128
    epochs: int = 20
    validation: float = 0.1  # share of train that is held out, and not used at all
    scale: tuple[float, float] = (0.36, 1.0)  # range of crop area / image area
    width: int = 512  # this and the next three: sizes of the decoder (docs/method.md section 4)
    layers: int = 6
    heads: int = 8
    mlp_dim: int = 2048
    dtype: str = "bfloat16"  # of the decoder; its norms and head, and the loss, are always float32


class DecoderProbe:
    """Trains a decoder on batches of frozen features of images of `size` pixels and (rows, columns) patches.

    `tokenizer`: (module, parameters), for the codes of the VQ target; None for the pixel target.
    """

    def __init__(
        self, grid: tuple[int, int], size: int, protocol: DecoderProtocol, tokenizer: tuple | None, seed: int
    ):
        if size % grid[0]:
            what = f"the image size {size} is not a multiple of the {grid[0]} patches per side"
            raise UserError(f"{what}; change it.")
        self.grid, self.patch, self.protocol, self.seed = grid, size // grid[0], protocol, seed
        self.tokenizer, self.tokenizer_params = tokenizer or (None, None)
        self.params, self._state, self.decoder = None, None, None

    def learn(self, Z: Float[AnyArray, "B n d"], images: Num[np.ndarray, "B H W 3"]) -> float:
        """Take one step of the optimizer towards the images, uint8 or in [0, 1]; returns the loss."""
        Z, p = jnp.asarray(Z), self.protocol
        if self.decoder is None:
            codes = self.tokenizer.num_embeddings if self.tokenizer else 0
            sizes = Sizes(p.width, p.layers, p.heads, p.mlp_dim)
            self.decoder = Decoder(Z.shape[-1], sizes, self.patch, codes, Compute(p.dtype))
            self.params = self.decoder.init(jax.random.key(self.seed), Z, self.grid)["params"]
            self._state = published.adamw(p).init(self.params)
        target = _target(self.tokenizer_params, as_unit(images), self.tokenizer, self.grid)
        static = self.decoder, self.grid, p
        self.params, self._state, loss = _update(self.params, self._state, Z, target, *static)
        return float(loss)  # reading it keeps one step in flight; many can hang JAX on few cores

    def reconstruct(self, Z: Float[AnyArray, "B n d"]) -> Float[np.ndarray, "B h w 3"]:
        """Pixels in [0, 1]; with the VQ target every patch becomes one code of the tokenizer."""
        params = self.params, self.tokenizer_params
        return np.asarray(_reconstruct(params, jnp.asarray(Z), self.decoder, self.tokenizer, self.grid))


def fit(probe: DecoderProbe, epoch: Callable[[int], Iterable[tuple[AnyArray, AnyArray]]]) -> list[float]:
    """Train for all epochs of the protocol; returns the mean loss of every epoch.

    `epoch`: number → its batches of features and images. Raises UserError if there are none.
    """
    losses = []
    for number in range(probe.protocol.epochs):
        found = [probe.learn(Z, images) for Z, images in epoch(number)]
        if not found:
            raise UserError("the reconstruction probe has no training batches; give at least one image.")
        losses.append(float(np.mean(found)))
    return losses


@partial(jax.jit, static_argnums=(2, 3))
def _target(
    params: dict | None, pixels: Float[AnyArray, "B H W 3"], tokenizer: VQGAN | None, grid: tuple[int, int]
) -> Array:
    """The pixels; or with a tokenizer the codes on the grid of patches."""
    if tokenizer is None:
        return pixels
    return tokenizer.apply({"params": params}, pixels, grid, method="codes_on")


@partial(jax.jit, static_argnums=(4, 5, 6))
def _update(params: dict, state, Z: Array, target: Array, decoder: Decoder, grid, protocol: DecoderProtocol):
    def loss(params):
        out = decoder.apply({"params": params}, Z, grid)
        return code_cross_entropy(out, target) if decoder.codes else pixel_mse(out, target)

    value, gradient = jax.value_and_grad(loss)(params)
    change, state = published.adamw(protocol).update(gradient, state, params)
    moved = optax.apply_updates(params, change)
    return {**moved, "fourier": params["fourier"]}, state, value


@partial(jax.jit, static_argnums=(2, 3, 4))
def _reconstruct(params: tuple, Z: Array, decoder: Decoder, tokenizer: VQGAN | None, grid) -> Array:
    out = decoder.apply({"params": params[0]}, Z, grid)
    if tokenizer is None:
        return jnp.clip(out, 0, 1)
    codes = jnp.argmax(out, axis=-1).reshape(-1, *grid)
    return tokenizer.apply({"params": params[1]}, codes, method="decode")


FACTORS, DENSE = ("sparse", "spatial"), ("dense",)


def _wanted(bench: Bench) -> tuple[str, ...]:
    """The features that the probe reads: S and L if the encoder gives both, else U."""
    return FACTORS if set(FACTORS) <= set(bench.encoder.gives) else DENSE


def _read(found: dict[str, np.ndarray]) -> Float[np.ndarray, "B n d"]:
    """The decoder's input: Z = L S, or U."""
    return found["dense"] if "dense" in found else found["spatial"] @ found["sparse"]


def _pairs(
    bench: Bench, part: Part, make: published.Maker, rows: np.ndarray, size: int, progress: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features and images in the order of `rows`, `size` at a time, each valid until the next is requested.

    Each process reads and encodes its share of the images.
    """
    groups, wanted = Regrouped(size), _wanted(bench)

    def compute(images: np.ndarray, _) -> dict[str, np.ndarray]:
        return bench.encode(images, *wanted) | {"images": images}

    each = min(bench.batch, size)
    for found in published.squares_in_shares(part, make, rows, each, lambda record, cut: None, compute):
        progress.add(len(found["images"]))
        for group in groups.add(found):
            yield _read(group), group["images"]
    for group in groups.rest():
        yield _read(group), group["images"]


def _judge(bench: Bench, probe: DecoderProbe, make: published.Maker, name: str) -> tuple[dict, dict]:
    """Metrics over all test images, which are read once; and absent metric → reason."""
    test, networks, kept, true = bench.data.parts["test"], bench.networks, [], None
    progress = bench.progress(f"reconstruction_probe, {name}", len(test))
    for Z, images in _pairs(bench, test, make, np.arange(len(test)), bench.batch, progress):
        kept.append(compared(probe.reconstruct(Z), images, networks))
        if "inception" in kept[-1]:
            found = networks.inception(at_256(to_uint8(images)))
            true = (true or Moments.empty(found.shape[1])).update(found)
    columns = jax.tree.map(lambda *parts: np.concatenate(parts), *kept)
    return quality(columns, networks, lambda: true)


def _measure(bench: Bench, config: ConfigDict) -> Result:
    chosen = DecoderProtocol(**config.eval.reconstruction_probe, dtype=config.eval.dtype)
    t, test = config.model.tokenizer, bench.data.parts["test"]
    train = bench.data.parts["train"].without(chosen.validation, bench.seed)
    patches = _read(bench.encode(next(test.only(np.s_[:1]).batches(1)).image, *_wanted(bench))).shape[1]
    if patches == 1:
        return Result({}, {"reconstruction_probe": "it has one token for the whole image"})
    tokenizer = read_tokenizer(t.path, t.dtype) if chosen.target == "vq" else None
    probe = DecoderProbe(square_grid(patches), test.size, chosen, tokenizer, bench.seed)
    progress = bench.progress("reconstruction_probe", chosen.epochs * len(train))

    def epoch(number: int) -> Iterator:
        epoch = published.epoch(train, chosen.scale, bench.seed, number)
        return _pairs(bench, train, *epoch, chosen.batch_size, progress)

    losses, metrics, absent = fit(probe, epoch), {}, {}
    feature = "Z" if _wanted(bench) == FACTORS else "U"
    random = published.random_cuts(test.size, chosen.scale, bench.seed, TEST_KEY)
    for name, make in (("random crops", random), ("centre", published.centre_cuts(test))):
        metrics[f"{feature}, {name}"], absent = _judge(bench, probe, make, name)
    return Result(metrics, absent, {"losses": losses})


def _settings(config: ConfigDict) -> dict:
    chosen = DecoderProtocol(**config.eval.reconstruction_probe, dtype=config.eval.dtype)
    t = config.model.tokenizer
    tokenizer = {"tokenizer": identity(t.path), "tokenizer_dtype": t.dtype} if chosen.target == "vq" else {}
    tests = {"random crops": "as in training (released)", "centre": published.ABOUT["test"]}
    about = {"images": published.ABOUT | {"test": tests}, "departures": published.departures(chosen)}
    return dataclasses.asdict(chosen) | published.OPTIMIZER | about | tokenizer


RECONSTRUCTION_PROBE = Task(_measure, (), ("dense",), lambda data: {}, _settings, networks=True)
