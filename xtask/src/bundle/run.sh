#!/usr/bin/env bash
# Tests and measures on a machine with a GPU. Needs the driver and glibc 2.34; no Rust, no CUDA toolkit.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)

usage() {
    cat >&2 <<'EOF'
run.sh test [NEXTEST ARGS]      every test, those of the GPU one at a time; a missing GPU is a failure
                                (only those of the GPU: run.sh test -E 'test(/(^|::)gpu/)')
run.sh sanitize [NEXTEST ARGS]  compute-sanitizer, memcheck and racecheck, on the small cases of the GPU
run.sh bench [CRITERION ARGS]   every benchmark; results in criterion/
run.sh demo [ARGS]              the end-to-end demonstration on CUDA
run.sh harness [ARGS]           any other command of the harness
EOF
    exit 2
}

nextest() {
    # Images that this bundle brings are tested too.
    if compgen -G "$here/images/*.cubin" >/dev/null; then export TEST_IMAGES=$here/images; fi
    REQUIRE_GPU=1 "$here/bin/cargo-nextest" nextest run --archive-file "$here/tests.tar.zst" \
        --workspace-remap "$here/source" --no-fail-fast "$@"
}

sanitize() {
    COMPUTE_SANITIZER=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
    if [ ! -x "$COMPUTE_SANITIZER" ]; then
        echo "no compute-sanitizer on PATH or in /usr/local/cuda/bin: set COMPUTE_SANITIZER to its path" >&2
        exit 1
    fi
    export COMPUTE_SANITIZER SANITIZER_TOOL
    # Each test process starts through this script, see under_sanitizer.
    export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="bash $here/run.sh under-sanitizer"
    [ $# -gt 0 ] || set -- -E 'test(/(^|::)gpu/) & test(/small/)'
    local failed=0
    for SANITIZER_TOOL in memcheck racecheck; do
        echo "== $SANITIZER_TOOL"
        nextest "$@" || failed=1
    done
    return $failed
}

# nextest also asks each binary for the list of its tests, and reads what it prints.
under_sanitizer() {
    case " $* " in
    *" --list "*) exec "$@" ;;
    *) exec "$COMPUTE_SANITIZER" --tool "$SANITIZER_TOOL" --error-exitcode 99 "$@" ;;
    esac
}

bench() {
    local found=0 program
    for program in "$here"/benches/*; do
        [ -f "$program" ] || continue
        found=1
        # Without --bench criterion runs every case once and measures nothing.
        CRITERION_HOME=$here/criterion "$program" --bench "$@"
    done
    [ $found = 1 ] || { echo "no benchmarks in this bundle" >&2; return 1; }
}

# The shipped files are found from the root of the source tree.
harness() {
    cd "$here/source"
    "$here/bin/harness" "$@"
}

[ ! -f "$here/programs.tar.gz" ] || [ -d "$here/bin" ] || tar -xzf "$here/programs.tar.gz" -C "$here"

command=${1:-}
[ $# -gt 0 ] && shift
case $command in
test) nextest "$@" ;;
sanitize) sanitize "$@" ;;
under-sanitizer) under_sanitizer "$@" ;;
bench) bench "$@" ;;
demo) harness demo --device cuda "$@" ;;
harness) harness "$@" ;;
*) usage ;;
esac
