"""A JobSet for a run on Kubernetes: one pod per host, one process per pod, restarted until the run has ended.

    python launch/kubernetes.py --name=b16 --image=IMAGE --hosts=2 --gpus=8 \\
        -- --config=configs/imagenet_b16.py --workdir=gs://bucket/b16 | kubectl apply -f -
    python launch/kubernetes.py --name=h14 --image=IMAGE --tpu=tpu-v5-lite-podslice:16x16 \\
        -- --config=configs/imagenet_h14.py --workdir=gs://bucket/h14 | kubectl apply -f -

    --name=b16              of the JobSet, and the beginning of its pods' names
    --image=IMAGE           container image; launch/Dockerfile makes one
    --hosts=2               number of hosts with GPUs
    --gpus=8                GPUs of each host
    --gke-gpu=NAME          on GKE: the kind of GPU, e.g. nvidia-h100-80gb
    --tpu=KIND:TOPOLOGY     on GKE: a TPU slice instead of GPUs; its hosts follow from the topology
    --tpu-chips=4           chips of a host of the slice
    --claim=NAME:/PATH      mount this PersistentVolumeClaim, e.g. for images or a shared workdir
    --service-account=NAME  service account of the pods, e.g. one that may read and write the bucket
    --cpus=8                requested for each pod
    --memory=64Gi           requested for each pod
    --restarts=20           how often all pods are started again, for losses, preemptions and errors together
    --tool=extract          start this tool of the package instead of main.py
    --                      what follows is for main.py or the tool

Prints YAML. The cluster needs JobSet (jobset.sigs.k8s.io) and, for GPUs, NVIDIA's device plugin. If a pod is
lost or preempted, all are started again, and the run continues from its last checkpoint.
"""

import argparse
import math
import posixpath
import re
import sys
from typing import NoReturn

import yaml

PORT = 8476  # of process 0
GRACE_SECONDS = 120  # from SIGTERM to SIGKILL: time to finish a step and to save
STOPPED = 75  # exit status after a SIGTERM; with 0 a preempted run would pass for a finished one
CLAIM, SHARED = "data", "shared-memory"  # names of volumes
# Flag -> pattern, what it must be. Kubernetes' own schema takes any text for these.
FORMS = {
    "image": (r"\S+", "the name of an image"),
    "tpu": (r"tpu[a-z0-9-]*:[1-9]\d*(x[1-9]\d*)+", "KIND:TOPOLOGY; give e.g. tpu-v5-lite-podslice:16x16"),
    "gke_gpu": (r"nvidia-[a-z0-9-]*[a-z0-9]", "one of GKE's kinds; give e.g. nvidia-h100-80gb"),
    "claim": (r"[a-z0-9][a-z0-9.-]*:/[^:]+", "NAME:/PATH"),
    "service_account": (r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", "the name of one"),
    "cpus": (r"[1-9]\d*m?", "a number of cores; give e.g. 8"),
    "memory": (r"[1-9]\d*[MGT]i?", "a size; give e.g. 64Gi"),
    "tool": ("extract", "extract, the only tool for several processes"),
}


def job_set(given: argparse.Namespace, hosts: int) -> dict:
    """The JobSet of a run on `hosts` hosts, as a tree of plain values."""
    job = {
        "completions": hosts,
        "parallelism": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one lost pod ends the job, because the others cannot go on without it
        "template": pod(given, hosts),
    }
    metadata = {"name": given.name}
    if given.tpu:  # all pods in one slice
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {"maxRestarts": given.restarts},
            "replicatedJobs": [{"name": "hosts", "replicas": 1, "template": {"spec": job}}],
        },
    }


def pod(given: argparse.Namespace, hosts: int) -> dict:
    """The template of a pod: one process, with all devices of its host."""
    kind, count = ("google.com/tpu", given.tpu_chips) if given.tpu else ("nvidia.com/gpu", given.gpus)
    container = {
        "name": "process",
        "image": given.image,
        "command": command(given, hosts),
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "resources": {
            "requests": {"cpu": given.cpus, "memory": given.memory, kind: count},
            "limits": {kind: count},
        },
        # A container's own /dev/shm, 64 MB, is too small for NCCL and for data workers.
        "volumeMounts": [{"name": SHARED, "mountPath": "/dev/shm"}],
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "containers": [container],
        "volumes": [{"name": SHARED, "emptyDir": {"medium": "Memory"}}],
    }
    if given.claim:
        name, path = given.claim.split(":", 1)
        container["volumeMounts"].append({"name": CLAIM, "mountPath": path})
        spec["volumes"].append({"name": CLAIM, "persistentVolumeClaim": {"claimName": name}})
    if given.service_account:
        spec["serviceAccountName"] = given.service_account
    if given.tpu:
        accelerator, topology = given.tpu.split(":")
        spec["nodeSelector"] = {
            "cloud.google.com/gke-tpu-accelerator": accelerator,
            "cloud.google.com/gke-tpu-topology": topology,
        }
    elif given.gke_gpu:
        spec["nodeSelector"] = {"cloud.google.com/gke-accelerator": given.gke_gpu}
    return {"spec": spec}


def command(given: argparse.Namespace, hosts: int) -> list[str]:
    """The command of a pod. Kubernetes replaces $(JOB_COMPLETION_INDEX), and $$ by $."""
    program = ["-m", "sparse_vis", given.tool] if given.tool else ["main.py", f"--stopped_status={STOPPED}"]
    # On GKE, JAX reads the hosts of a TPU slice from variables. JobSet gives process 0 of others this name.
    first = f"{given.name}-hosts-0-0.{given.name}:{PORT}"
    place = "auto" if given.tpu else f"{first},{hosts},$(JOB_COMPLETION_INDEX)"
    arguments = [argument.replace("$", "$$") for argument in given.arguments]
    return ["python", *program, f"--distributed={place}", *arguments]


def hosts_of(tpu: str, chips: int) -> int:
    """The number of hosts of a slice KIND:TOPOLOGY, whose hosts have this many chips."""
    total = math.prod(map(int, tpu.split(":")[1].split("x")))
    if total % chips:
        refuse(f"--tpu={tpu} has {total} chips, which --tpu-chips={chips} does not divide; see GKE's list")
    return total // chips


def refuse(message: str) -> NoReturn:
    """Exit with one sentence."""
    sys.exit("error: " + message.replace("\n", "\\n") + ".")


def check(given: argparse.Namespace) -> None:
    """Exit with one sentence if the flags do not describe a run."""
    longest = 63 - len("-hosts-0-00000")  # of a pod's name, which is its host name
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", given.name) or len(given.name) > longest:
        refuse(
            f"--name={given.name} is no name; use up to {longest} of a-z, 0-9 and -, beginning with a letter"
        )
    for flag, (pattern, what) in FORMS.items():
        value = getattr(given, flag)
        if value is not None and not re.fullmatch(pattern, value):
            refuse(f"--{flag.replace('_', '-')}={value} is not {what}")
    if bool(given.tpu) == bool(given.gpus):
        refuse("give either --gpus=N with --hosts=N, or --tpu=KIND:TOPOLOGY")
    if min(given.hosts, given.tpu_chips, given.gpus + 1, given.restarts + 1) < 1:
        refuse("--hosts and --tpu-chips must be at least 1, --gpus and --restarts not negative")
    if given.tpu and (given.gke_gpu or given.hosts != 1):
        refuse("--hosts and --gke-gpu are for GPUs; the hosts of a --tpu follow from its topology")
    check_arguments(given)


def check_arguments(given: argparse.Namespace) -> None:
    """Exit with one sentence if what follows -- would be lost with a pod, or contradicts `command`."""
    flag, buckets = ("--output", ("gs://", "s3://")) if given.tool else ("--workdir", ("gs://",))
    found = {}
    for argument, after in zip(given.arguments, [*given.arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        found[name] = value if equals else after
    if "--distributed" in found:
        refuse("--distributed follows --, but the pods get theirs from this script; leave it out")
    if flag not in found:
        refuse(f"no {flag}=… follows --; a folder inside a pod would be lost with it")
    path, shared = posixpath.normpath(found[flag]), (given.claim or "").partition(":")[2].rstrip("/")
    if not found[flag].startswith(buckets) and not (shared and f"{path}/".startswith(f"{shared}/")):
        refuse(
            f"{flag}={found[flag]} would be a folder inside each pod, and lost with it; give {flag}="
            f"{' or '.join(buckets)}…, or mount --claim=NAME:/PATH and give {flag}=/PATH/…"
        )


def main() -> None:
    """Print the JobSet that the command line describes."""
    parser = argparse.ArgumentParser(usage=__doc__, add_help=True, allow_abbrev=False)
    parser.error = lambda message: refuse(f"{message}; see --help")
    for flag in ("--name", "--image"):
        parser.add_argument(flag, required=True, help=argparse.SUPPRESS)
    for flag in ("--gke-gpu", "--tpu", "--claim", "--service-account", "--tool"):
        parser.add_argument(flag, help=argparse.SUPPRESS)
    for flag, default in (("--hosts", 1), ("--gpus", 0), ("--tpu-chips", 4), ("--restarts", 20)):
        parser.add_argument(flag, type=int, default=default, help=argparse.SUPPRESS)
    parser.add_argument("--cpus", default="8", help=argparse.SUPPRESS)
    parser.add_argument("--memory", default="64Gi", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    check(given)
    hosts = hosts_of(given.tpu, given.tpu_chips) if given.tpu else given.hosts
    print(yaml.safe_dump(job_set(given, hosts), sort_keys=False, width=1000), end="")


if __name__ == "__main__":
    main()
