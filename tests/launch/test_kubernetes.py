"""launch/kubernetes.py: its JobSet, checked against Kubernetes' schema, and the commands of its pods."""

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor

import kubernetes_validate
import pytest
import yaml
from main_process import ROOT, TINY
from test_distributed import port

spec = importlib.util.spec_from_file_location("kubernetes", ROOT / "launch" / "kubernetes.py")
kubernetes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kubernetes)

RUN = ["--config=configs/imagenet_b16.py", "--workdir=gs://bucket/b16"]
GPUS = ["--hosts=2", "--gpus=8"]
TPU = ["--tpu=tpu-v5-lite-podslice:16x16"]


def rendered(monkeypatch, capsys, *flags, run=RUN):
    """The printed JobSet, and its job after Kubernetes' own schema has accepted it."""
    monkeypatch.setattr(sys, "argv", ["kubernetes.py", "--name=b16", "--image=reg/x:1", *flags, "--", *run])
    kubernetes.main()
    tree = yaml.safe_load(capsys.readouterr().out)
    assert (tree["apiVersion"], tree["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (hosts,) = tree["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "b16-hosts-0"}, **hosts["template"]}
    kubernetes_validate.validate(job, "1.32", strict=True)
    return tree, job["spec"]


def expanded(command, index):
    """A pod's command as the kubelet runs it: variables replaced, $$ a dollar sign."""
    values = {"JOB_COMPLETION_INDEX": str(index)}
    swap = re.compile(r"\$\$|\$\((\w+)\)")
    return [swap.sub(lambda found: values.get(found[1], "$"), argument) for argument in command]


@pytest.mark.fast
def test_gpus(monkeypatch, capsys):
    tree, job = rendered(monkeypatch, capsys, *GPUS)
    assert tree["spec"]["failurePolicy"] == {"maxRestarts": 20} and "annotations" not in tree["metadata"]
    assert job["completions"] == job["parallelism"] == 2 and job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8} and "nodeSelector" not in pod
    assert expanded(pod["containers"][0]["command"], 1) == [
        "python", "main.py", "--stopped_status=75", "--distributed=b16-hosts-0-0.b16:8476,2,1", *RUN
    ]  # fmt: skip


@pytest.mark.fast
def test_gpus_of_gke_a_claim_and_a_tool(monkeypatch, capsys):
    flags = [
        "--gke-gpu=nvidia-h100-80gb",
        "--claim=photos:/data",
        "--service-account=trainer",
        "--tool=extract",
    ]
    run = ["--input=/data/it's $HOME $(x)", "--output=/data/features"]
    _, job = rendered(monkeypatch, capsys, *GPUS, *flags, run=run)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert pod["serviceAccountName"] == "trainer"
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "photos"}} in pod["volumes"]
    assert {"name": "data", "mountPath": "/data"} in pod["containers"][0]["volumeMounts"]
    command = expanded(pod["containers"][0]["command"], 0)
    assert command[:4] == ["python", "-m", "sparse_vis", "extract"] and command[5:] == run


@pytest.mark.fast
@pytest.mark.parametrize(
    ("slice_", "chips", "hosts"),
    [
        ("tpu-v5-lite-podslice:16x16", 4, 64),
        ("tpu-v5p-slice:4x4x4", 4, 16),
        ("tpu-v5-lite-podslice:2x4", 8, 1),
    ],
)
def test_a_tpu_slice(slice_, chips, hosts, monkeypatch, capsys):
    tree, job = rendered(monkeypatch, capsys, f"--tpu={slice_}", f"--tpu-chips={chips}")
    pod, (kind, topology) = job["template"]["spec"], slice_.split(":")
    assert job["completions"] == hosts and len(tree["metadata"]["annotations"]) == 1
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": kind, "cloud.google.com/gke-tpu-topology": topology
    }  # fmt: skip
    assert "--distributed=auto" in pod["containers"][0]["command"]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("flags", "run", "said"),
    [
        (["--name=B16", *GPUS], RUN, "--name=B16 is no name"),
        ([], RUN, "give either --gpus=N"),
        ([*GPUS, *TPU], RUN, "give either --gpus=N"),
        (["--tpu=v5e"], RUN, "--tpu=v5e is not KIND:TOPOLOGY"),
        (["--tpu=tpu-v5p-slice:3x3"], RUN, "has 9 chips, which --tpu-chips=4 does not divide"),
        ([*TPU, "--hosts=2"], RUN, "--hosts and --gke-gpu are for GPUs"),
        ([*GPUS, "--restarts=-1"], RUN, "--restarts not negative"),
        ([*GPUS, "--claim=photos"], RUN, "--claim=photos is not NAME:/PATH"),
        (GPUS, [RUN[0], "workdir=gs://b/x"], "no --workdir=… follows --"),
        (
            GPUS,
            ["--config.data.path=gs://b/x", "--workdir=runs/b16"],
            "--workdir=runs/b16 would be a folder in",
        ),
        ([*GPUS, "--claim=x:/data"], ["--workdir", "/data/../run"], "--workdir=/data/../run would be"),
        (GPUS, ["--workdir=s3://b/r"], "give --workdir=gs://…, or mount --claim"),
        (GPUS, [*RUN, "--distributed=auto"], "--distributed follows --"),
        ([*GPUS, "--image="], RUN, "--image= is not the name of an image"),
        (["--tpu=tpu-v5p-slice:0x4"], RUN, "--tpu=tpu-v5p-slice:0x4 is not KIND:TOPOLOGY"),
        ([*GPUS, "--gke-gpu=H100"], RUN, "--gke-gpu=H100 is not one of GKE's kinds"),
        ([*GPUS, "--claim="], RUN, "--claim= is not NAME:/PATH"),
        ([*GPUS, "--cpus=-3"], RUN, "--cpus=-3 is not a number of cores"),
        *(
            ([*GPUS, f"--memory={size}"], RUN, f"--memory={size} is not a size")
            for size in ("64", "64GB", "64gi")
        ),
        ([*GPUS, "--tool=pack"], RUN, "--tool=pack is not extract"),
        ([*GPUS, "--name=b\nkind"], RUN, r"--name=b\nkind is no name"),
        ([*GPUS, "--gpu=8"], RUN, "unrecognized arguments: --gpu=8; see --help"),
    ],
)
def test_what_describes_no_run_is_refused(flags, run, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kubernetes.py", "--name=b16", "--image=x", *flags, "--", *run])
    with pytest.raises(SystemExit) as end:
        kubernetes.main()
    assert str(end.value).startswith("error: ") and said in end.value.code and end.value.code.count("\n") == 0


def test_the_pods_find_each_other_on_this_machine(monkeypatch, capsys, tmp_path):
    """Both commands are run with the loopback address for process 0, up to an error of the configuration."""
    run = [f"--config={TINY}", f"--workdir={tmp_path / 'run'}", "--config.train.batch=3"]
    _, job = rendered(monkeypatch, capsys, *GPUS, f"--claim=x:{tmp_path}", run=run)
    command, address = job["template"]["spec"]["containers"][0]["command"], f"127.0.0.1:{port()}"
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", address)

    def process(index):
        here = [part.replace("b16-hosts-0-0.b16:8476", address) for part in expanded(command, index)]
        return subprocess.run(
            [sys.executable, *here[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120
        )

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(process, (0, 1))
    assert first.returncode == 1 and second.returncode != 0
    assert "error: process 0 of 2: config.train.batch=3 is not a multiple of devices x" in first.stderr


@pytest.mark.fast
def test_the_dockerfile_is_well_formed():
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    done = subprocess.run(
        [hadolint, ROOT / "launch" / "Dockerfile"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")
