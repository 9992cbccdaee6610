"""Fixtures of the Python tests. SEMKV_TEST_SEED=N repeats a run; pytest's first lines name it."""
import os

import numpy as np
import pytest

import semkv
from semkv import _abi

SEED = int(os.environ.get("SEMKV_TEST_SEED", "20251121"))


def pytest_report_header():
    return [f"semkv {semkv.__version__}: {_abi.LIBRARY_PATH}", f"SEMKV_TEST_SEED={SEED}"]


@pytest.fixture
def rng():
    return np.random.default_rng(SEED)
