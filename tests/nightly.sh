#!/usr/bin/env bash
# The whole suite with the instruction sets of three generations of processors, each time next to two
# busy loops: no test may depend on the processor, the threads or the load. What torch.compile has
# made for one generation does not compile for another, so each has a cache of its own.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
failed=0
caches=$(mktemp -d)
trap 'rm -rf "$caches"' EXIT
for isa in "" "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2" \
    "ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41"; do
    echo "== ${isa:-as it is}"
    loops=()
    for _ in 1 2; do
        (while :; do :; done) &
        loops+=($!)
    done
    # shellcheck disable=SC2086  # two variables
    env $isa TORCHINDUCTOR_CACHE_DIR="$caches/${isa// /,}" "$python" -m pytest --quiet -n 2 --dist loadfile --no-loadscope-reorder || failed=1
    kill "${loops[@]}"
    wait "${loops[@]}" 2>/dev/null
done
# On a CUDA runtime that does nothing, where a Python with torch's CUDA build is given.
if [ -n "${STUB_PYTHON:-}" ]; then
    make check-stub STUB_PYTHON="$STUB_PYTHON" || failed=1
fi
exit $failed
