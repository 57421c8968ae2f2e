"""Strict by default: broadcasting by accident and deprecated calls are errors."""

import os
import pathlib
from importlib.metadata import version

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Compiling is most of what the tests take, and little of it is run for long. Without
# fusion emitters it takes half; jaxlib 0.11.1 and later know no such flag and stop.
os.environ['XLA_FLAGS'] = ' '.join(
  [
    *('--xla_backend_optimization_level=0', '--xla_cpu_parallel_codegen_split_count=1'),
    *['--xla_cpu_use_fusion_emitters=false']
    * ([*map(int, version('jaxlib').split('.')[:2])] < [0, 11]),
    os.environ.get('XLA_FLAGS', ''),
  ]
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
