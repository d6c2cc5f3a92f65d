"""Before JAX is imported: the CPU as eight devices, and pictures without a window."""

import os
import random

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MPLBACKEND"] = "Agg"
# Most tests wait for compilation, a quarter less without the optimizations of LLVM; those of XLA are as in a run.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"
# The moments of tests/faults. Here, as pytest-xdist reads no conftest further down before its workers start.
os.environ.setdefault("JAXCNN_FAULTS_SEED", str(random.SystemRandom().randrange(10**6)))


@pytest.fixture(scope="session", autouse=True)
def _one_compile_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What one test of this session compiled, in whichever process, the next one loads; the user's own cache rests."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    base = tmp_path_factory.getbasetemp()
    folder = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "xla")
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
