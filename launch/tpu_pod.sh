#!/bin/bash
# A run on a Cloud TPU pod slice, one process per host. From anywhere with gcloud:
#
#     TPU=my-pod ZONE=us-west4-a FOLDER=/home/me/sparse-vis launch/tpu_pod.sh \
#         --config=configs/imagenet_h14.py --workdir=gs://bucket/runs/h14
#
# TPU and ZONE name the slice, FOLDER is the repository on every host (installed there with pip, and jax[tpu]).
# Arguments after the script's name go to main.py; the workdir is in a bucket, or in a folder that all hosts
# share (docs/pods.md). To start a tool instead of main.py, put e.g. PROGRAM="-m sparse_vis extract" before the
# command. The same command continues a run. Processes find each other through the TPU's metadata.

: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE to its zone}" "${FOLDER:?set FOLDER to the repository}"
: "${1:?give arguments for main.py, e.g. --config=configs/imagenet_h14.py --workdir=gs://bucket/runs/h14}"
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="cd $(printf %q "$FOLDER") && python ${PROGRAM:-main.py} --distributed=auto$(printf ' %q' "$@")"
status=$?
if [ $status -ne 0 ]; then
    echo "error: a process of the run ended with status $status, so the others end too; fix the cause" \
        "and repeat the command: it continues from what was saved, if anything was." >&2
fi
exit $status
