#!/bin/sh
# Everything that wants a GPU, in one command and under nine minutes; results: bench/results/<card>/ (bench/run_gpu.py).
#   bench/run_gpu.sh                   on a machine with a card, the package built
#   bench/run_gpu.sh --dry-run         goes through the motions on the CPU
#   bench/run_gpu.sh --only attention  some of the steps
cd "$(dirname "$0")/.." || exit 2
PYTHONPATH=.:python${PYTHONPATH:+:$PYTHONPATH} exec "${PYTHON:-python3}" -m bench.run_gpu "$@"
