"""The files and the HTML of the page, with our server or without."""

from __future__ import annotations

import pathlib
from typing import Any

import jinja2

from sparse_vis import report
from sparse_vis.data.examples import FOLDER
from sparse_vis.models.stellar import Stellar
from sparse_vis.viz import overlays

HERE = pathlib.Path(__file__).parent
STYLES = ("base.css", "explore.css")
SCRIPTS = ("page.js", "draw.js", "history.js", "view.js", "tools.js", "stages.js", "shelf.js", "open.js")
EXAMPLES = {path.name: path for path in sorted(FOLDER.glob("*.jpg"))}
SIDES = (8, 48)  # smallest and largest number of patches along a side
# The page may load and send nothing but its own files.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src blob:; base-uri 'none'; form-action 'none'"
)


def path_of(file: str) -> pathlib.Path:
    """Path of a style sheet or script of the page."""
    return (pathlib.Path(report.__file__).parent if file == "base.css" else HERE) / file


def default_side(model: Stellar) -> int:
    """Initial number of patches along a side: as many as 240 pixels have, within SIDES."""
    return min(max(240 // model.patch, SIDES[0]), SIDES[1])


def html(
    model: Stellar, name: str, scripts: tuple[str, ...], side: int, settings: dict[str, Any], **contents: Any
) -> str:
    """The page of the model of this name, as HTML.

    Args:
        scripts: files that answer the page's requests. side: initial number of patches along a side.
        settings: for the scripts. contents: for page.html: query, policy, gallery, sides.
    """
    tokens = model.encoder.queries
    colours = [[round(255 * float(x)) for x in colour] for colour in overlays.token_colours(tokens)]
    trained = model.encoder.image_size // model.patch
    shown = {
        "tokens": tokens, "temperature": model.factorizer.temperature, "colours": colours, "trained": trained,
    }  # fmt: skip
    loader = jinja2.FileSystemLoader(HERE)
    template = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).get_template("page.html")
    return template.render(
        name=name, styles=STYLES, scripts=(*SCRIPTS, *scripts), side=side,
        patch=model.patch, settings={**shown, **settings},
        examples=[(path.stem, file) for file, path in EXAMPLES.items()], **contents,
    )  # fmt: skip
