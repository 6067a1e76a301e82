"""Kernels against their twins: on a GPU, or else step by step in Triton's interpreter."""

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    pytest.importorskip("triton", reason="no Triton for this platform")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
