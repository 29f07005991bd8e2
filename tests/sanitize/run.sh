#!/usr/bin/env bash
# Compile the extensions with a sanitizer, beside those of every day, and run tests with them:
#
#     bash tests/sanitize/run.sh address [pytest arguments]   memory, leaks, undefined behaviour
#     bash tests/sanitize/run.sh thread  [pytest arguments]   data races
#
# Fails if a test fails or if there is a report, from any process, whether its test cares or not.
# gcc and its runtimes are needed; PYTHON and CC name others than .venv/bin/python and cc. Without
# arguments all tests run but for SKIPPED below.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
cc=${CC:-cc}
kind=${1:-}
case $kind in
address) flags=address,undefined runtimes="libasan.so libubsan.so libstdc++.so" ;;
thread) flags=thread runtimes=libtsan.so ;;
*) echo "usage: bash tests/sanitize/run.sh address|thread [pytest arguments]" >&2 && exit 2 ;;
esac
shift
base=$PWD/build/sanitize-$kind
reports=$base/reports
# What times the extensions or installs other ones into environments of its own; what runs documents
# and checks sources has nothing compiled in it. The demo and its models need torch and pandas, which
# bring a runtime of their own.
SKIPPED=(--ignore=tests/e2e/test_bench.py --ignore=tests/e2e/test_compare.py
    --ignore=tests/e2e/test_demo.py --ignore=tests/unit/test_bench.py
    --ignore=tests/test_docs.py --ignore=tests/test_architecture.py
    --deselect=tests/unit/test_optimizers.py::test_kernels_equal_torch
    # A sanitizer keeps what was freed for a while, on purpose, and has memory of its own.
    --deselect=tests/unit/test_memory_limit.py::test_a_process_stays_within_the_limit_through_growth_churn_seal_and_snapshot
    --deselect=tests/unit/test_ttl.py::test_resident_memory_falls_after_expiry)
if [ "$kind" = address ]; then
    # What looks for leaks traces the process, as strace does there, and only one of them can.
    SKIPPED+=(--ignore=tests/crash/test_states.py)
fi

MONOLITH_KV_SANITIZE=$flags "$python" setup.py -q build --build-base "$base" --build-lib "$base/lib"
"$cc" -g -shared -fPIC -fsanitize="$flags" tests/sanitize/bait.c -o "$base/bait.so"

# The interpreter knows nothing of it and needs the runtime before anything else. libstdc++: what is
# thrown there is watched, too.
preload=
for name in $runtimes; do
    path=$("$cc" -print-file-name="$name")
    [ -e "$path" ] || { echo "$name is missing: install gcc with its sanitizers" >&2 && exit 2; }
    preload+=${preload:+ }$path
done
# The copy of the package comes first, and the folder that holds the sources does not.
export PYTHONSAFEPATH=1 PYTHONPATH=$base/lib
# The interpreter's own pools would hide where an object ends and that one was freed.
export PYTHONMALLOC=malloc
# Reports tell, not exit codes: a process of which a test expects 0 may leave leaks of others.
common=log_path=$reports/report:print_stacktrace=1:exitcode=0
export ASAN_OPTIONS=$common:detect_leaks=1:allocator_may_return_null=1
export TSAN_OPTIONS=$common:history_size=4
# In a process with both, the runtime of undefined behaviour writes to stderr, whatever it is told:
# it ends the process, so that a test which reads the output of another one fails all the same.
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1:halt_on_error=1}

run() { LD_PRELOAD=$preload "$python" "$@"; }

clear_reports() { rm -rf "$reports" && mkdir -p "$reports"; }

expect_report() { # a mistake in bait.c, what its report says
    clear_reports
    run tests/sanitize/bait.py "$base/bait.so" "$1" >"$reports/output" 2>&1 || true
    local told
    told=$("$python" tests/sanitize/reports.py "$reports") || true
    if [[ $told != *"$2"* ]]; then
        echo "the sanitizer does not report $1 in bait.c: it is not at work" >&2
        cat "$reports"/* >&2
        exit 1
    fi
}
if [ "$kind" = thread ]; then
    expect_report race "data race"
else
    expect_report overflow "heap-buffer-overflow"
    expect_report undefined "signed integer overflow"
    expect_report leak "leak of 8 byte"
fi
clear_reports

[ $# -gt 0 ] || set -- "${SKIPPED[@]}" tests
failed=0
# pytest leaves the descriptor of stderr alone: what a runtime writes there must not be lost.
run -m pytest -q -p no:cacheprovider --capture=sys "$@" 2> >(tee "$reports/stderr" >&2) || failed=$?
"$python" tests/sanitize/reports.py "$reports" || failed=1
exit "$failed"
