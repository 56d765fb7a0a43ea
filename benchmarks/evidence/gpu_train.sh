#!/usr/bin/env bash
# Train pictures-tiny (configs/pictures_tiny.py) for some minutes on one GPU of a machine without a network.
#
#     bash benchmarks/evidence/gpu_train.sh pack                 # on a machine with a network: writes .gpu/, 27 MB
#     bash benchmarks/evidence/gpu_train.sh train 480 SETTINGS   # on the GPU, for 480 s: $OUT/model, $OUT/metrics.jsonl
#     bash benchmarks/evidence/gpu_train.sh train 120 --small    # tiny sizes, to test the script on CPU
#
# `pack` packs the train split of data/pictures (docs/pictures.md), and fetches the wheels that such machines lack. The
# machine must have jax with its GPU plugin, flax, optax, orbax-checkpoint, tensorboard, Pillow and absl-py; TensorFlow
# and tensorflow-datasets are not needed. SETTINGS are those of main.py: choose config.train.steps, over which the
# learning rate falls, by the images/s of a first minute. Evaluate $OUT/model (8 MB) elsewhere; a later training can
# start from it with --config.init.
set -euo pipefail
cd "$(dirname "$0")/../.."
packed=.gpu

pack() {
  rm -rf "$packed"
  mkdir -p "$packed"
  tar -cf "$packed/pictures.tar" -C data/pictures objects/train photographs/train
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version "${PYTHON_VERSION:-3.12}" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -d "$packed" \
    grain==0.2.18 array-record==0.8.6 portpicker==1.6.0 ott-jax==0.6.0 ml-collections==1.1.0 jaxopt==0.8.5 clu==0.0.12
  du -sh "$packed"
}

train() {
  local seconds=$1 work out=${OUT:-runs/gpu_train} settings
  shift
  if [[ ! -f $packed/pictures.tar ]]; then
    echo "error: $packed/pictures.tar is missing; run pack first, and copy $packed too." >&2
    exit 1
  fi
  settings=(--config.train.batch=256 --config.data.workers=14 --config.data.threads=4 --config.efficiency.dtype=bfloat16)
  if [[ ${1:-} == --small ]]; then
    shift
    settings=(--config.train.batch=8 --config.model.width=24 --config.model.mlp_dim=48 --config.model.layers=1
      --config.model.decoder.layers=1 --config.efficiency.unroll=1 --config.train.log_every=10)
  fi
  work=$(mktemp -d)
  mkdir -p "$work/site" "$work/pictures" "$out"
  if ! python3 -c "import grain, ml_collections, ott" 2> /dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$packed"/*.whl
    export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
  fi
  tar -xf "$packed/pictures.tar" -C "$work/pictures"
  # After these seconds `timeout` sends SIGTERM, at which main.py saves and ends.
  timeout "$seconds" python3 main.py --config=configs/pictures_tiny.py --workdir="$work/run" \
    --config.eval.tasks="()" --config.data.path="$work/pictures" "${settings[@]}" "$@" || [[ $? == 124 ]]
  python3 -m sparse_vis export --checkpoint="$work/run" --output="$out/model"
  cp "$work/run/metrics.jsonl" "$work/run/config.json" "$out"
  ls -l "$out" "$out/model"
}

case ${1:-} in
  pack) pack ;;
  train) train "${2:?give the seconds to train for}" "${@:3}" ;;
  *) echo "error: give pack, or train SECONDS; see the first lines of this script." >&2; exit 1 ;;
esac
