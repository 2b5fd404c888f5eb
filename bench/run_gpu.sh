#!/bin/sh
# All that wants a GPU, in one command: tests, memory and race checks on a short list, measurements.
# Results: bench/results/<card>/. Not yet run on any card.
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
export PYTHONPATH=.:python
status=0
"$PYTHON" -m pytest -m gpu -q tests/gpu || status=1
for tool in memcheck racecheck; do
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not here: $tool skipped"; continue; }
  timeout 120 compute-sanitizer --tool "$tool" --error-exitcode 1 "$PYTHON" -m pytest -m gpu -q tests/gpu \
    -k "(test_trees and 128) or test_graph_capture" || status=1
done
timeout 300 "$PYTHON" -m bench.cuda_attention || status=1
exit $status
