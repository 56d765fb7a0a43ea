"""The docs hold: links lead somewhere, tools accept the commands, code runs, and something runs each tool."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from PIL import Image

from sparse_vis.config.arguments import check_setting
from tests.documents import (
    DATA,
    ROOT,
    SHELL,
    Command,
    anchors,
    code_of,
    commands,
    fences,
    links,
    pages,
    python_blocks,
    text_of,
)
from tests.main_process import environment
from tests.test_commands import documented, listed
from tests.tiny_checkpoint import write_checkpoints

PAGES = {page.relative_to(ROOT).as_posix(): page for page in pages()}
# Programs of the system in the docs' shell code; only the words are known here.
SYSTEM = ("mkdir", "tar", "rm", "for", "do", "done", "apt-get", "ruff", "docker", "kubectl")
# Arguments that make a command a mode of its own.
MODE = r"--(mode=\w+|distributed|format=\w+|export|compare-bf16|topology|mesh|tables|group|tool=\w+)(?==|$)"

# What runs the docs' commands on a small configuration: file -> test -> tools and modes. Those of main.py and
# of the package's tools are run one by one by tests/test_commands.py.
RUN = {
    ".ci/run": {"": ("pytest", "pip")},
    "tests/evals/test_reproduce.py": {
        "test_every_step_runs_and_the_exit_status_says_whether_the_figures_are_met": (
            "main.py --mode=evaluate",
        ),
    },
    "tests/train/test_elastic.py": {
        "test_two_processes_train_as_one_and_one_killed_ends_the_run_which_continues": (
            "main.py --distributed", "launch/local.py",
        ),
    },
    "tests/launch/test_distributed.py": {
        "test_slurm_processes_find_each_other_and_fail_in_one_sentence": ("launch/slurm.sh",),
        "test_tpu_workers_get_the_arguments_as_they_were_given": ("launch/tpu_pod.sh",),
    },
    "tests/launch/test_kubernetes.py": {
        "test_the_pods_find_each_other_on_this_machine": ("launch/kubernetes.py",),
    },
    "tests/commands/test_extract.py": {
        "test_two_processes_share_the_shards_and_one_killed_the_same_command_continues": (
            "sparse_vis extract --distributed", "launch/local.py --tool=extract",
        ),
    },
    "tests/test_notebooks.py": {"test_the_command_stores_the_outputs": ("notebooks/execute.py",)},
    "tests/data/test_scenes.py": {"test_the_tool_draws_a_picture": ("sparse_vis.data.scenes",)},
    "tests/data/test_tfds.py": {
        "test_imagenet_prepared_from_archives": ("-c tensorflow_datasets",),
    },
    "tests/viz/test_visualization_page.py": {"test_the_page_makes_its_pictures": ("-c re",)},
    "tests/benchmarks/test_fashion.py": {
        "test_images_lie_below_their_classes": ("benchmarks.evidence.fashion",),
    },
    "tests/benchmarks/test_pictures.py": {
        "test_the_tool_writes_all_splits": ("benchmarks.evidence.pictures",),
    },
    "tests/benchmarks/test_peers.py": {
        "test_the_plot_shows_mean_S_or_the_better_feature_and_lines_without_a_PSNR": (
            "benchmarks.evidence.plot",
        ),
    },
    "tests/benchmarks/test_canvas.py": {
        "test_the_command_prints_a_table": ("benchmarks.evidence.canvas",),
    },
    "tests/benchmarks/test_dryrun.py": {
        "test_the_tool_on_virtual_devices": ("benchmarks.dryrun.dryrun --mesh",),
        "test_the_scaling_table_has_a_row_for_every_topology": ("benchmarks.dryrun.scaling_table",),
        "test_the_pod_table_says_what_hosts_read_decode_and_save": ("benchmarks.dryrun.pod_table",),
    },
    "tests/benchmarks/test_evidence.py": {
        "test_a_run_is_trained_evaluated_kept_and_not_run_again": ("benchmarks.evidence.evidence --group",),
        "test_tables_hold_mean_and_deviation_over_seeds": ("benchmarks.evidence.evidence --tables",),
        "test_the_script_for_a_gpu_without_network_trains_and_leaves_a_model": (
            "benchmarks/evidence/gpu_train.sh",
        ),
    },
    "tests/benchmarks/test_speed.py": {
        # With a Python that only notes arguments: --small takes 190 s of processor time.
        "test_the_script_for_a_gpu_runs_the_whole_set": ("benchmarks/gpu.sh",),
        "test_step_without_tensorflow_and_the_data_pipeline": ("benchmarks.speed.step",),
        "test_parts_of_the_smallest_model": ("benchmarks.speed.parts",),
        "test_first_features_are_medians_of_alternating_runs_without_the_first": (
            "benchmarks.speed.first_features",
        ),
    },
    "tests/benchmarks/test_growth.py": {
        "test_input_counts_every_form_and_split": ("benchmarks.speed.input",),
        "test_the_command_measures_what_it_draws": ("benchmarks.growth.growth",),
    },
    "tests/train/test_buckets.py": {
        "test_the_command_measures_saves": ("benchmarks.speed.save",),
    },
    "tests/benchmarks/test_evaluation.py": {
        "test_the_difference_of_few_and_many_files_is_counted": ("benchmarks.speed.evaluation",),
    },
    "tests/benchmarks/test_probes.py": {
        "test_rows_are_measured_and_kept": ("benchmarks.speed.probes",),
        "test_searches_are_timed": ("benchmarks.speed.token_search",),
    },
    "tests/benchmarks/test_faults.py": {
        "test_the_command_finds_nothing_wrong": ("benchmarks.faults",),
    },
    "tests/explore/test_server.py": {
        "test_the_command_serves_this_computer_alone": ("sparse_vis explore",),
    },
    "tests/explore/test_static_page.py": {
        "test_the_command_writes_the_page_and_says_how_large_it_is": ("sparse_vis explore --export",),
    },
    "tests/explore/test_explore_pictures.py": {
        "test_the_benchmark_times_edits_and_saves_the_page": ("benchmarks.speed.explore_page",),
        "test_the_recording_shows_each_edit_and_ends_with_a_replaced_token": (
            "benchmarks.speed.explore_recording",
        ),
    },
    "tests/benchmarks/test_peer.py": {
        "test_the_command_prints_ratios_of_one_run": ("benchmarks.peer.peer",),
    },
}  # fmt: skip
# Commands that nothing here can run, and why.
WHY = "needs libtpu, and compiles for minutes; --mesh alone runs the same code"
NOT_RUN = {
    "benchmarks.dryrun.dryrun --topology": WHY,
    "benchmarks.dryrun.dryrun --mesh --topology": WHY,
}
# Python code of pages that other tests run.
CODE = {
    "docs/visualization.md": ("tests/viz/test_visualization_page.py", "test_the_page_makes_its_pictures"),
    "docs/classifiers.md": ("tests/commands/test_probe.py", "test_the_documented_command_and_code"),
    "docs/extraction.md": ("tests/commands/test_extract.py", "test_half_precision_and_the_documented_reader"),
    "docs/compatibility.md": ("tests/commands/test_programs.py", "test_the_documented_readers"),
    "docs/explore.md": ("tests/explore/test_edits.py", "test_the_documented_code_decodes_a_saved_file"),
    "docs/models.md": ("tests/interop/test_hub.py", "test_a_model_of_the_cache"),
}


def program(command: Command) -> list[str] | None:
    """What follows `python` when our program of a command runs; None where it is none of ours."""
    words = list(command.words)
    if words[0] in ("python", "python3"):
        of_others = words[1] == "-c" or words[1:3] in (["-m", "pytest"], ["-m", "http.server"])
        return None if of_others else words[1:]
    scripts = [i for i, word in enumerate(words) if re.fullmatch(r"launch/\w+\.sh", word)]
    if scripts and (words[0] == "sbatch" or scripts[0] == 0):
        assert os.access(ROOT / words[scripts[0]], os.X_OK), f"{command}: no such starter"
        return [*command.variables.get("PROGRAM", "main.py").split(), *words[scripts[0] + 1 :]]
    return None


def key(command: Command) -> str:
    """Tool and mode of a command, as in RUN."""
    words = [
        word for word in command.words if word not in ("do", "python", "python3", "-m", "sbatch", "bash")
    ]
    if words[0] == "-c":
        return "-c " + re.search(r"import (\w+)", words[1])[1]
    name = next((word for word in words if re.fullmatch(r"launch/\w+\.sh", word)), words[0])
    own = words[: words.index("--")] if "--" in words else words
    modes = sorted({match[0] for word in own if (match := re.match(MODE, word))})
    if name == "sparse_vis":
        name = f"sparse_vis {words[1]}"
    return " ".join([name, *modes])


def words_of_tool(words: list[str]) -> int:
    """How many words name the program: main.py, -m MODULE, or -m sparse_vis TOOL."""
    return 3 if words[1:2] == ["sparse_vis"] else 2 if words[0] == "-m" else 1


def functions_of(file: str) -> set[str]:
    """Names of the tests of a file; the empty name for a script."""
    text = (ROOT / file).read_text()
    if not file.endswith(".py"):
        return {""}
    return {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}


# What parsers must refuse: wrong settings, files, contradictions, flags, modules, also behind a launcher.
WRONG = (
    ["main.py", "--config=configs/quickstart.py", "--config.train.stepz=3"],
    ["main.py", "--config=configs/absent.py"],
    ["main.py", "--config=configs/quickstart.py", "--config.model.patch=7"],
    ["-m", "sparse_vis", "extract", "--checkpoint=x", "--input=y", "--output=z", "--shards=3"],
    ["-m", "sparse_vis", "reconstruct", "--checkpoint=x"],
    ["-m", "sparse_vis.absent"],
    ["-m", "benchmarks.dryrun.dryrun", "--config=configs/quickstart.py", "--topologi=v5e:2x2"],
    ["launch/local.py", "--processes=2", "--", "--config=configs/quickstart.py", "--wordir=x"],
)


@pytest.fixture(scope="module")
def parsed():
    """Outcomes of the real parsers: of every command, of every tool's --help, and of WRONG."""
    every = {str(c): p for page in PAGES.values() for c in commands(page) if (p := program(c))}
    tools = {" ".join(tool): [*tool, "--help"] for p in every.values() if (tool := p[: words_of_tool(p)])}
    wrong = {" ".join(words): words for words in WRONG}
    asked = [words for part in (every, tools, wrong) for words in part.values()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.command_parsers"], input=json.dumps(asked), cwd=ROOT, text=True,
        env=environment() | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, capture_output=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcomes = iter(json.loads(done.stdout))
    return tuple({name: next(outcomes) for name in part} for part in (every, tools, wrong))


@pytest.mark.parametrize("name", PAGES)
def test_links_and_anchors_lead_somewhere(name):
    page = PAGES[name]
    for link in links(page):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{name} links to {link}, which does not exist"
        if anchor:
            assert anchor in anchors(target), (
                f"{name} links to {link}; the anchors there are {sorted(anchors(target))}"
            )


def test_the_index_has_every_page():
    linked = {link.partition("#")[0] for link in links(ROOT / "docs" / "README.md")}
    assert linked == {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}


def test_the_readme_links_every_page_in_the_order_of_the_index():
    order = [link for link in links(ROOT / "docs" / "README.md") if link.endswith(".md")]
    text = next(block for block in text_of(ROOT / "README.md").split("\n\n") if "Docs, in reading" in block)
    assert re.findall(r"\(docs/(\w+\.md)\)", text) == [*order, "README.md"]


@pytest.mark.parametrize("name", PAGES)
def test_no_command_escapes(name):
    """Every `python …` of the raw text is in a command that was found; fenced blocks are of known kinds."""
    page, pattern = PAGES[name], r"\bpython3? +(?=-|\w+/|\w+\.py)|\bsbatch +-|\blaunch/\w+\.sh +-"
    for language, content in fences(page):
        assert language in (*SHELL, *DATA, "python"), f"{name}: a block of {language!r}"
        if language != "python":
            assert language in SHELL or not re.search(pattern, content), (
                f"{name}: a command in a block of {language!r}"
            )
    code = "".join(python_blocks(page))
    found = sum(len(re.findall(pattern, " ".join([*c.words, "-"]))) for c in commands(page))
    assert found == len(re.findall(pattern, text_of(page))) - len(re.findall(pattern, code))


def test_every_command_is_accepted_by_its_parser(parsed):
    assert len(parsed[0]) > 40
    wrong = [
        f"{command}\n    {outcome['error']}" for command, outcome in parsed[0].items() if outcome["error"]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_parsers_refuse_what_does_not_exist(parsed):
    """The check above can fail."""
    assert [words for words, outcome in parsed[2].items() if not outcome["error"]] == []


def test_help_explains_every_flag(parsed):
    for tool, outcome in parsed[1].items():
        assert outcome["error"] is None, (tool, outcome["error"])
        for flag in set(outcome["flags"]) - {"--help"}:
            explained = rf"^ +{flag}\b[^\n]*?(  +\S|\n {{8,}}\S)"
            assert re.search(explained, outcome["help"], re.M), f"{tool} --help does not explain {flag}"
            times = re.findall(rf"^ {{2,4}}{flag}(?![\w.-])", outcome["help"], re.M)
            assert len(times) == 1, f"{tool} --help lists {flag} {len(times)} times"
        addressed = re.findall(r"if (--[\w-]+) is an address", " ".join(outcome["help"].split()))
        assert {*addressed} <= {*outcome["flags"]}, f"{tool} --help names flags of other tools: {addressed}"


@pytest.mark.parametrize("name", PAGES)
def test_settings_that_are_named_exist(name):
    for code in code_of(PAGES[name]):
        for setting in re.findall(r"\bconfig\.((?!py\b|json\b)[a-z_]\w*(?:\.[a-z_]\w*)*)", code):
            check_setting(setting)


def test_other_commands_are_known():
    """pip's extras and files, pytest's paths, Python's syntax; programs of the system by name."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in PAGES.values():
        for command in commands(page):
            words = [word for word in command.words if word != "do"]
            if program(command) is not None:
                continue
            if words[:2] == ["python", "-c"]:
                compile(words[2], str(command), "exec")
            elif words[:3] == ["python", "-m", "pytest"]:
                for word in words[3:]:
                    assert "/" not in word or (ROOT / word).exists(), command
            elif words[:3] == ["python", "-m", "http.server"]:
                assert "--bind=127.0.0.1" in words, command  # for this computer alone
            elif words[:2] == ["pip", "install"]:
                for extra in re.findall(r"\.\[(\w+)\]", " ".join(words)):
                    assert extra in extras, command
                for file in re.findall(r"-r (\S+)", " ".join(words)):
                    assert (ROOT / file).is_file(), command
            elif words[0] == "bash":
                assert (ROOT / words[1]).is_file(), command
            else:
                assert words[0] in SYSTEM, f"{command}: an unknown program"


def test_something_runs_every_tool_and_mode():
    places = {
        name: (file, test) for file, tests in RUN.items() for test, names in tests.items() for name in names
    }
    run = {command for command in documented() if not listed(command)}
    found = {
        key(c): str(c)
        for page in PAGES.values()
        for c in commands(page)
        if c.words[0] not in SYSTEM and c not in run and c.words[1:3] != ("-m", "http.server")
    }
    missing = {name: where for name, where in found.items() if name not in places and name not in NOT_RUN}
    assert not missing, f"run these, or name in RUN what does: {missing}"
    gone = {*places, *NOT_RUN} - set(found)
    assert not gone, f"no page has these any more: {gone}"
    for name, (file, test) in [*places.items(), *CODE.items()]:
        assert test in functions_of(file), f"{name}: {file} has no {test}"


def test_code_of_the_pages_runs(tmp_path, monkeypatch):
    """README, concepts, API and FAQ, as they stand, in a folder where runs/quickstart is a tiny run."""
    write_checkpoints(tmp_path / "runs" / "quickstart", {3: 1})
    (tmp_path / "docs" / "images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    names = [name for name, page in PAGES.items() if python_blocks(page) and name not in CODE]
    assert {"README.md", "docs/concepts.md", "docs/api.md", "docs/faq.md"} == set(names)
    for name in names:
        space = {"images": np.zeros((2, 32, 32, 3), np.uint8)}
        for code in python_blocks(PAGES[name]):
            exec(compile(code, name, "exec"), space)
    assert space["vectors"].shape == (2, 64)
    drawn = {path.name for path in (tmp_path / "docs" / "images").iterdir()}
    shown = {
        link.removeprefix("images/") for link in links(PAGES["docs/concepts.md"]) if link.endswith(".png")
    }
    assert drawn == shown and len(drawn) == 3
    for picture in drawn:
        assert np.asarray(Image.open(tmp_path / "docs" / "images" / picture)).std() > 10
