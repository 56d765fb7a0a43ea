"""Collect the contents of a report, with a reason for each absent part."""

from __future__ import annotations

import argparse
import re

import jax

from sparse_vis import api
from sparse_vis.config.ranges import SIDE
from sparse_vis.config.settings import plain
from sparse_vis.evals.dataset import spread
from sparse_vis.evals.results import Results
from sparse_vis.interop.load import Loaded, is_shipped, read_model
from sparse_vis.models.stellar import Stellar
from sparse_vis.report.cards import make_cards
from sparse_vis.report.charts import charts
from sparse_vis.report.images import encode_all, find_images, read_images
from sparse_vis.report.page import Contents, region_pictures
from sparse_vis.report.prototypes import make_pages
from sparse_vis.report.seen import name_images
from sparse_vis.report.tables import evaluation_tables, flat, health_measures, health_table
from sparse_vis.runtime import skipped
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import escaped
from sparse_vis.runtime.skipped import Skips
from sparse_vis.train.progress import JSONL
from sparse_vis.viz.figures import read_metrics

PAGES, REGIONS = 12, 8  # prototypes shown, and images for each


def parse_size(text: str | None, model: Stellar) -> tuple[int, int]:
    """(height, width) in pixels from --size; without it, the model's square.

    Raises:
        UserError: the text is not HEIGHTxWIDTH, or a side is below the patch size or above SIDE.
    """
    if text is None:
        return (model.encoder.image_size,) * 2
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    size = tuple(map(int, match.groups())) if match else (0, 0)
    if min(size) < model.patch or max(size) > SIDE:
        raise UserError(
            f"--size={text} is no size; give HEIGHTxWIDTH in pixels, each at least a patch ({model.patch}) "
            f"and at most {SIDE}."
        )
    return size


def run_files(found: Loaded) -> tuple[dict, dict | str, str]:
    """Metrics and evaluations of the run from which a model was read.

    Args:
        found: the model as read.

    Returns:
        (metrics, evaluations or the reason why there are none, "" or the reason why there are no metrics).
    """
    if found.step is None:
        why = "Absent: a released file comes without {}."
        return {}, why.format("evaluation.json"), why.format(JSONL)
    workdir = found.step.parents[1]
    path = workdir / JSONL
    metrics = read_metrics(path) if path.exists() else {}
    results = Results(workdir)
    encoders = results.encoders or f"Absent: there is no {results.path}; main.py --mode=evaluate writes it."
    return (
        metrics,
        encoders,
        "" if metrics else f"Absent: there is no {path}, which main.py writes in training.",
    )


def facts(found: Loaded, model: Stellar, params: dict) -> list[tuple[str, str]]:
    """Main sizes of the model, as (name, value)."""
    m, count = found.config.model, sum(x.size for x in jax.tree.leaves(params))
    return [
        ("tokens r", f"{m.tokens}"),
        ("encoder", f"{m.layers} layers, width {m.width}"),
        ("image, patch", f"{m.image_size} px, {m.patch} px"),
        ("parameters", f"{count / 1e6:.3g} million"),
        ("decoder target", "VQ codes" if model.decoder.codes else "pixels"),
        *([("step", f"{int(found.step.name):,}")] if found.step else []),
    ]


def absences(model: Stellar, checkpoint: str) -> tuple[str, str]:
    """Why there are no reconstructions, and why no edits; "" if there are."""
    if model.decoder.codes and model.tokenizer is None:
        why = (
            f"Absent: {checkpoint} reconstructs through a VQ tokenizer, whose weights are not at hand; "
            "--tokenizer=FILE gives them."
        )
        return f"Reconstructions and edits: {why}", why
    if model.encoder.queries < 2:
        return "", "Absent: with a single token there is nothing to edit."
    return "", ""


def left_out(skips: Skips) -> str:
    """Print the skipped images; returns them in words for the page."""
    for line in skipped.lines(skips):
        print(f"skipped: {line.rstrip()}", flush=True)
    names = ", ".join(escaped(name) for name, _ in skips)
    return f"; {len(skips)} left out, which cannot be used: {names}" if skips else ""


def make_contents(arguments: argparse.Namespace) -> Contents:
    """Load the model, encode and decode the images, and collect everything.

    Args:
        arguments: of the command line.

    Raises:
        UserError: any error that the user can correct.
    """
    found = read_model(arguments.checkpoint, arguments.name)
    data_known = found.step is not None or is_shipped(arguments.checkpoint)
    images_found = find_images(
        found.config, arguments.images, data_known=data_known, max_pixels=arguments.max_pixels
    )
    metrics, encoders, no_metrics = run_files(found)
    model, params = api.assemble(found, arguments.checkpoint, tokenizer=arguments.tokenizer)
    size = parse_size(arguments.size, model)
    rows = spread(images_found.indices, max(arguments.voters, arguments.gallery))
    rows, images, names, skips = read_images(images_found.source, rows, size, arguments.on_error)
    known = name_images(found.config if data_known else None, images_found.source, rows)
    temperature = found.config.loss.student_temperature
    encoded = encode_all(model, params, images, temperature)
    no_reconstruction, no_edits = absences(model, arguments.checkpoint)
    shown = min(arguments.gallery, len(images))
    cards = make_cards(
        model,
        params,
        images[:shown],
        names[:shown],
        encoded,
        decodes=not no_reconstruction,
        edits=not no_edits,
    )
    prototypes = params["sparse_head"]["prototypes"]
    pages = make_pages(encoded, jax.device_get(prototypes), temperature, pages=PAGES, regions=REGIONS)
    settings = plain(found.config) if found.step else {"model": plain(found.config)["model"]}
    return Contents(
        title=found.config.name, facts=facts(found, model, params),
        origin=f"{known}: {images_found.origin}{left_out(skips)}",
        cards=cards,
        edits=no_edits, reconstruction=no_reconstruction, prototypes=pages,
        pictures=region_pictures(pages, images, names, model.grid(*size), model.patch), voters=len(images),
        curves=no_metrics or charts(metrics),
        evaluations=encoders if isinstance(encoders, str) else evaluation_tables(encoders),
        health=health_table(health_measures(encoded), metrics, model.encoder.queries),
        settings=flat(settings),
    )  # fmt: skip
