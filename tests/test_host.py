"""What is set before Python starts, and what the user's own settings keep."""

import os
import pathlib
import subprocess
import sys

import pytest

from sparse_vis import host


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
    ("given", "machine", "version", "tpu", "expected"),
    [
        (None, "x86_64", "0.10.2", None, host.SUMS_ALONE),
        ("--xla_dump_to=d", "x86_64", "0.12.0.1", None, f"{host.SUMS_ALONE} --xla_dump_to=d"),
        (f"--{host.LIBRARIES}=", "x86_64", "0.10.2", None, f"--{host.LIBRARIES}="),
        (None, "arm64", "0.10.2", None, None),
        (None, "x86_64", "0.13.0", None, None),
        (None, "x86_64", "0.10.2", "found", None),
    ],
)
def test_products_have_the_library_that_was_measured_where_it_was(
    monkeypatch, given, machine, version, tpu, expected
):
    monkeypatch.setattr(os, "environ", {} if given is None else {"XLA_FLAGS": given})
    monkeypatch.setattr(host.platform, "machine", lambda: machine)
    monkeypatch.setattr(host, "jaxlib_version", version)
    monkeypatch.setattr(host.importlib.util, "find_spec", {"libtpu": tpu}.get)
    host.add_xla_flags()
    host.add_xla_flags()  # a process that started itself again
    assert os.environ.get("XLA_FLAGS") == expected


def test_the_flag_reaches_xla():
    program = (
        "import jax, jax.numpy as jnp\n"
        "x = jnp.ones((512, 512))\n"
        "print(jax.jit(lambda x: x @ x).lower(x).compile().as_text())"
    )
    environment = os.environ | {"XLA_FLAGS": host.SUMS_ALONE}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert " dot(" in run.stdout and "ynn" not in run.stdout
