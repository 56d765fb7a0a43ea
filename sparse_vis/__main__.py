"""Start a tool of the package: `python -m sparse_vis TOOL …`, or `sparse-vis TOOL …` if it is installed."""

import importlib
import pathlib
import sys

from sparse_vis.runtime import host

# Name -> module with the tool's main(), what it does.
TOOLS = {
    "train": ("commands.train", "train a model, or continue a training, then evaluate it"),
    "evaluate": ("commands.train", "evaluate a model without training"),
    "extract": ("commands.extract", "write features of a folder of images as Parquet files"),
    "reconstruct": ("commands.reconstruct", "reconstruct every image of a folder from S and L"),
    "report": ("report.report", "show a model on one HTML page"),
    "explore": ("explore.explore", "show and edit the tokens of any picture on a live page"),
    "probe": ("commands.probe", "fit a classifier on labelled images, and save it beside the model"),
    "export": ("commands.export", "convert a model for PyTorch, jax.export or ONNX"),
    "pack": ("commands.pack", "pack a folder of images into a few large files"),
}


def main() -> None:
    """Start the tool that the first argument names."""
    host.prepare()
    installed = pathlib.Path(sys.argv[0]).stem != "__main__"
    program = "sparse-vis" if installed else "python -m sparse_vis"
    name, arguments = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if name in ("--help", "-h", "help"):
        print(f"usage: {program} TOOL [--help | flags]\n")
        print("\n".join(f"  {tool:12}{what}" for tool, (_, what) in TOOLS.items()))
        return
    if name not in TOOLS:
        sys.exit(f"error: {name!r} is not a tool of {program}; the tools are {', '.join(TOOLS)}.")
    from sparse_vis.runtime.errors import command_line

    sys.argv = [f"{program} {name}", *arguments]
    command_line(lambda: importlib.import_module(f"sparse_vis.{TOOLS[name][0]}").main())


if __name__ == "__main__":
    main()
