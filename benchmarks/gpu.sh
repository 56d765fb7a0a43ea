#!/usr/bin/env bash
# Run all benchmarks of one GPU in under 9 minutes, in bf16: step.py and parts.py for B/16 with tokenizer and H/14
# with pixels, encode.py and attention.py. Results go to $OUT, or to benchmarks/results/ if OUT is not set.
#
#     bash benchmarks/gpu.sh            # one GPU of 80 GB
#     bash benchmarks/gpu.sh --small    # tiny sizes, to test the script, also on CPU; 190 s of processor time
#
# It needs jax with its GPU plugin, flax, optax, numpy, absl-py and jaxtyping, and three pure-Python wheels that
# such machines often lack. Fetch them on a machine with a network, and copy the folder .whl/ with this repository:
#
#     pip download --no-deps --only-binary=:all: -d .whl ott-jax==0.6.0 ml-collections==1.1.0 jaxopt==0.8.5
#
# TensorFlow, grain, tensorflow-datasets and clu are not needed. JAX_COMPILATION_CACHE_DIR is a folder for compiled
# programs, so that a second run does not compile them again. With LIMIT=200, no benchmark starts after 200 s, and
# the script ends within 260 s.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-benchmarks/results}
mkdir -p "$out"
limit=${LIMIT:-480} # seconds; benchmarks that have not started by then are left out, with a message

if compgen -G ".whl/*.whl" > /dev/null; then
  site=$(mktemp -d)
  python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" .whl/*.whl || exit 1
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi

export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$(mktemp -d)} # parts.py times step.py's program
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92

b16_flags=${XLA_FLAGS:-} h14_flags=${XLA_FLAGS:-} few=()
if [[ ${1:-} == --small ]]; then
  b16=(--config=tests/train/tiny_config.py --config.teacher.enabled=False --config.efficiency.remat=products --repeats=2)
  h14=("${b16[@]}" --config.model.patch=12)
  b16+=(--config.model.target=vq --config.loss.reconstruction=0.05 --config.model.patch=12)
  few=(--images=1 --repeats=2)
elif [[ $# -gt 0 ]]; then
  echo "error: $1 is unknown; give --small or nothing." >&2
  exit 1
else
  # At compilation, XLA searches only for cuBLAS's and cuDNN's algorithms for B/16, and for nothing for H/14, which has
  # no convolutions. The search over Triton's tilings of every product took most of the time of compilation; the search
  # over fused code was not measured.
  # Products of two views with one kernel are not merged, as joining and splitting their tokens costs more; and XLA may
  # use 0.8 x 1.1 of the memory before it recomputes arrays. (Both: docs/performance.md.)
  flags="--xla_gpu_enable_triton_gemm=false --xla_gpu_experimental_enable_fusion_autotuner=false"
  flags+=" --xla_gpu_dot_merger_threshold_mb=0 --xla_gpu_memory_limit_slop_factor=110 ${XLA_FLAGS:-}"
  b16_flags="$flags --xla_gpu_autotune_level=2"
  h14_flags="$flags --xla_gpu_autotune_level=0"
  fast=(--config.efficiency.attention=pallas --config.efficiency.remat=none --config.efficiency.prototype_chunk=16384)
  fast+=("--config.efficiency.mesh=(-1, 1)" --repeats=7)
  b16=(--config=configs/imagenet_b16.py "${fast[@]}" --config.train.batch=128 --config.efficiency.unroll=12)
  b16+=(--config.model.tokenizer.dtype=bfloat16)
  h14=(--config=configs/imagenet_h14.py "${fast[@]}" --config.train.batch=36 --config.efficiency.unroll=32)
  h14+=(--config.model.target=pixel --config.loss.reconstruction=10)
fi

failed=0
measure() { # name, program, flags of XLA, arguments
  local name=$1 program=$2 flags=$3
  shift 3
  if ((SECONDS > limit)); then
    echo "== $name: left out, $SECONDS s are over"
    failed=1
    return
  fi
  echo "== $name (after $SECONDS s)"
  XLA_FLAGS=$flags timeout $((limit + 60 - SECONDS)) python3 -m "benchmarks.speed.$program" --json="$out/$name.json" "$@" 2> "$out/$name.log" &&
    rm -f "$out/$name.log" || { failed=1; echo "failed:"; tail -n 3 "$out/$name.log"; }
}

measure h14_pixel_step step "$h14_flags" "${h14[@]}"
measure b16_vq_step step "$b16_flags" "${b16[@]}"
measure b16_vq_parts parts "$b16_flags" "${b16[@]}"
measure h14_pixel_parts parts "$h14_flags" "${h14[@]}"
measure b16_encode encode "$b16_flags" "${b16[@]}" --images=256
measure attention attention "$b16_flags" "${few[@]}"
echo "== done after $SECONDS s; results in $out"
exit $failed
