"""Settings for all tests with models."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The models are so small that more threads only wait for each other. Tests about threads set their own number."""
    torch.set_num_threads(1)
