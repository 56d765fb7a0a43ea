#!/bin/bash
# A run on a Slurm cluster, one process per GPU. From the repository's folder, with its environment active:
#
#     sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh \
#         --config=configs/imagenet_b16.py --workdir=/shared/runs/b16
#
# Arguments after the script's name go to main.py; all nodes must share the workdir. To start a tool instead of
# main.py, put e.g. PROGRAM="-m sparse_vis extract" before sbatch. The same command continues a run. Processes
# find each other through Slurm's own variables.
#SBATCH --job-name=sparse-vis
#SBATCH --cpus-per-task=8
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Two minutes before the time limit: save and stop.
#SBATCH --signal=TERM@120

trap : TERM # srun forwards SIGTERM to the processes; this script waits for them
srun --kill-on-bad-exit=1 python ${PROGRAM:-main.py} --distributed=auto "$@"
status=$?
if [ $status -ne 0 ]; then
    echo "error: a process of the run ended with status $status, so Slurm ended the others too; fix the cause" \
        "and repeat the sbatch command: it continues from what was saved, if anything was." >&2
fi
exit $status
