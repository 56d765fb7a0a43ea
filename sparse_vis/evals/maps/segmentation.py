"""Semantic segmentation from frozen features: heads on U, on Z = L S and on (S, L), scored by mIoU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Integer
from ml_collections import ConfigDict

from sparse_vis.data.cut import labels_at
from sparse_vis.evals.features import AnyArray, Regrouped, square_grid
from sparse_vis.evals.maps import published_images as published
from sparse_vis.evals.maps.label_maps import IGNORE, centre_square, label_map
from sparse_vis.evals.maps.localization import bilinear_weights
from sparse_vis.evals.task import Bench, Result, Task
from sparse_vis.models.layers import uniform_linear
from sparse_vis.ops.token_maps import Grid
from sparse_vis.runtime.errors import UserError

KEYS = ("dense", "sparse", "spatial")
TILE = 128  # side in pixels; the interpolated scores of 150 classes take 10 MB
MOMENTUM = 0.9  # of BatchNorm's running statistics; PyTorch calls it 0.1


def confusion(
    predicted: Integer[AnyArray, "*shape"], labels: Integer[AnyArray, "*shape"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Number of pixels of each true (row) and predicted (column) class; pixels labelled 255 do not count."""
    true = np.asarray(labels).astype(np.int64)
    cells = (true * classes + np.asarray(predicted))[true != IGNORE]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def mean_iou(matrix: Int[AnyArray, "classes classes"]) -> tuple[float, Float[np.ndarray, " classes"]]:
    """Mean IoU over the classes that occur in labels or predictions, and each class's IoU (nan for others).

    The mean is nan if no class occurs.
    """
    both = np.diag(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - both
    iou = np.where(union > 0, both / np.maximum(union, 1), np.nan)
    return float(iou[union > 0].mean()) if union.any() else float("nan"), iou


def batch_scores(
    predicted: Integer[AnyArray, "N ..."], labels: Integer[AnyArray, "N ..."], classes: int, batch: int
) -> dict[str, float]:
    """The published scores: macro-Jaccard (`mean_iou`) and accuracy of each batch, averaged over batches.

    Batches have `batch` images, the last may have fewer. Batches in which every label is 255 are left out;
    the scores are nan if no other is left.
    """
    starts = range(0, len(labels), batch)
    matrices = [confusion(predicted[i : i + batch], labels[i : i + batch], classes) for i in starts]
    found = [(mean_iou(m)[0], np.trace(m) / m.sum()) for m in matrices if m.any()]
    jaccard, accuracy = np.mean(found, axis=0) if found else (np.nan, np.nan)
    return {"macro_jaccard": float(jaccard), "accuracy": float(accuracy)}


class HeadInput(NamedTuple):
    """Input of a head: one token per patch (U or Z), or the tokens of S with their maps L."""

    x: Float[AnyArray, "B t f"]
    L: Float[AnyArray, "B n t"] | None = None

    @property
    def patches(self) -> int:
        """The number n of patches."""
        return (self.x if self.L is None else self.L).shape[1]


def variants(features: Mapping[str, AnyArray]) -> dict[str, HeadInput]:
    """The inputs of heads that an encoder's features allow: "U", "Z" = L S, and "SL", the factors S and L."""
    found = {}
    if "dense" in features and features["dense"].shape[1] > 1:  # raw pixels are one token
        found["U"] = HeadInput(features["dense"])
    if "sparse" in features and "spatial" in features:
        S, L = features["sparse"], features["spatial"]
        found |= {"Z": HeadInput(L @ S), "SL": HeadInput(S, L)}
    return found


@dataclass(frozen=True)
class HeadProtocol:
    """How a head is built and trained; the defaults are the released ones (docs/method.md section 8)."""

    batch_norm: bool = True  # whether to normalise the features first
    dice: float = 1.0  # weight of the Dice loss, which is added to cross-entropy
    # Resolution of the loss: "logits", that of patches, to which labels are resized by nearest neighbour; or
    # "pixels", that of labels, to which logits are interpolated.
    at: str = "logits"
    learning_rate: float = 1e-4  # of AdamW, constant
    weight_decay: float = 1e-4
    clip: float = 5.0  # maximum global gradient norm
    batch: int = 2048  # images per step
    epochs: int = 80
    scale: tuple[float, float] = (0.25, 1.0)  # range of crop area / image area (0.5 to 1 for VOC)
    dtype: str = "bfloat16"  # of the linear map; BatchNorm and loss are always float32


PUBLISHED = HeadProtocol()
LINEAR = HeadProtocol(batch_norm=False, dice=0.0, at="pixels", learning_rate=1e-3, batch=16)


class SegmentationHead(nn.Module):
    """BatchNorm if wanted, then the same linear map, in `dtype`, at every token (a 1×1 convolution)."""

    classes: int
    batch_norm: bool
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B t f"], train: bool) -> Float[Array, "B t classes"]:
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM, epsilon=1e-5)(x)
        return uniform_linear(self.classes, x.shape[-1], self.dtype)(x).astype(jnp.float32)


def pixel_logits(
    logits: Float[Array, "B t classes"], L: Float[Array, "B n t"] | None, grid: Grid, size: tuple[int, int]
) -> Float[Array, "B H W classes"]:
    """A head's logits at every pixel, interpolated bilinearly (half-pixel centres, edge values extended).

    With L, class *probabilities* of the tokens are weighted by L and interpolated, and the logarithm of
    p(class | pixel) = Σ_t L[pixel, t] softmax(logits[t]) is returned. Weighting logits instead would equal
    the linear head on Z, as rows of L sum to one: L (S W + b) = Z W + b.

    Args:
        grid: (gh, gw) patches, row-major. size: (H, W) pixels that the grid covers.
    """
    image = _at_patches(logits, L).reshape(len(logits), *grid, -1)
    image = jax.image.resize(image, (len(image), *size, image.shape[-1]), "bilinear", antialias=False)
    return image if L is None else jnp.log(jnp.maximum(image, 1e-12))


def _at_patches(logits: Array, L: Array | None) -> Array:
    return logits if L is None else jnp.matmul(L, jax.nn.softmax(logits), precision="highest")


def segmentation_loss(
    logits: Float[AnyArray, "B H W classes"], labels: Integer[AnyArray, "B H W"], dice: float | Array = 1.0
) -> Float[Array, ""]:
    """Mean cross-entropy plus dice · (1 − mean over classes of (2 Σ p y + 1) / (Σ p + Σ y + 1)).

    Pixels labelled 255 are left out of both; the sums are over all other pixels of the batch.
    """
    known = labels != IGNORE
    y = jnp.where(known, labels, 0)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    p = jax.nn.softmax(logits) * known[..., None]
    one_hot = jax.nn.one_hot(y, logits.shape[-1], dtype=jnp.float32) * known[..., None]
    both, each = (p * one_hot).sum((0, 1, 2)), (p + one_hot).sum((0, 1, 2))
    overlap = jnp.mean((2 * both + 1) / (each + 1))
    return jnp.sum(cross_entropy * known) / jnp.maximum(known.sum(), 1) + dice * (1 - overlap)


class Probe:
    """Trains a head on batches of frozen features, and scores it; each shape of a batch is compiled once.

    The caller gives the batches of all epochs of the protocol. `grid` is (gh, gw) patches.
    """

    def __init__(self, grid: Grid, classes: int, protocol: HeadProtocol = PUBLISHED, seed: int = 0):
        self.grid, self.protocol, self.seed = grid, protocol, seed
        self.head = SegmentationHead(classes, protocol.batch_norm, protocol.dtype)
        self.variables, self._state = None, None

    def learn(self, tokens: HeadInput, labels: Integer[AnyArray, "B H W"]) -> float:
        """Take one step of the optimizer on B images, labelled with classes or 255; returns the loss.

        Raises UserError if the grid does not fit, or labels are out of range.
        """
        self._check(tokens, labels)
        if self.protocol.at == "logits":
            labels = labels_at(np.asarray(labels), self.grid)
        if self.variables is None:
            self.variables = self.head.init(jax.random.key(self.seed), jnp.asarray(tokens.x), True)
            self._state = published.adamw(self.protocol).init(self.variables["params"])
        static = self.head, self.grid, self.protocol
        self.variables, self._state, loss = _update(self.variables, self._state, tokens, labels, *static)
        return float(loss)  # reading it keeps one step in flight; many can hang JAX on few cores

    def predict(self, tokens: HeadInput, size: tuple[int, int]) -> Int[np.ndarray, "B H W"]:
        """The most likely class of every pixel, for images of size (H, W); ties go to the lowest class.

        Raises UserError if the head has not been trained.
        """
        return np.stack([most_likely(scores, size) for scores in self._scores(tokens)])

    def judge(
        self, tokens: HeadInput, labels: list[Integer[AnyArray, "_ _"]] | Integer[AnyArray, "B H W"]
    ) -> Int[np.ndarray, "B classes classes"]:
        """The confusion matrix of each image at its label map's size; errors as in `learn` and `predict`."""
        self._check(tokens, labels)
        classes, scores = self.head.classes, self._scores(tokens)
        pairs = zip(scores, labels, strict=True)
        return np.stack([confusion(most_likely(x, true.shape), true, classes) for x, true in pairs])

    def _scores(self, tokens: HeadInput) -> Float[Array, "B rows columns classes"]:
        if self.variables is None:
            raise UserError("segmentation has no training batches; give at least one image and one epoch.")
        return _patch_scores(self.variables, tokens, self.head, self.grid)

    def _check(self, tokens: HeadInput, labels: list | AnyArray) -> None:
        (rows, columns), classes = self.grid, self.head.classes
        if tokens.patches != rows * columns or len(tokens.x) != len(labels):
            raise UserError(
                f"{len(tokens.x)} images of {tokens.patches} patches do not fit {len(labels)} label maps and "
                f"the grid {rows}x{columns}; pass the grid of the features and one map per image."
            )
        known = np.concatenate([np.asarray(map)[np.asarray(map) != IGNORE] for map in labels])
        if known.size and not 0 <= known.min() <= known.max() < classes:
            raise UserError(
                f"segmentation labels go from {known.min()} to {known.max()}; with {classes} classes they "
                f"must lie between 0 and {classes - 1}, or be {IGNORE} (ignored)."
            )


@partial(jax.jit, static_argnames=("head", "grid", "protocol"))
def _update(variables: dict, state: Any, tokens: HeadInput, labels: Array, head, grid, protocol):
    def loss(params):
        logits, changed = head.apply(variables | {"params": params}, tokens.x, True, mutable=["batch_stats"])
        image = pixel_logits(logits, tokens.L, grid, labels.shape[1:])
        return segmentation_loss(image, labels, protocol.dice), changed

    (value, changed), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    if protocol.batch_norm:
        rows = tokens.x.shape[0] * tokens.x.shape[1]

        def unbiased(old: dict, new: dict) -> dict:
            """PyTorch's running variance has the batch's over rows - 1, Flax's over rows."""
            kept = MOMENTUM * old["var"]
            return {**new, "var": kept + (new["var"] - kept) * (rows / max(rows - 1, 1))}

        pair = variables["batch_stats"], changed["batch_stats"]
        changed = {"batch_stats": jax.tree.map(unbiased, *pair, is_leaf=lambda node: "var" in node)}
    change, state = published.adamw(protocol).update(gradient, state, variables["params"])
    return {**changed, "params": optax.apply_updates(variables["params"], change)}, state, value


@partial(jax.jit, static_argnames=("head", "grid"))
def _patch_scores(variables: dict, tokens: HeadInput, head, grid):
    """Logits (with L, probabilities) of each patch, as an image of patches."""
    logits = head.apply(variables, tokens.x, False)
    return _at_patches(logits, tokens.L).reshape(len(logits), *grid, -1)


def most_likely(
    scores: Float[Array, "rows columns classes"], size: tuple[int, int]
) -> Int[np.ndarray, "H W"]:
    """The class of largest score at every pixel, with scores interpolated as by `pixel_logits`.

    It is computed in tiles of TILE x TILE pixels, so that one program serves label maps of all sizes.
    """
    sides = zip(scores.shape, size, strict=False)
    places = [(np.arange(pixels) + 0.5) * cells / pixels - 0.5 for cells, pixels in sides]
    blocks = [np.pad(x, (0, -len(x) % TILE), mode="edge").reshape(-1, TILE) for x in places]
    rows, columns = (
        [bilinear_weights(block, cells).astype(np.float32) for block in side]
        for side, cells in zip(blocks, scores.shape, strict=False)
    )
    tiles = [[np.asarray(_tile(scores, down, across)) for across in columns] for down in rows]
    return np.block(tiles)[: size[0], : size[1]]


@jax.jit
def _tile(scores: Array, down: Array, across: Array) -> Array:
    image = jnp.einsum("yi,xj,ijc->yxc", down, across, scores, precision="highest")
    return jnp.argmax(image, axis=-1)


class Heads:
    """Both heads on every input that an encoder gives, and crops that do not yet fill a batch."""

    def __init__(self, protocols: dict[str, HeadProtocol], classes: int, seed: int):
        self.protocols, self.classes, self.seed = protocols, classes, seed
        self.probes: dict[tuple[str, str], Probe] = {}
        self._waiting = {name: Regrouped(protocol.batch) for name, protocol in protocols.items()}

    def each(self, features: dict[str, np.ndarray], names: Iterable[str]):
        """Yield ((input, head), its Probe, its HeadInput) for every input and the named heads."""
        for variant, tokens in variants(features).items():
            for name in names:
                if (variant, name) not in self.probes:
                    grid = square_grid(tokens.patches)
                    self.probes[variant, name] = Probe(grid, self.classes, self.protocols[name], self.seed)
                yield (variant, name), self.probes[variant, name], tokens

    def learn(self, crops: dict[str, np.ndarray] | None = None) -> None:
        """Add crops (features and "labels"); each head takes a step whenever its batch is full.

        Without crops, the heads take a last step with those that do not fill a batch.
        """
        for name, waiting in self._waiting.items():
            for group in waiting.add(crops) if crops else waiting.rest():
                labels = group.pop("labels")
                for _, probe, tokens in self.each(group, (name,)):
                    probe.learn(tokens, labels)


def _protocols(e: ConfigDict) -> dict[str, HeadProtocol]:
    """Name of each head → its protocol, as changed by config.eval.segmentation and config.eval.dtype."""
    s, both = e.segmentation, dict(epochs=e.segmentation.epochs, scale=e.segmentation.scale, dtype=e.dtype)
    return {
        "published": dataclasses.replace(PUBLISHED, batch=s.batch, **both),
        "linear": dataclasses.replace(LINEAR, **both),
    }


def _measure(bench: Bench, config: ConfigDict) -> Result:
    train, test = bench.data.parts["train"], bench.data.parts["test"]
    heads = Heads(_protocols(config.eval), train.map_classes, bench.seed)
    chosen = config.eval.segmentation
    progress = bench.progress("segmentation", chosen.epochs * len(train))

    def crop(record, cut):
        return cut.labels(label_map(train, record))

    def encoded(images, labels):
        return {**bench.encode(images, *KEYS), "labels": np.stack(labels)}

    def whole(record, cut):
        labels = label_map(test, record)
        return cut.labels(labels), centre_square(labels, size=test.size, short_side=test.short_side)

    for number in range(chosen.epochs):
        epoch = published.epoch(train, chosen.scale, bench.seed, number)
        for crops in published.squares_in_shares(train, *epoch, bench.batch, crop, encoded):
            if not variants(crops):
                return Result({}, {"segmentation": "it has one token for the whole image"})
            heads.learn(crops)
            progress.add(len(crops["labels"]))
        heads.learn()
    cuts, rows, found = published.centre_cuts(test), np.arange(len(test)), []

    def judged(images, labels):
        features, columns = bench.encode(images, *KEYS), {}
        at_size, own = ([pair[i] for pair in labels] for i in (0, 1))
        for (variant, name), probe, tokens in heads.each(features, heads.protocols):
            columns[variant, name, "matrix"] = probe.judge(tokens, own)
            if probe.protocol.at == "logits":
                columns[variant, name, "predicted"] = probe.predict(tokens, probe.grid)
                columns[variant, name, "labels"] = labels_at(np.stack(at_size), probe.grid)
        return columns

    for columns in published.squares_in_shares(test, cuts, rows, bench.batch, whole, judged):
        # With many classes, the matrices of all images would take gigabytes.
        found.append(
            {key: x.sum(axis=0, keepdims=True) if key[-1] == "matrix" else x for key, x in columns.items()}
        )
    return _result(heads, {key: np.concatenate([columns[key] for columns in found]) for key in found[0]})


def _result(heads: Heads, columns: dict[tuple[str, str, str], np.ndarray]) -> Result:
    """Scores from the confusion matrices, and the published ones of heads whose loss is at the logits."""
    metrics, details = {}, {}
    for pair, probe in heads.probes.items():
        mean, iou = mean_iou(columns[*pair, "matrix"].sum(axis=0))
        scores = {}
        if probe.protocol.at == "logits":
            predicted, labels = (columns[*pair, name] for name in ("predicted", "labels"))
            scores = batch_scores(predicted, labels, heads.classes, probe.protocol.batch)
        metrics[", ".join(pair)] = {**scores, "miou": mean}
        details[", ".join(pair)] = {"iou": iou.tolist()}
    return Result(metrics, details=details)


def _settings(config: ConfigDict) -> dict:
    e, heads = config.eval, _protocols(config.eval)
    return {
        "masks": e.masks, "mask_classes": e.mask_classes, "mask_shift": e.mask_shift,
        "heads": {name: dataclasses.asdict(head) for name, head in heads.items()},
        "dice_smooth": 1, "batch_norm_eps": 1e-5, "batch_norm_momentum": 0.1, "ignore": IGNORE,
        "images": {**published.ABOUT, "labels": "nearest-exact in cuts, nearest to the logits"},
        "macro_jaccard": "at the logits, of each batch, mean over batches",
        "miou": "at the label maps' resolution, one confusion matrix of all images",
        "departures": published.departures(heads["published"]), **published.OPTIMIZER,
    }  # fmt: skip


SEGMENTATION = Task(_measure, ("map",), ("dense", "spatial"), lambda data: {}, _settings)
