"""Benchmarks of speed: FLOPs where they are known, the tools on the smallest model, the script for a GPU."""

from __future__ import annotations

import importlib
import json
import os
import stat
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.evidence import baselines
from benchmarks.speed import attention, command, encode, first_features, measure, parts
from benchmarks.speed.flops import encode_flops, products, step_flops, tokenizer
from benchmarks.speed.synthetic import random_tokenizer, recipe_of
from sparse_vis.models.stellar import init_params
from sparse_vis.runtime.errors import UserError
from sparse_vis.types import Views
from tests.main_process import ROOT, TINY, environment
from tests.step_loss import loss_fn
from tests.train.tiny_config import get_config

SMALLEST = (
    "--config.teacher.enabled=False", "--config.views.local_count=0", "--config.loss.cls_local=0.0",
)  # fmt: skip


def published(name: str):
    return importlib.import_module(f"configs.imagenet_{name}").get_config()


def traced(function, *shapes) -> float:
    return products(jax.jit(function).trace(*shapes).jaxpr.jaxpr)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("name", "pixels", "codes"), [("b16", 0.597, 0.695), ("l16", 2.03, 2.13), ("h14", 4.80, 4.93)]
)
def test_flops_of_the_published_recipes(name, pixels, codes):
    """TFLOP per image and step, counted independently when the project was planned."""
    found = step_flops(published(name))
    assert sum(found.values()) / 1e12 == pytest.approx(codes, abs=0.006)
    assert (sum(found.values()) - found["tokenizer"]) / 1e12 == pytest.approx(pixels, abs=0.006)


@pytest.mark.fast
def test_products_of_a_program():
    """7 scanned products of 16 x 32 by 32 x 32, and one convolution; XLA's analysis agrees, loops once."""

    def function(x, w, image, kernel):
        x = jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]
        dims = ("NHWC", "HWIO", "NHWC")
        return x, jax.lax.conv_general_dilated(image, kernel, (1, 1), "VALID", dimension_numbers=dims)

    shapes = [
        jax.ShapeDtypeStruct(s, np.float32) for s in ((16, 32), (7, 32, 32), (2, 9, 9, 4), (3, 3, 4, 8))
    ]
    product, convolution = 2 * 16 * 32 * 32, 2 * 2 * 7 * 7 * 8 * 9 * 4
    program = measure.compiled(function, *shapes)
    assert program.products == 7 * product + convolution
    assert program.products_once == product + convolution
    assert program.xla == pytest.approx(program.products_once, rel=0.01)


@pytest.mark.parametrize("unroll", [1, 12])
def test_the_formula_is_the_program(unroll, name="b16"):
    """B/16 as it is traced: encoding exactly; forward and backward of a step up to 1 % computed again."""
    config = published(name)
    config.efficiency.unroll = unroll  # unrolled, the last layer computes only the tokens that are used
    config.model.target, config.loss.reconstruction = "pixel", 10.0
    recipe, size, v = recipe_of(config), config.model.image_size, config.views
    params = jax.eval_shape(lambda: init_params(recipe.model, jax.random.key(0)))
    shape = jax.ShapeDtypeStruct
    image = shape((1, size, size, 3), jnp.float32)

    def encoding(p, x):
        return recipe.model.apply({"params": p}, x, method=encode.encode)

    assert traced(encoding, params, image) == encode_flops(config)
    views = Views(
        image=image, masked=shape((1, v.global_count, size, size, 3), jnp.float32),
        visible=shape((1, v.global_count, 39), jnp.int32),
        local=shape((1, v.local_count, v.local_size, v.local_size, 3), jnp.float32),
    )  # fmt: skip

    def step(p, views):
        return jax.grad(lambda p: loss_fn(p, recipe.model, recipe.loss, views)[0])(p)

    assert 1 <= traced(step, params, views) / sum(step_flops(config).values()) < 1.01


def test_the_formula_of_the_tokenizer_is_the_program():
    module = recipe_of(published("b16")).model.tokenizer
    params = jax.eval_shape(lambda: random_tokenizer(module))

    def codes(p, x):
        return module.apply({"params": p}, x, method=lambda m, x: m.codes(m.encode(x)))

    pixels = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    assert traced(codes, params, pixels) == tokenizer(64, module.num_embeddings)


@pytest.mark.fast
@pytest.mark.parametrize("peaks", [(10e9, 40e9), (40e9, 10e9)])
def test_timing_and_shares(peaks, monkeypatch):
    """Median, least and quartiles of known times; 4 images of 1 GFLOP in half a second are 8 GFLOP/s.

    A share is of the better of the peaks before and after.
    """
    timing = measure.timing([0.5, 0.4, 0.6, 0.5, 1.0])
    assert timing["median"] == 0.5 and timing["min"] == 0.4 and timing["spread"] == pytest.approx(0.1 / 0.5)
    assert measure.timing([0.5]) == {"median": 0.5, "min": 0.5, "spread": 0.0, "seconds": [0.5]}
    program = measure.compiled(lambda x: x @ x, jnp.ones((8, 8)))
    measured = iter(peaks)
    monkeypatch.setattr(measure, "timed", lambda call, repeats: timing)
    monkeypatch.setattr(measure, "matmul_peak", lambda *_: next(measured))
    found = measure.throughput(program, program.call, 5, 4, 1e9, "float32")
    assert found["images_per_second"] == 8 and found["stated_peak"] is None
    assert found["measured_peak"] == 40e9 and found["share_of_measured"] == pytest.approx(0.2)
    assert measure.stated_peak("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert measure.stated_peak("TPU v5 lite", "bfloat16") == 197e12
    assert "8.00 images/s" in measure.report(found) and "no stated peak" in measure.report(found)


def test_step_without_tensorflow_and_the_data_pipeline(tmp_path):
    """step.py where tensorflow, grain, clu and tensorflow_datasets cannot be imported."""
    env = environment() | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    for module in ("tensorflow", "grain", "clu", "tensorflow_datasets"):
        (tmp_path / f"{module}.py").write_text("raise ImportError('not in this test')\n")
    out = tmp_path / "step.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.step", f"--config={TINY}", f"--json={out}", "--repeats=3",
         *SMALLEST],
        capture_output=True, text=True, timeout=900, cwd=ROOT, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert len(found["seconds"]["seconds"]) == 3 and found["images"] == 4
    assert found["images_per_second"] == pytest.approx(4 / found["seconds"]["median"])
    assert found["machine"]["versions"]["jax"] == jax.__version__ and found["machine"]["date"]
    assert found["peak_memory"] > 0 and f"{found['images_per_second']:.2f} images/s" in done.stdout


def smallest():
    """The tiny configuration as SMALLEST makes it."""
    config = get_config()
    config.teacher.enabled, config.views.local_count, config.loss.cls_local = False, 0, 0.0
    return config


def test_encode_on_the_smallest_model(tmp_path, capsys, monkeypatch):
    """What the page's command calls; the test above measures the machine's real peak."""
    out = tmp_path / "encode.json"
    monkeypatch.setattr(measure, "matmul_peak", lambda *_: 1e11)
    encode.main(SimpleNamespace(config=smallest(), json=str(out), repeats=1, images=2))
    assert "images/s" in capsys.readouterr().out and json.loads(out.read_text())["machine"]["date"]


def test_wrong_input_is_one_sentence():
    wrong = [f"--config={TINY}", "--config.train.bach=4"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.step", *wrong], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert "did you mean config.train.batch" in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.fast
@pytest.mark.parametrize(
    ("config", "file", "sentence"),
    [
        (None, None, "give --config=configs/NAME.py"),
        (get_config(), "nowhere/x.json", "--json=nowhere/x.json: its folder does not exist"),
    ],
)
def test_flags_are_checked_before_anything_is_measured(config, file, sentence):
    with pytest.raises(UserError, match=sentence):
        command.checked_config(SimpleNamespace(config=config, json=file))


@pytest.mark.fast
@pytest.mark.parametrize("program", [baselines, encode])
def test_help_is_the_programs_own_docstring(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", "--help"])
    with pytest.raises(SystemExit):
        command.run_with_flags(program.main, program.__doc__)
    assert capsys.readouterr().out == f"{program.__doc__}\n"


@pytest.mark.fast
def test_numbers_go_to_a_file_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    command.check_file("~/x.json")
    command.write_json("~/x.json", {"a": 1})
    assert json.loads((tmp_path / "x.json").read_text())["a"] == 1
    with pytest.raises(UserError, match=r"--plot=~/absent/x\.png: its folder does not exist"):
        command.check_file("~/absent/x.png", "--plot")


def test_attention_by_every_kernel_of_this_machine(tmp_path, monkeypatch, capsys):
    """The same result from each, times above zero; on a GPU those kernels that can take so many tokens."""
    out = tmp_path / "attention.json"
    monkeypatch.setattr(attention, "SHAPES", {"small": (2, 3, 5, 2, 16)})
    monkeypatch.setattr(sys, "argv", ["attention.py", "--images=1", "--repeats=1", f"--json={out}"])
    attention.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row["kernel"] for row in rows] == ["xla", "jax.nn"]
    assert all(row["shape"] == [3, 5, 2, 16] and row["forward"] > 0 for row in rows)
    assert capsys.readouterr().out.count("| small | 3 x 5 x 2 x 16 |") == 2
    qkv = jax.random.normal(jax.random.key(0), (3, 5, 3, 2, 16))
    results = [kernel(qkv) for kernel in attention.kernels(5, on_gpu=False).values()]
    np.testing.assert_allclose(*results, atol=1e-6)
    assert list(attention.kernels(213, on_gpu=True)) == ["xla", "jax.nn", "cudnn"]
    assert list(attention.kernels(56, on_gpu=True)) == ["xla", "jax.nn", "cudnn", "pallas"]


@pytest.mark.fast
def test_first_features_are_medians_of_alternating_runs_without_the_first(monkeypatch, capsys):
    times, programs = iter([90, 80, 1, 4, 7, 8, 2, 6]), []
    monkeypatch.setattr(
        first_features, "seconds", lambda program, *_: programs.append(program) or next(times)
    )
    monkeypatch.setattr(sys, "argv", ["first_features.py", "--repeats=3"])
    first_features.main()
    assert capsys.readouterr().out == "first features: sparse_vis 2.00 s, PyTorch 6.00 s, ratio 0.33\n"
    assert programs == [first_features.OURS, first_features.TORCH] * 4
    monkeypatch.setattr(sys, "argv", ["first_features.py", "--repeats=0"])
    with pytest.raises(UserError, match=r"'0' is not a whole number of at least 1.*first_features --help"):
        first_features.main()


def test_parts_of_the_smallest_model(tmp_path, capsys, monkeypatch):
    """Every part is there, takes time and appears in the table; only what has gradients goes back."""
    config, out = smallest(), tmp_path / "parts.json"
    config.views.global_count = 1
    kept, write = [], command.write_json
    monkeypatch.setattr(measure, "matmul_peak", lambda *_: 1e11)
    monkeypatch.setattr(
        command, "write_json", lambda file, r: write(file, r) or kept.append(len(r.get("parts", ())))
    )
    parts.main(SimpleNamespace(config=config, json=str(out), repeats=1))
    found, table = json.loads(out.read_text()), capsys.readouterr().out
    names = {
        "views", "encoder, image", "encoder, masked", "decoder", "heads and losses", "Sinkhorn", "matching",
        "optimizer",
    }  # fmt: skip
    assert set(found["parts"]) == names and found["machine"]["date"]
    assert kept == list(range(1, len(names) + 1))  # also if a later part fails
    trained = {name for name in names if "both" in found["parts"][name]}
    assert trained == {"encoder, image", "encoder, masked", "decoder", "heads and losses"}
    for name in ("encoder, image", "encoder, masked"):
        assert found["parts"][name]["products"] == found["parts"][name]["flops"]
    assert all(f"| {name} |" in table for name in names)


@pytest.mark.fast
def test_the_script_for_a_gpu_runs_the_whole_set(tmp_path):
    """With a Python that only notes its arguments: every program once, a failing one is named at the end."""
    fake = tmp_path / "python3"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n! echo "$@" | grep -q "b16_encode"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path / "out")}
    script = str(ROOT / "benchmarks" / "gpu.sh")
    done = subprocess.run(["bash", script], capture_output=True, text=True, env=env)
    calls = [call for call in (tmp_path / "calls").read_text().splitlines() if "--json" in call]
    assert len(calls) == 6 and done.returncode == 1 and done.stdout.count("failed:") == 1
    assert sum("imagenet_h14" in call for call in calls) == 2
    assert all(f"--json={tmp_path}/out/" in call for call in calls)
    wrong = subprocess.run(["bash", script, "--tiny"], capture_output=True, text=True, env=env)
    assert wrong.returncode == 1 and "--tiny is unknown" in wrong.stderr
