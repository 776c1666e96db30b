"""What all tests share: one CPU backend, and the way to data that is not part of the project."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def shared_path():
    """A function from a path below the shared data folder to that path; skips the test where it is absent."""

    def find(relative: str) -> pathlib.Path:
        path = ROOT.parent / "shared" / relative
        if not path.exists():
            pytest.skip(f"needs {relative}, which lies beside the project only where it is developed")
        return path

    return find
