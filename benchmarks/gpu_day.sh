#!/usr/bin/env bash
# A step of the GPU day, see docs/gpu_day.md: at most nine minutes, everything of worth in the folder that $OUT names.
#
#   benchmarks/gpu_day.sh correctness
#   benchmarks/gpu_day.sh speed|accuracy [options of benchmarks/gpu_speed.py or gpu_accuracy.py]
#   benchmarks/gpu_day.sh STEP --device cpu --small        the same to its end without a GPU, tiny
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
step=${1:-}
shift || true
case $step in
correctness | speed | accuracy) ;;
*)
    echo "gpu_day.sh: step '$step': expected correctness, speed or accuracy" >&2
    exit 2
    ;;
esac
if [ -z "${OUT:-}" ]; then
    echo "gpu_day.sh: OUT is not set: expected the folder that results go to" >&2
    exit 2
fi
mkdir -p "$OUT"

# Packages that the machine lacks, brought along as wheels.
if ! "$PYTHON" -c 'import omegaconf' 2>/dev/null; then
    site=${TMPDIR:-/tmp}/gpu_day_site
    if [ ! -d "$site" ]; then
        "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$site" build/gpu_day/wheels/*.whl || exit 4
    fi
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi

if [[ " $* " == *" --device cpu "* ]]; then
    # Compiling takes a CPU a minute.
    export CUDA_VISIBLE_DEVICES='' INTL_BENCH_GPU_TESTS=cpu TORCHDYNAMO_DISABLE=1
elif ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu_day.sh: PyTorch sees no GPU here; --device cpu --small shows whether the step runs" >&2
    exit 4
fi

export PYTHONUNBUFFERED=1
if [ "$step" = correctness ]; then
    # These files alone: others import what the machine may lack.
    files=$(grep -l 'pytest.mark.gpu' tests/*/test_*.py)
    # shellcheck disable=SC2086
    set -- -m pytest -m gpu -vv -rs --durations=10 --junitxml "$OUT/correctness.xml" $files
else
    set -- "benchmarks/gpu_$step.py" --out "$OUT" "$@"
fi
{
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
    timeout --signal INT --kill-after 15 530 "$PYTHON" "$@"
} 2>&1 | tee "$OUT/$step.log"
exit "${PIPESTATUS[0]}"
