#!/usr/bin/env bash
# Runs the packed programs on a machine with a GPU: run.sh OUT [STEP…], steps: conformance two-gpus wgpu run bench
# peers sanitize.
# Each step leaves OUT/STEP.txt: facts as "name: value" lines, then the raw log. A line "fact: name: value" of the log
# is such a fact too. A failing step fails the script, after the others have run.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1
shift
steps=${*:-conformance run bench}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$here" || exit 1
[ -x xtask ] || tar -xJf programs.tar.xz || python3 -m tarfile -e programs.tar.xz . || exit 1
export MOE_REQUIRE_CUDA=1
failed=0

facts() {
    echo "step: $1"
    echo "date: $(date -u +%Y-%m-%d)"
    echo "commit: $(cat commit)"
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1 | sed 's/\(.*\), \(.*\)/gpu: \1\ndriver: \2/'
    sed 's/^/ptx: /' moe-cuda/ptx/SHA256SUMS
}

# Sums the counts that the test runner prints.
counts() {
    awk '/^test result:/ { p += $4; f += $6; i += $8 } END { printf "tests: %d passed, %d failed, %d ignored\n", p, f, i }' "$1"
}

finish() { # STEP LOG STATUS
    { facts "$1"; counts "$2"; sed -n 's/^ *fact: //p' "$2"; echo "status: $3"; echo "--- log"; cat "$2"; } >"$out/$1.txt"
    [ "$3" = 0 ] || failed=1
    echo "== $1: status $3"
    tail -n "${TAIL:-6}" "$2"
}

for step in $steps; do
    log=$(mktemp)
    case $step in
    conformance)
        status=0
        for test in tests/cuda/*; do
            echo "## $(basename "$test")" >>"$log"
            "$test" --show-output --test-threads=1 >>"$log" 2>&1 || status=$?
        done
        ;;
    two-gpus) # on a machine with two
        status=0
        echo "## two_gpus" >>"$log"
        MOE_REQUIRE_TWO_GPUS=1 tests/cuda/two_gpus --show-output --test-threads=1 >>"$log" 2>&1 || status=$?
        for test in equality conformance; do
            echo "## $test on cuda:1" >>"$log"
            MOE_CUDA_DEVICE=cuda:1 tests/cuda/$test --show-output --test-threads=1 >>"$log" 2>&1 || status=$?
        done
        ;;
    wgpu) # MOE_REQUIRE_WGPU: a part of the adapter's name
        status=0
        for test in tests/wgpu/*; do
            echo "## $(basename "$test")" >>"$log"
            "$test" --show-output --test-threads=1 >>"$log" 2>&1 || status=$?
        done
        ;;
    run)
        status=0
        for dtype in f32 bf16; do
            ./xtask run --backend cuda --dtype $dtype >>"$log" 2>&1 || status=$?
        done
        ;;
    bench)
        ./moe-bench --data benches/data --backend cuda --commit "$(cat commit)" --out "$out" \
            ${BENCH_ARGS:---no-peers --cold --routing uniform,ep8 --dtype bf16,f8e4m3} >"$log" 2>&1
        status=$?
        ;;
    peers) # VLLM_MOE_LIB, VLLM_C_LIB: vLLM's _moe_C_stable_libtorch.abi3.so and _C_stable_libtorch.abi3.so
        python3 benches/peers/peers.py --out "$out/peers.json" ${VLLM_MOE_LIB:+--vllm "$VLLM_MOE_LIB"} \
            ${VLLM_C_LIB:+--vllm-quant "$VLLM_C_LIB"} \
            ${PEERS_ARGS:---device cuda --cold --routing uniform,ep8 --dtype bf16,f8e4m3} >"$log" 2>&1
        status=$?
        ;;
    sanitize)
        status=0
        for tool in memcheck racecheck initcheck synccheck; do
            echo "## $tool" >>"$log"
            MOE_SANITIZE=1 compute-sanitizer --tool "$tool" --error-exitcode 9 tests/cuda/sanitize --show-output \
                --test-threads=1 >>"$log" 2>&1 || status=$?
        done
        ;;
    *)
        echo "no such step: $step" >&2
        exit 2
        ;;
    esac
    finish "$step" "$log" "$status"
done
# One file with both.
if [ -f "$out/bench.json" ] && [ -f "$out/peers.json" ]; then
    ./moe-bench --no-run --merge "$out/bench.json" --merge "$out/peers.json" --out "$out" >"$out/table.txt" || failed=1
fi
exit $failed
