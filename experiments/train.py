"""Trains: python experiments/train.py --config=configs/quickstart.py [--workdir=DIR]

Every option of the config is a flag: --config.method.beta=0. The same command again
goes on where the last one stopped.
"""

import os
import sys

import jax
from absl import flags
from ml_collections import config_flags

from jaxrl_llm import command, pipeline, train
from jaxrl_llm.types import InputError

CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of this run.')
DEBUG_NANS = flags.DEFINE_bool('debug_nans', False, 'Stops where a NaN is made.')
PROFILE = flags.DEFINE_bool('profile', False, 'Writes a trace for TensorBoard.')
ALLOCATOR = flags.DEFINE_bool(
  'allocator', True, 'Tunes glibc for large buffers, by starting this program again.'
)


def main(argv: list[str]) -> None:
  if argv[1:]:
    raise InputError(f'Unknown arguments {argv[1:]}; options are --name=value.')
  if CONFIG.value is None:
    raise InputError('Name a config: --config=configs/quickstart.py')
  command.restart(allocator=ALLOCATOR.value)
  jax.config.update('jax_debug_nans', DEBUG_NANS.value)
  run = pipeline.main if 'stages' in CONFIG.value else train.main
  run(CONFIG.value, WORKDIR.value, profile=PROFILE.value)


def parse(argv: list[str]) -> list[str]:
  """Flags; a mistake in a config flag reads as one line, like any other."""
  named = [a.split('=', 1)[1] for a in argv if a.startswith('--config=')]
  if named and not os.path.exists(path := named[-1].split(':')[0]):
    raise InputError(f'--config: cannot read {path}. Name a file in configs/.')
  try:
    left = flags.FLAGS(argv, known_only=False)
    if CONFIG.value is not None:
      CONFIG.value.to_dict()  # A file that is not there shows when it is first read.
    return left
  except OSError as error:
    path = config_flags.get_config_filename(flags.FLAGS['config'])
    raise InputError(
      f'--config: cannot read {path}. Name a file in configs/.'
    ) from error
  except (AttributeError, KeyError) as error:
    raise InputError(
      f'Flags: {error}: the config has no such entry, or it is no section. A flag '
      'changes what is there; see the config file.'
    ) from error
  except (TypeError, ValueError) as error:
    raise InputError(f'Flags: {error}') from error
  except flags.Error as error:
    raise InputError(f'Flags: {error}') from error


def run(argv: list[str]) -> int:
  """Exit status of `command.status`, or 130 for Ctrl-C."""
  try:
    return command.status(lambda: main(parse(argv)))
  except KeyboardInterrupt:
    print('Stopped.', file=sys.stderr)
    return 130


if __name__ == '__main__':
  sys.exit(run(sys.argv))
