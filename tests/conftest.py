"""Strict by default: broadcasting by accident and deprecated calls are errors."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Compiling is most of what the tests take, and little of it is run for long. These
# three halve it; a jaxlib that no longer knows one of them stops and names it.
os.environ['XLA_FLAGS'] = (
  '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false '
  f'--xla_cpu_parallel_codegen_split_count=1 {os.environ.get("XLA_FLAGS", "")}'
)

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='module', autouse=True)
def programs_of_one_file():
  """Frees what a file compiled."""
  yield
  jax.clear_caches()


@pytest.fixture(autouse=True)
def programs_of_many_tests():
  """Frees what was compiled before it is too much: each program takes memory maps, and
  a process that has used up its 65,530 ends with a segmentation fault.
  """
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > 40_000:
    jax.clear_caches()
