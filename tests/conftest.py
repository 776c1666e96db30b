"""What all tests share: one CPU backend, and the way to data that is not part of the project."""

import atexit
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Compilation is most of the tests' time, and many tests, worker processes and commands that tests start compile
    # the same programs: one session shares them. The workers of pytest-xdist inherit the variable.
    _compiled = tempfile.mkdtemp(prefix="imbal_jax_compiled_")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

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
