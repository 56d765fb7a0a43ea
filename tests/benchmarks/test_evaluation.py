"""The benchmark of extraction and evaluations: what it counts, and the commands that it times."""

import json
import sys

import pytest

from benchmarks.speed import evaluation
from sparse_vis.config import settings
from sparse_vis.data.sources import open_input
from sparse_vis.runtime.errors import UserError


def test_the_difference_of_few_and_many_files_is_counted(tmp_path, monkeypatch, capsys):
    """Commands that start in 10 s and need 0.1 s per image, the bare encoder 0.05 s."""
    seen = []

    def seconds(arguments):
        seen.append(arguments)
        count = 300 if "300" in " ".join(arguments) else 64
        return 10 + count * (0.05 if arguments[:2] == ["-c", evaluation.BARE] else 0.1)

    monkeypatch.setattr(evaluation, "seconds", seconds)
    monkeypatch.setattr(evaluation, "write_checkpoint", lambda workdir, config: settings.check(config))
    file = tmp_path / "numbers.json"
    with pytest.raises(UserError, match="--only=x is unknown; choose from encoder, "):
        monkeypatch.setattr(sys, "argv", ["evaluation", "--images=200", "--only=x"])
        evaluation.main()
    monkeypatch.setattr(sys, "argv", ["evaluation", "--images=300", f"--json={file}"])
    evaluation.main()
    found = json.loads(file.read_text())["images_per_second"]
    assert found == pytest.approx(
        {**dict.fromkeys(evaluation.ROWS, 10.0), "encoder": 20.0, "decoder": 20.0, "reconstruction": 2.0}
    )
    assert "| extract | 10.0 | 0.50 of encoder |" in capsys.readouterr().out
    assert len(seen) == 2 * len(evaluation.ROWS)


@pytest.mark.fast
def test_files_are_of_two_classes(tmp_path):
    evaluation.write_images(tmp_path, [b"\xff\xd8", b"\xff\xd9"], 6)
    source = open_input(str(tmp_path))
    assert len(source) == 6 and source.classes == ("a", "b")
