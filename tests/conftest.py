"""Set before JAX starts: no accelerator, quick compilation, and each program compiled once for all processes.

Type annotations of public array functions are checked by beartype while the tests run.
"""

import atexit
import gc
import os
import shutil
import signal
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest
from jaxlib.version import __version__ as jaxlib_version
from jaxtyping import install_import_hook

QUICK = "--xla_backend_optimization_level=0"
# Programs that run once are ready sooner without; later versions always use them, and refuse the flag.
if [int(part) for part in jaxlib_version.split(".")[:3]] < [0, 11, 1]:
    QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", QUICK)

# PyTorch's threads wait for work asleep: else they spin, on cores that xdist's other process needs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Of this run of pytest: xdist's processes and those that tests start inherit the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")  # or keys depend on the folder's name

os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # lines of source, which no test reads

CHECKED = (
    "ops", "views", "models", "losses", "evals", "viz", "report", "explore", "data.compose", "data.scenes",
    "data.pictures", "data.address", "data.examples", "data.decode", "data.cut", "data.records",
    "train.recipe", "train.optimizer", "train.health", "train.finetune", "commands.reconstruct",
    "commands.segmenter", "commands.watch",
)  # fmt: skip
install_import_hook([f"sparse_vis.{name}" for name in CHECKED], "beartype.beartype")


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """A tiny run with two checkpoints, to read; 12 is newer than 3 as a number, older as a word."""
    from tests.tiny_checkpoint import write_checkpoints  # here, as it imports JAX

    path = tmp_path_factory.mktemp("run")
    write_checkpoints(path, {3: 1, 12: 2})
    return path


@pytest.fixture(scope="session")
def loaded(workdir):
    import sparse_vis

    return sparse_vis.load(workdir)


@pytest.fixture(scope="session")
def bucket():
    """A server of gs://bucket, which this process uses from here on; its `variables` are for others."""
    from tests.bucket_server import Bucket

    with Bucket() as bucket:
        os.environ.update(bucket.variables)
        yield bucket


@pytest.fixture(scope="session")
def s3():
    """A server of s3://bucket, which this process uses from here on."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "testing"
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield
    server.stop()


def pytest_collection_finish():
    """Tracing makes many objects that live; a tenth of its time would go into looking for garbage."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def signal_handlers():
    """Those of before the test: one that stays ends this process when a later test sends itself a signal."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:  # None: not set from Python
            signal.signal(number, handler)


# The longest files, in this order, so that no process is left with one of them at the end.
LONGEST = (
    "test_commands.py", "test_elastic.py", "test_step.py", "test_mesh.py", "test_resume.py",
    "test_buckets.py", "test_growth.py", "test_speed.py", "test_command.py", "test_health.py",
    "test_reproduce.py", "test_peer.py", "test_evidence.py", "test_precision.py", "test_decoder_probe.py",
    "test_vq.py", "test_notebooks.py", "test_extract.py", "test_configs.py", "test_bad_input.py",
    "test_inception.py",
)  # fmt: skip
LONGEST_FIRST = {name: place for place, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST_FIRST.get(item.path.name, len(LONGEST)))
