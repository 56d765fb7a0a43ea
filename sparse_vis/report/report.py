"""A model on one HTML page: `python -m sparse_vis report --help`.

Configuration, curves, evaluations, images with maps and edits of their tokens, prototypes, health. Everything
is inline, so that the single file works offline.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
from typing import Any

import jax
import jinja2

from sparse_vis import api
from sparse_vis.config.ranges import leaves
from sparse_vis.config.settings import plain
from sparse_vis.evals.dataset import spread
from sparse_vis.evals.results import Results
from sparse_vis.interop.load import Loaded, is_shipped, read_model
from sparse_vis.models.stellar import Stellar
from sparse_vis.report.gallery import gallery_first, make_cards, make_pages, make_searches
from sparse_vis.report.images import encode_all, find_images, name_images, read_images
from sparse_vis.report.tables import charts, evaluation_tables, health_measures, health_table
from sparse_vis.runtime import lock, paths, skipped
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.files import write_whole
from sparse_vis.runtime.names import escaped
from sparse_vis.runtime.paths import AnyPath, in_bucket
from sparse_vis.runtime.skipped import Skips
from sparse_vis.runtime.tools import FLAGS, Parser, check_size, image_size, positive
from sparse_vis.train.log import JSONL
from sparse_vis.viz.figures import read_metrics

PAGES, REGIONS = 12, 8  # prototypes shown, and images for each prototype or token
QUERIES = 6  # images whose token is searched for in the others
GENERATOR = "sparse_vis.report"  # identifies an earlier report, which may be overwritten


def main() -> None:
    parser = Parser(description="A model on one self-contained HTML page (docs/visualization.md).")
    add = parser.add_argument
    add("--checkpoint")
    add("--name")
    add("--output", metavar="FILE", help="HTML file to write; an earlier report is replaced")
    of_run = "folder of images, or anything --input of other tools takes (default: the run's test split)"
    add("--images", type=paths.folder, metavar="IMAGES", help=of_run)
    add("--split", help="split, if --images is an address, e.g. train[:90%%]")
    add("--data-dir", help=FLAGS["--data-dir"]["help"].replace("--input", "--images"))
    add("--on-error")
    add("--max-pixels")
    add("--size", type=image_size, metavar="HxW", help="size of the images (default: the model's)")
    add("--letterbox")
    add("--gallery", type=positive, default=12, help="images shown with maps and edits (%(default)s)")
    voters = "images used to find the images of each prototype and to measure health (%(default)s)"
    add("--voters", type=positive, default=256, help=voters)
    add("--tokenizer")
    run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
    """Write the report. Raises UserError for any error that the user can correct."""
    output = arguments.output
    check_output(output)
    with lock.hold(output.parent, "report", name=f".{output.name}{lock.LOCK}"):
        page = render(make_contents(arguments))
        with explained(OSError, f"{output} cannot be written", "give another --output."):
            write_whole(output, page)
    print(f"wrote {output}, {output.stat().st_size / 1e6:.1f} MB, which opens in any browser")


def check_output(path: AnyPath) -> None:
    """Raise UserError unless the path is an earlier report's, or a new file's in an existing folder."""
    if path.is_dir():
        what = f"--output={path} is a folder"
        raise UserError(f"{what}; give the name of an HTML file, e.g. {path / 'report.html'}.")
    if not in_bucket(path) and not path.parent.is_dir():
        raise UserError(f"the folder of --output={path} does not exist; make it or give another.")
    if path.exists():
        with path.open("rb") as file:
            head = file.read(400)
        if f'name="generator" content="{GENERATOR}"'.encode() not in head:
            raise UserError(f"--output={path} exists and is not a report; give another name.")


def make_contents(arguments: argparse.Namespace) -> dict[str, Any]:
    """The variables of report.html; a part that is absent is a string with the reason."""
    found = read_model(arguments.checkpoint, arguments.name)
    config = found.config
    # Of the models in the package, only scenes are at hand; pictures may be in any folder.
    generated = is_shipped(arguments.checkpoint) and config.data.source == "scenes"
    data_known = found.step is not None or generated
    source, rows, origin = find_images(
        config, arguments.images, arguments.split, arguments.data_dir, data_known=data_known,
        max_pixels=arguments.max_pixels,
    )  # fmt: skip
    model, params = api.assemble(found, arguments.checkpoint, tokenizer=arguments.tokenizer)
    size = arguments.size or (model.encoder.image_size,) * 2
    check_size(size, model.patch)
    metrics, curves, evaluations = run_files(found)
    rows = spread(rows, max(arguments.voters, arguments.gallery))
    read = read_images(source, rows, size, arguments.on_error, arguments.letterbox)
    rows, images, names, labels, skips = read
    order = gallery_first(labels, arguments.gallery)
    rows, images, names = rows[order], images[order], [names[i] for i in order]
    known = name_images(config if data_known else None, source, rows)
    temperature = config.loss.student_temperature
    encoded = encode_all(model, params, images, temperature)
    reconstruction, edits = absences(model, arguments.checkpoint)
    shown, possible = slice(arguments.gallery), dict(decodes=not reconstruction, edits=not edits)
    cards = make_cards(model, params, images[shown], names[shown], encoded, **possible)
    prototypes = jax.device_get(params["sparse_head"]["prototypes"])
    pages = make_pages(encoded, prototypes, temperature, pages=PAGES, regions=REGIONS)
    grid, settings = model.grid(*size), plain(config)
    return {
        "title": config.name, "facts": facts(found, model, params), "explore": explore_command(arguments),
        "origin": f"{known}: {origin}{left_out(skips)}", "voters": len(images),
        "searches": make_searches(
            encoded, images, names, min(QUERIES, len(cards)), grid, model.patch, count=REGIONS - 1
        ),
        "cards": cards, "reconstruction": reconstruction, "edits": edits,
        "prototypes": [(page, page.regions(images, names, grid, model.patch)) for page in pages],
        "evaluations": evaluations, "curves": curves,
        "health": health_table(health_measures(encoded), metrics, model.encoder.queries),
        "settings": leaves(settings if found.step else {"model": settings["model"]}),
    }  # fmt: skip


def run_files(found: Loaded) -> tuple[dict, list | str, list | str]:
    """Metrics of the model's run, their charts, and tables of its evaluations (or why these are absent)."""
    if found.step is None:
        why = "Absent: a released file comes without {}."
        return {}, why.format(JSONL), why.format("evaluation.json")
    workdir = found.step.parents[1]
    path, results = workdir / JSONL, Results(workdir)
    metrics = read_metrics(path) if path.exists() else {}
    no_curves = f"Absent: there is no {path}, which main.py writes in training."
    no_tables = f"Absent: there is no {results.path}; main.py --mode=evaluate writes it."
    curves = charts(metrics) if metrics else no_curves
    return metrics, curves, evaluation_tables(results.encoders) or no_tables


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


def explore_command(arguments: argparse.Namespace) -> str:
    """The command that opens the report's model in `explore`, quoted for a shell."""
    given = {name: getattr(arguments, name) for name in ("checkpoint", "name", "tokenizer")}
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return shlex.join(["python", "-m", "sparse_vis", "explore", *flags])


def absences(model: Stellar, checkpoint: str) -> tuple[str, str]:
    """Why there are no reconstructions, and why there are no edits; "" if there are."""
    if model.decoder.codes and model.tokenizer is None:
        why = (
            f"Absent: {checkpoint} reconstructs through a VQ tokenizer, whose weights were not found; give "
            "--tokenizer=FILE."
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
    return f"; {len(skips)} skipped, which cannot be used: {names}" if skips else ""


def render(contents: dict[str, Any]) -> str:
    """The page as HTML text."""
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html").render(**contents, generator=GENERATOR)
