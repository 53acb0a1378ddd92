"""Strict settings for every test, four virtual devices, and the way to the shared test data."""

import os
from pathlib import Path

# Most of the time is spent in compiling, which takes half of it where nothing is optimised.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    + os.environ.get("XLA_FLAGS", "")
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder shared/ beside the checkout: real weights and images")
    return SHARED
