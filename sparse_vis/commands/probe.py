"""A classifier on frozen features, fitted on labelled images: `python -m sparse_vis probe --help`."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sparse_vis import api
from sparse_vis.commands import shards
from sparse_vis.data.own import OwnSource
from sparse_vis.data.records import image_batches, known_labels
from sparse_vis.data.sources import Source, announce, as_source, open_input
from sparse_vis.evals.classes import fitting
from sparse_vis.interop import probe_file
from sparse_vis.interop.load import read_model
from sparse_vis.models.classifier import FEATURES, feature_of
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime import calls, host
from sparse_vis.runtime.batches import Devices, run_in_batches
from sparse_vis.runtime.checksums import crc32
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.paths import AnyPath, as_path
from sparse_vis.runtime.progress import Progress
from sparse_vis.runtime.skipped import ON_ERROR
from sparse_vis.runtime.tools import Parser, positive
from sparse_vis.types import Tokens

HOLDOUT = 0.2
CLASSIFIERS = ("linear", "knn")
READS = {"mean_S": "sparse", "concat_S": "sparse", "cls": "cls"}  # feature -> column of an extraction


@calls.renamed(calls.OF_CALLS)
def probe(
    model: Stellar, params: dict, data: Any, *, classes: Sequence[str] | np.ndarray | None = None,
    kind: str = "linear", feature: str = "mean_S", k: int = fitting.KS, holdout: float = HOLDOUT,
    seed: int = 1, save: str | AnyPath | None = None, batch: int = 64, on_error: str = "stop",
) -> tuple[Stellar, dict, dict[str, Any]]:  # fmt: skip
    """Fit a classifier on labelled images; a random part of each class is held out to measure its accuracy.

    Args:
        model, params: as `load` returns them; the weights stay as they are.
        data: a folder with one subfolder per class, an address (docs/your_images.md), a list of pairs (path
            or image, label), a data set object; or the folder of an extraction of this model, with labels.
            Labels are numbers from 0, or names. An object is read twice: for its labels, then for its images.
        classes: names of the classes of pairs and objects, in the order of their numbers; by default the
            object's `classes`, else the labels themselves.
        kind: "linear", or "knn": the k nearest of the labelled images vote.
        feature: "mean_S", "cls", or "concat_S", all tokens of S one after the other.
        holdout: share of each class. seed: of that choice, and of the order of training.
        save: file, or folder for `probe.safetensors`; beside the model, `load` finds it.
        batch: images per call of the encoder. on_error: "stop", or "skip" images that cannot be used.

    Returns:
        (model, params, report): model and params with the classifier, for `classify`; `report` has
        `accuracy`, the numbers of images `fitted` and `held_out`, and all else that the file says.

    Raises:
        UserError: images without labels, of one class, or with a class of one image; the features of another
            model; an argument that is out of range. It is raised before images are encoded, where possible.
    """
    api.check_model("probe(model, params, data)", model, params)
    calls.one_of("kind", kind, CLASSIFIERS)
    calls.one_of("feature", feature, FEATURES)
    calls.one_of("on_error", on_error, ON_ERROR)
    k, seed, batch = calls.whole("k", k, 1), calls.whole("seed", seed, 0), calls.whole("batch", batch, 1)
    holdout = calls.share("holdout", holdout)
    save = None if save is None else probe_file.place_to_write(save, "save")
    if folder := extraction(data):
        if classes is not None:
            raise UserError(f"classes= is not for the extraction {folder}, which has its own; leave it out.")
    else:
        source = as_source(data, classes)
        if isinstance(source, OwnSource):
            source.read_labels(on_error)
    return _fit(
        model, params, folder or source, kind=kind, feature=feature, k=k, holdout=holdout, seed=seed,
        save=save, batch=batch, on_error=on_error, skip="on_error='skip'",
    )  # fmt: skip


def extraction(data: Any) -> AnyPath | None:
    """The folder of an extraction that `data` names; None if it is something else."""
    folder = as_path(data).expanduser() if isinstance(data, str | os.PathLike) else None
    return folder if folder and (folder / shards.MANIFEST).is_file() else None


def labels_of(source: Source) -> np.ndarray:
    """The class of every record, -1 for none; reads all records if only they know it."""
    if not source.classes:
        return np.full(len(source), -1, np.int32)
    if (known := known_labels(source)) is None:
        known = np.array([source[i].get("label", -1) for i in range(len(source))], np.int32)
    return known


def encoded(
    model: Stellar, params: dict, source: Source, feature: str, kind: str, holdout: float, batch: int,
    on_error: str, skip: str,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:  # fmt: skip
    """One feature of every labelled image of a source, the labels, and the names of the classes."""
    labels, what = labels_of(source), f"the {len(source)} images {source.about}"
    fitting.check_classes(labels, source.classes, what, kind, holdout)
    rows = np.flatnonzero(labels >= 0)
    if len(rows) < len(labels):
        print(f"note: {len(labels) - len(rows)} images have no class and are left out", flush=True)

    @jax.jit
    def features(params, images):
        pixels = api.as_pixels(images)
        return feature_of(model.apply({"params": params}, pixels, method="encode", only="S"), feature)

    call = functools.partial(features, Devices().everywhere(params))
    progress, x, y = Progress("features", len(rows)), [], []
    for images in image_batches(source, rows, model.encoder.image_size, batch, on_error, skip):
        x.append(run_in_batches(call, batch, np.stack([image.pixels for image in images])))
        y += [image.label for image in images]
        progress.add(len(images))
    return np.concatenate(x), np.array(y, np.int32), source.classes


def extracted(
    folder: AnyPath, params: dict, feature: str, kind: str, holdout: float
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """What `encoded` returns, from the Parquet files of an extraction of this model."""
    manifest, column = shards.complete(folder), READS[feature]
    own = crc32({k: v for k, v in params.items() if k not in ("classifier", "segmenter")})
    for lacking, remedy in (
        ("classes" not in manifest, "has no labels; extract images that have classes"),
        (column not in manifest.get("outputs", {}), f"lacks {column}; extract it too, as one of the outputs"),
        (
            manifest.get("weights_crc32") != own,
            "is of a model with other parameters; give the model with which it was made, or extract again",
        ),
    ):
        if lacking:
            raise UserError(f"the extraction {folder} {remedy}.")
    table = shards.read_columns(folder, manifest, ["label", column])
    labels, classes = table["label"].to_numpy(), tuple(manifest["classes"])
    fitting.check_classes(labels, classes, f"the {len(labels)} images of {folder}", kind, holdout)
    flat = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    tokens = np.asarray(flat, np.float32).reshape(len(labels), *manifest["outputs"][column])[labels >= 0]
    given = jax.device_put(tokens)
    x = feature_of(Tokens(cls=given, S=given, U=None), feature)
    return np.asarray(x), labels[labels >= 0].astype(np.int32), classes


def _fit(
    model: Stellar, params: dict, data: AnyPath | Source, *, kind: str, feature: str, k: int, holdout: float,
    seed: int, save: AnyPath | None, batch: int, on_error: str, skip: str,
) -> tuple[Stellar, dict, dict[str, Any]]:  # fmt: skip
    """Fit, measure and save, as `probe`, from the folder of an extraction or from a source."""
    given = feature, kind, holdout
    if isinstance(data, AnyPath):
        images, (x, y, classes) = f"of {data}", extracted(data, params, *given)
    else:
        images, (x, y, classes) = data.about, encoded(model, params, data, *given, batch, on_error, skip)
    # Checked again, because images that cannot be used may have been left out.
    fitting.check_classes(y, classes, f"the {len(y)} images {images}", kind, holdout)
    fitted, held = fitting.held_out(y, holdout, seed)
    fit = fitting.fit_linear if kind == "linear" else fitting.fit_nearest
    classifier, tensors, how = fit(x[fitted], y[fitted], classes, feature, seed if kind == "linear" else k)
    tensors = Devices().everywhere(tensors)
    # The feature as the only token: the mean of all tokens, and all of them in a row, are then the feature.
    call = jax.jit(lambda x: classifier.apply({"params": tensors}, Tokens(x[:, None], x[:, None], None)))
    guessed = run_in_batches(call, 512, x[held]).argmax(axis=1)
    accuracy = float(np.mean(guessed == y[held]))
    report = {
        "accuracy": accuracy, "fitted": len(fitted), "held_out": len(held), "holdout": holdout, "seed": seed,
        "images": images, **how, "weights_crc32": probe_file.weights_of(params),
    }  # fmt: skip
    common = np.bincount(y[held]).max() / len(held)
    print(
        f"{kind} probe on {feature}: {round(accuracy * len(held))} of {len(held)} held-out images are right, "
        f"{accuracy:.2%} (the most common class would give {common:.2%}); fitted on {len(fitted)} images of "
        f"{len(np.unique(y))} classes",
        flush=True,
    )
    if save is not None:
        probe_file.write_probe(save, classifier, tensors, report)
    return *api.with_classifier(model, params, classifier, tensors), report


def parser() -> Parser:
    parser = Parser(
        description="Fit a classifier on the features of labelled images and save it as probe.safetensors "
        "beside the model, where load and export find it (docs/classifiers.md)."
    )
    add = parser.add_argument
    for flag in ("--checkpoint", "--name", "--split", "--data-dir", "--max-pixels", "--on-error"):
        add(flag)
    what = "labelled images (folder, packed folder or address), or the folder of an extraction with labels"
    add("--input", dest="images", help=what)
    kept = "folder for probe.safetensors (default: the workdir or release folder)"
    add("--output", required=False, help=kept)
    add("--kind", choices=CLASSIFIERS, default="linear", help="linear or k nearest neighbours (%(default)s)")
    chosen = "mean of S, class token, or all tokens of S (%(default)s)"
    add("--feature", choices=FEATURES, default="mean_S", help=chosen)
    add("--k", type=positive, default=fitting.KS, help="neighbours that vote with --kind=knn (%(default)s)")
    part = "share of each class on which the accuracy is measured (%(default)s)"
    add("--holdout", type=float, default=HOLDOUT, help=part)
    add("--seed", type=int, default=1, help="seed of the choice of held-out images (%(default)s)")
    add("--batch", type=positive, default=64, help="images per call of the encoder (%(default)s)")
    return parser


def main() -> None:
    given = parser().parse_args()
    holdout, seed = calls.share("--holdout", given.holdout), calls.whole("--seed", given.seed, 0)
    output = given.output or probe_file.beside(given.checkpoint)
    if output is None:
        raise UserError(f"{given.checkpoint} has no folder of its own; give --output=FOLDER for the probe.")
    path = probe_file.place_to_write(output, "--output")
    host.keep_programs()
    loaded = read_model(given.checkpoint, given.name)
    model, params = api.assemble(loaded, given.checkpoint)
    if folder := extraction(given.images):
        if given.split or given.data_dir:
            raise UserError(f"the extraction {folder} is used whole; leave out --split and --data-dir.")
    else:
        source = open_input(given.images, given.split, given.data_dir, given.max_pixels)
        announce(source)
    _fit(
        model, params, folder or source, kind=given.kind, feature=given.feature, k=given.k, holdout=holdout,
        seed=seed, save=path, batch=given.batch, on_error=given.on_error, skip="--on-error=skip",
    )  # fmt: skip
    print(f"wrote {path}; {probe_file.how_to_load(loaded, given.checkpoint, given.name, path)}")
