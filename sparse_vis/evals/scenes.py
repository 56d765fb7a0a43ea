"""The quickstart's table: what a model trained on scenes has learnt, beside untrained weights and pixels.

Reconstruction and localization are measured on held-out scenes of the training kind, classes on
held-out scenes with one digit; held-out digits and backgrounds were never trained on.
"""

from __future__ import annotations

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from sparse_vis import api, viz
from sparse_vis.build import build_source
from sparse_vis.data.records import Records, read_records
from sparse_vis.errors import UserError
from sparse_vis.evals.features import Encoder, Split, extract_features, pool, raw_pixels
from sparse_vis.evals.knn import knn_accuracy
from sparse_vis.evals.linear import linear_accuracies
from sparse_vis.evals.localization import best_token_iou, foreground_ari, token_segments
from sparse_vis.evals.reconstruction import mean_colour_psnr, psnr
from sparse_vis.models.stellar import Stellar

COLUMNS = (
    "psnr", "fg_ari", "best_iou", "knn_sparse", "linear_sparse", "knn_cls", "linear_cls", "knn_dense",
    "linear_dense", "prototype_usage",
)  # fmt: skip
CLASSES, NEIGHBOURS, PICTURED = 10, 20, 6


def stellar_encoder(name: str, model: Stellar, params: dict) -> Encoder:
    """A STELLAR model as an Encoder of the evaluation contract."""

    def features(images):
        out = api.encode(model, params, images)
        return {
            "cls": out.cls, "sparse": out.sparse, "dense": out.dense, "spatial": out.spatial,
            "reconstruction": api.reconstruct(model, params, out),
        }  # fmt: skip

    return Encoder(name, features)


def prototype_usage(model: Stellar, params: dict, S: np.ndarray) -> float:
    """Share of the prototypes that are the best match of at least one token.

    Args:
        model, params: whose sparse head is asked. S: (N, r, d) tokens.
    """

    @jax.jit
    def best(tokens):
        source = model.apply({"params": params}, tokens, method=lambda m, x: m.sparse_head(x))
        return jnp.argmax(source @ params["sparse_head"]["prototypes"], axis=-1)

    chosen = np.concatenate([np.asarray(best(S[i : i + 100])).ravel() for i in range(0, len(S), 100)])
    return len(np.unique(chosen)) / params["sparse_head"]["prototypes"].shape[1]


def image_metrics(features: dict, records: Records, patch: int) -> dict[str, float]:
    """PSNR in dB, and where L is given FG-ARI (scenes with two or more digits) and best-token IoU."""
    out = {}
    images = records.image.astype(np.float32) / 255
    if "reconstruction" in features:
        out["psnr"] = float(np.mean(psnr(features["reconstruction"], images)))
    if "spatial" in features:
        size = images.shape[1]
        segments = token_segments(features["spatial"], (size // patch,) * 2, (size, size))
        out["fg_ari"] = float(np.nanmean(foreground_ari(segments, records.mask)))
        out["best_iou"] = float(np.nanmean(best_token_iou(segments, records.mask)))
    return out


def class_metrics(train: dict, train_y, test: dict, test_y) -> dict[str, float]:
    """kNN (k = 20) and linear accuracy of every pooled feature."""
    out = {}
    for name, result in linear_accuracies(train, train_y, test, test_y, classes=CLASSES).items():
        out[f"linear_{name}"] = result.accuracy
        known, asked = Split(train[name], train_y), Split(test[name], test_y)
        votes = knn_accuracy(known, asked, classes=CLASSES, ks=(min(NEIGHBOURS, len(train_y)),))
        out[f"knn_{name}"] = next(iter(votes.values()))
    return out


def read_splits(config: ConfigDict) -> tuple[Records, Records, Records]:
    """Held-out scenes of the training kind, and one-digit scenes of train and test."""
    size, e = config.model.image_size, config.eval

    def read(split: str, count: int, **scenes) -> Records:
        source = build_source(config, split, **scenes)
        return read_records(source, start=0, stop=min(count, len(source)), size=size, short_side=size)

    return (
        read("test", e.test_records),
        read("train", e.train_records, max_digits=1),
        read("test", e.test_records, max_digits=1),
    )


def measure(
    encoder: Encoder, splits: tuple[Records, Records, Records], patch: int, batch: int
) -> tuple[dict, dict]:
    """All columns of one encoder but the prototypes', and its features of the scenes.

    Args:
        encoder: whose row it is. splits: of `read_splits`. patch: side in pixels. batch: images at a time.
    """
    scenes, *classes = splits
    print(f"evaluating {encoder.name} on {len(scenes.image)} scenes", flush=True)
    features = extract_features(encoder, scenes.image, batch)
    train, test = (extract_features(encoder, part.image, batch, pool) for part in classes)
    labels = [part.label for part in classes]
    return image_metrics(features, scenes, patch) | class_metrics(train, labels[0], test, labels[1]), features


def picture(features: dict, scenes: Records, patch: int) -> Figure:
    """The first scenes with their reconstructions, masks and token maps."""
    grid = (scenes.image.shape[1] // patch,) * 2
    first = slice(PICTURED)
    return viz.token_sheet(
        scenes.image[first],
        features["reconstruction"][first],
        features["spatial"][first],
        grid,
        scenes.mask[first],
    )


def evaluate(model: Stellar, weights: dict[str, dict], config: ConfigDict, workdir: pathlib.Path) -> dict:
    """Measure every set of weights and raw pixels; write evaluation.json and localization.png.

    Args:
        model: STELLAR. weights: row name -> parameter tree; the picture shows the last of them.
        config: complete configuration of a run on scenes. workdir: where files go.

    Returns:
        row name -> column -> number, None where a column does not apply.

    Raises:
        UserError: the configuration's source has no masks.
    """
    if config.data.source != "scenes":
        raise UserError(
            "the evaluation 'scenes' needs --config.data.source=scenes: only scenes have true masks."
        )
    splits, rows = read_splits(config), {}
    for name, params in weights.items():
        row, features = measure(stellar_encoder(name, model, params), splits, model.patch, config.eval.batch)
        rows[name] = row | {"prototype_usage": prototype_usage(model, params, features["sparse"])}
    picture(features, splits[0], model.patch).savefig(workdir / "localization.png", dpi=100)
    rows["pixels"], _ = measure(raw_pixels(), splits, model.patch, config.eval.batch)
    rows["mean_colour"] = {"psnr": float(np.mean(mean_colour_psnr(splits[0].image.astype(np.float32) / 255)))}
    rows = {name: {column: finite(row.get(column)) for column in COLUMNS} for name, row in rows.items()}
    (workdir / "evaluation.json").write_text(json.dumps(rows, indent=2))
    return rows


def finite(value: float | None) -> float | None:
    """The value, or None where it is none: JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def table(rows: dict) -> str:
    """The rows as aligned text; a dash where a column does not apply."""

    def cell(value) -> str:
        return "-" if value is None else f"{value:.3f}"

    lines = [["", *COLUMNS]] + [[name, *(cell(row.get(c)) for c in COLUMNS)] for name, row in rows.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(text.rjust(w) for text, w in zip(line, widths, strict=True)) for line in lines)
