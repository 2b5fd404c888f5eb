"""Settings for all tests with models."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The models are so small that more threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def two_threads(one_thread):
    """For tests about threads, which call it when they want them."""
    yield lambda: torch.set_num_threads(2)
    torch.set_num_threads(1)
