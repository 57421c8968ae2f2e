"""Strict by default: broadcasting by accident and deprecated calls are errors."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='module', autouse=True)
def programs_of_one_file():
  """Frees what a file compiled: each program takes memory maps, and a process that has
  used up its 65,530 ends with a segmentation fault.
  """
  yield
  jax.clear_caches()
