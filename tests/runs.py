"""Tiny runs for tests: a config that steps in milliseconds once compiled."""

import contextlib
import functools
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from configs import toy
from jaxrl_llm import assemble, log, train

ROOT = Path(__file__).parent.parent
# One compilation serves every run of a session.
CACHE = tempfile.TemporaryDirectory()
jax.config.update('jax_compilation_cache_dir', CACHE.name)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def config(method='grpo', **sections):
  """configs/toy.py, smaller: 6 steps on one device. Sections are updated."""
  c = toy.get_config(method)
  c.steps = 6
  c.mesh.fsdp = 1
  c.evaluation.update(every=3, batch=8)
  c.checkpoint.every = 2
  c.log.samples_every = 3
  c.log.tensorboard = False
  c.source.update(prompts=8, max_prompt=8, max_length=4)
  if 'max_length' in c.method:
    c.method.max_length = 4
  if 'task' in c:
    c.source.group = min(c.source.group, 4)
    c.rewards = dict(early=dict(name='runs.early', weight=2.0))
    c.task.get('of', c.task).test_size = 8
    if 'turns' in c.source:  # Two turns, and a reply of four tokens.
      c.source.update(max_length=8, turn_length=2)
  else:
    c.data.update(size=20, test_size=8)  # An epoch ends within a batch.
  for name, options in sections.items():
    if isinstance(options, dict):
      c[name].update(options)
    else:
      c[name] = options
  return c


def early():
  """1 where the first character is in the first half of ASCII's printable ones.

  A random policy gets it half of the time: of groups of 4, 1 in 8 is tied.
  """
  return lambda sample: float(sample.completion[:1] < 'P')


_KEPT = {}  # Canonical config -> a Run with the state of its birth.
_assemble = assemble.assemble  # Tests put `assembled` in its place.


def assembled(c) -> assemble.Run:
  """`assemble.assemble`, compiled once per config; each call has its own state."""
  text = train.canonical(c)
  if text not in _KEPT:
    _KEPT[text] = _assemble(c)
  run = _KEPT[text]
  return run._replace(state=jax.tree.map(jnp.copy, run.state))


@functools.cache
def finished(method='grpo') -> Path:
  """The folder of a finished run, shared by the tests that only read it."""
  folder = Path(tempfile.mkdtemp(dir=CACHE.name)) / method
  train.main(config(method), str(folder))
  return folder


def records(folder, file='metrics.jsonl'):
  """A run's records without what the clock says."""
  timing = lambda k: k.startswith('seconds/') or k == 'tokens_per_second'
  return [
    {k: v for k, v in r.items() if not timing(k)}
    for r in log.read_lines(Path(folder) / file)
  ]


def environment():
  """For a process of its own that finds the package and this session's programs."""
  return os.environ | {
    'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
    'JAX_COMPILATION_CACHE_DIR': CACHE.name,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }


def of_prompts(values, *valid):
  """A function of the wrong shape: a number per prompt."""
  return values.reshape(len(values), -1).sum(1)


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
  lambda event, seconds, **kwargs: (
    COMPILED.append(kwargs.get('fun_name', event)) if 'backend_compile' in event else 0
  )
)


@contextlib.contextmanager
def compilations():
  """Yields a list that holds, after the block, what was compiled in it."""
  found, before = [], len(COMPILED)
  yield found
  found += COMPILED[before:]
