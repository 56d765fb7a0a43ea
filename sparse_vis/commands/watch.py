"""kNN, PSNR and pictures of a few images while a model trains: config.train.probe_every."""

import copy
import functools
import os
import textwrap
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from sparse_vis import api
from sparse_vis.build import build_model, build_source
from sparse_vis.commands.reconstruct import side_by_side, with_maps
from sparse_vis.data.address import splits_apart
from sparse_vis.data.compose import ComposedSource
from sparse_vis.data.records import images_ahead, load_image, none_usable
from sparse_vis.data.sources import OBJECT, Source
from sparse_vis.evals.classes.knn import knn_accuracy
from sparse_vis.evals.columns import at_size
from sparse_vis.evals.dataset import spread
from sparse_vis.evals.features import Split, as_unit, pool
from sparse_vis.evals.pixels.psnr_ssim import psnr
from sparse_vis.runtime.batches import Devices, run_in_batches
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import say

K = 20  # neighbours, or as many as there are
EVERY = 5  # if no split is held out, every fifth training image is measured
PICTURES = 8  # images that are shown


class Kept(NamedTuple):
    """Images in memory, and their classes (-1: none)."""

    image: UInt8[np.ndarray, "N size size 3"]
    label: np.ndarray


class Watch:
    """Measures a model's parameters on images that it keeps in memory; does not affect the training.

    PSNR and pictures are of config.train.probe_images images of config.eval.test_split, if that split
    certainly has none of the training images, else of every fifth of these; a printed line says which. For
    kNN, as many training images vote by their classes.

    Args:
        tokenizer: module and parameters, for the VQ target. source: the images of the training.

    Raises:
        UserError: there are several processes, or an image cannot be used.
    """

    def __init__(self, config: ConfigDict, tokenizer: tuple | None, source: Source):
        if jax.process_count() > 1:
            raise UserError(
                "config.train.probe_every works in one process; set it to 0, and evaluate the checkpoints "
                "with --mode=evaluate."
            )
        self.config, self.tokenizer = config, tokenizer
        computed = copy.deepcopy(config)
        computed.efficiency.update(dtype=config.eval.dtype, remat="none", attention="xla")
        self.model = build_model(computed, tokenizer[0] if tokenizer else None)
        count, asked, rows = config.train.probe_images, held_out(config), np.arange(len(source))
        which = "of the training images, as no split is certain to be held out (config.eval.test_split)"
        if asked is not None:
            which = f"of split {config.eval.test_split!r}, which is not trained on"
            own, queries = rows, np.arange(len(asked))
        else:
            asked, own, queries = source, rows[rows % EVERY > 0], rows[::EVERY]
        self.query = self._read(asked, spread(queries, count))
        self.voters = self._labelled(source, own)
        composed = isinstance(asked, ComposedSource)
        self.voted = self._labelled(asked, queries) if composed else _known(self.query)
        self.classes = len(source.classes) if source.classes == asked.classes else 0
        knn = self.classes > 1 and all((x.label >= 0).any() for x in (self.voters, self.voted))
        self.classes *= knn
        say(
            f"probe every {config.train.probe_every} steps: {'kNN, ' * knn}PSNR and pictures of "
            f"{len(self.query.image)} images {which}"
        )

    def _read(self, source: Source, rows: np.ndarray) -> Kept:
        size, data = self.model.encoder.image_size, self.config.data
        short_side = size if isinstance(source, ComposedSource) else round(size * self.config.eval.short_side)
        load = functools.partial(load_image, source, size=size, short_side=short_side)
        how = dict(threads=data.threads, ahead=data.threads, on_error=data.on_error)
        skip = "--config.data.on_error=skip to leave it out"
        with images_ahead(source, load, rows.tolist(), **how, skip=skip) as take:
            usable, skips = take(len(rows))
            found = list(usable)
        if not found:
            raise none_usable(len(rows), skips)
        labels = np.array([image.label for image in found], np.int32)
        return Kept(np.stack([image.pixels for image in found]), labels)

    def _labelled(self, source: Source, rows: np.ndarray) -> Kept:
        """Images for kNN; of scenes and pictures, those with one object."""
        source = source.singles() if isinstance(source, ComposedSource) else source
        rows = spread(rows, self.config.train.probe_images)
        if not source.classes or not len(rows):
            return Kept(self.query.image[:0], self.query.label[:0])
        return _known(self._read(source, rows))

    def __call__(self, params: dict) -> tuple[dict[str, float], UInt8[np.ndarray, "H W 3"]] | None:
        """`psnr`, `knn` (of mean S), `knn_cls`, and a picture; None, after a note, if S is not finite."""
        params = Devices().everywhere(jax.device_get(params))  # they may be sharded
        if self.tokenizer:
            params = {**params, "tokenizer": Devices().everywhere(self.tokenizer[1])}
        try:
            batch = min(self.config.eval.batch, len(self.query.image))
            scores = run_in_batches(functools.partial(self._psnr, params), batch, self.query.image)
            found = {"psnr": float(scores.mean())}
            if self.classes:
                found |= self._knn(params)
            return found, self._picture(params)
        except UserError as error:  # e.g. features that are not finite, which the training reports itself
            say(f"note: no probe: {error}")
            return None

    def _psnr(self, params: dict, images: jax.Array) -> np.ndarray:
        pixels = api.reconstruct(self.model, params, api.encode(self.model, params, images))
        return psnr(at_size(np.asarray(pixels), images.shape[1]), as_unit(images))

    def _knn(self, params: dict) -> dict[str, float]:
        def vectors(images):
            out = api.encode(self.model, params, images)
            return pool({"sparse": out.sparse, "cls": out.cls})

        batch = min(self.config.eval.batch, len(self.voters.image))
        mine, others = (run_in_batches(vectors, batch, kept.image) for kept in (self.voters, self.voted))
        k, scores = min(K, len(self.voters.label)), {}
        for feature, name in (("mean_S", "knn"), ("cls", "knn_cls")):
            train, test = Split(mine[feature], self.voters.label), Split(others[feature], self.voted.label)
            scores[name] = knn_accuracy(train, test, classes=self.classes, ks=(k,))[k]
        return scores

    def _picture(self, params: dict) -> UInt8[np.ndarray, "H W 3"]:
        """Some images, one below the other: image, reconstruction, argmax L, and each token's map."""
        images = self.query.image[spread(np.arange(len(self.query.image)), PICTURES)]
        out = api.encode(self.model, params, images)
        pixels, L = np.asarray(api.reconstruct(self.model, params, out)), np.asarray(out.spatial)
        grid = self.model.grid(*images.shape[1:3])
        sheets = [
            with_maps(side_by_side(image, made), image, maps, grid)
            for image, made, maps in zip(as_unit(images), pixels, L, strict=True)
        ]
        return np.concatenate([np.asarray(sheet) for sheet in sheets])


def _known(kept: Kept) -> Kept:
    """The images with a class."""
    return Kept(kept.image[kept.label >= 0], kept.label[kept.label >= 0])


def held_out(config: ConfigDict) -> Source | None:
    """The source of config.eval.test_split, if it certainly has no image of config.data.split; else None."""
    data, test = config.data, config.eval.test_split
    if data.source == OBJECT:
        return None
    if data.source in ("folder", "packed"):
        own, other = (os.path.realpath(os.path.join(data.path, split)) for split in (data.split, test))
        apart = os.path.commonpath([own, other]) not in (own, other)
    else:
        apart = splits_apart(data.split, test)
    if not apart:
        return None
    try:
        return build_source(config, test)
    except UserError as error:
        say(f"note: config.eval.test_split={test!r} is not used: {textwrap.shorten(str(error), 200)}")
        return None
