"""What is set before Python starts, and what the user's own settings keep."""

import gc
import os
import pathlib
import runpy
import subprocess
import sys
import warnings

import pytest
from PIL import Image

from sparse_vis.runtime import host
from sparse_vis.runtime.errors import command_line
from tests.main_process import ROOT


@pytest.mark.fast
@pytest.mark.parametrize("own", [None, "", "/elsewhere"])
def test_compiled_programs_are_kept_in_a_folder_of_the_user_unless_he_names_another(
    monkeypatch, tmp_path, own
):
    monkeypatch.setattr(os, "environ", {"GLIBC_TUNABLES": "", "XDG_CACHE_HOME": str(tmp_path)})
    if own is not None:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = own
    host.prepare()
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert folder == own if own is not None else pathlib.Path(folder).parent == tmp_path / "sparse_vis"


@pytest.mark.fast
@pytest.mark.parametrize(
    ("environment", "arguments", "threads"),
    [
        ({}, ["main.py", "--config=configs/quickstart.py"], None),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, ["main.py"], 32),
        ({"JAX_NUM_CPU_DEVICES": "2"}, ["main.py"], 32),
        ({}, ["main.py", "--distributed=auto"], 32),
        ({}, ["extract.py", "--distributed", "127.0.0.1:1,2,0"], 32),
        ({"PJRT_NPROC": "3"}, ["main.py", "--distributed=auto"], 3),
    ],
)
def test_only_several_devices_have_more_threads_than_cores(monkeypatch, environment, arguments, threads):
    monkeypatch.setattr(os, "environ", {"GLIBC_TUNABLES": ""} | environment)
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    host.prepare()
    assert os.environ.get("PJRT_NPROC") == (None if threads is None else str(threads))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("given", "expected"),
    [("", {"xla_backend_optimization_level": 1}), ("--xla_backend_optimization_level=3", {})],
)
def test_a_level_of_optimisation_in_the_user_s_flags_stays(monkeypatch, given, expected):
    monkeypatch.setenv("XLA_FLAGS", given)
    assert runpy.run_path(host.__file__)["CPU_COMPILER_OPTIONS"] == expected


@pytest.mark.fast
@pytest.mark.filterwarnings("ignore:JAX was already in use")
@pytest.mark.parametrize(
    ("given", "version", "tpu", "expected"),
    [
        (None, "0.10.2", None, host.NO_YNNPACK),
        ("--xla_dump_to=d", "0.12.0.1", None, f"{host.NO_YNNPACK} --xla_dump_to=d"),
        (f"--{host.LIBRARY}=X", "0.10.2", None, f"--{host.LIBRARY}=X"),
        (None, "0.13.0", None, None),
        (None, "0.10.2", "found", None),
    ],
)
def test_ynnpack_is_left_out_where_the_flag_is_known(monkeypatch, given, version, tpu, expected):
    monkeypatch.setattr(os, "environ", {} if given is None else {"XLA_FLAGS": given})
    monkeypatch.setattr(host, "jaxlib_version", version)
    monkeypatch.setattr(host.importlib.util, "find_spec", {"libtpu": tpu}.get)
    host.leave_out_ynnpack()
    host.leave_out_ynnpack()  # a process that started itself again
    assert os.environ.get("XLA_FLAGS") == expected


@pytest.mark.fast
@pytest.mark.parametrize(
    ("started", "flags", "warns"), [(True, "", True), (False, "", False), (True, host.NO_YNNPACK, False)]
)
def test_an_import_too_late_to_leave_ynnpack_out_warns_once(monkeypatch, started, flags, warns):
    import jax

    assert jax.devices()[0].platform == "cpu"
    monkeypatch.setattr(os, "environ", {"XLA_FLAGS": flags})
    monkeypatch.setattr(host, "jaxlib_version", "0.10.2")
    monkeypatch.setattr(host.importlib.util, "find_spec", {}.get)
    if not started:
        monkeypatch.delitem(sys.modules, "jax._src.xla_bridge")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        host.leave_out_ynnpack()
        host.leave_out_ynnpack()
    assert [str(w.message)[:24] for w in said] == ["JAX was already in use w"] * warns


def test_devices_that_are_not_there_are_one_sentence(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "rocm"}  # which no test machine has
    Image.new("RGB", (48, 48)).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "sparse_vis", "extract", "--checkpoint=scenes-tiny"]
    command += [f"--input={tmp_path}", f"--output={tmp_path / 'out'}"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done
    assert done.stderr.startswith("error: JAX_PLATFORMS=rocm names devices that JAX cannot find here")
    assert "unset it" in done.stderr and not list(tmp_path.rglob("*.parquet"))


@pytest.mark.fast
def test_other_exceptions_are_not_blamed_on_devices(monkeypatch):
    import jax

    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert jax.devices() and host.missing_devices() is None
    with pytest.raises(AssertionError, match="a fault"):
        command_line(fault)


def fault():
    raise AssertionError("a fault")


# jaxlib 0.10.2 and 0.12.0 with YNNPACK are wrong here by many orders of magnitude: a product with a constant
# matrix, multiplied and summed.
PRODUCTS = """
import jax, jax.numpy as jnp, numpy as np, sparse_vis
x = np.random.default_rng(0).normal(size=(5, 60, 60)).astype(np.float32)
program = jax.jit(lambda x, c: jnp.sum((x @ jnp.full_like(x, c)) * x, -1)).lower(x, 0.5).compile()
found = np.asarray(program(x, 0.5), np.float64)
true = np.sum((x.astype(np.float64) @ np.full_like(x, 0.5)) * x, -1)
print("ynn" in program.as_text(), np.abs(found - true).max() / np.abs(true).max() < 1e-5)
"""


def test_with_the_package_xla_computes_without_ynnpack():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    run = subprocess.run(
        [sys.executable, "-c", PRODUCTS], env=environment, cwd=ROOT, capture_output=True, text=True
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "False True"


@pytest.mark.fast
def test_no_garbage_is_looked_for_while_much_is_made_and_later_it_is():
    with pytest.raises(KeyError), host.uncollected():
        assert not gc.isenabled()
        made = [[] for _ in range(100)]
        raise KeyError
    assert gc.isenabled() and gc.get_freeze_count() >= len(made)
    gc.disable()
    with host.uncollected():
        pass
    assert not gc.isenabled()
    gc.enable()
