"""Train and evaluate: python main.py --config=configs/quickstart.py; --help shows the flags."""

from sparse_vis.runtime import host

if __name__ == "__main__":
    host.prepare()

from sparse_vis.commands.train import main
from sparse_vis.runtime.errors import command_line

if __name__ == "__main__":
    command_line(main)
