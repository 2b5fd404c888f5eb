"""Measurements, one script per question: ``python -m bench.<name>`` from the root of the repository."""

import pathlib
import sys

# A checkout that was built in place need not be installed.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "python"))
