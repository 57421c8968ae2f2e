r"""Runs a grid over any entries of a config, and ranks what came of it.

  python experiments/sweep.py --config=configs/toy.py:grpo \
    --grid=optimizer.policy.learning_rate=1e-3,3e-3 --grid=method.beta=0,0.04

Every combination is a run; the same command goes on where it stopped. --workdir gets
table.md and a run folder per combination.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from jaxrl_llm import command, compare, grid
from jaxrl_llm.types import InputError

CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
GRID = flags.DEFINE_multi_string('grid', [], 'path=value,value')
METRIC = flags.DEFINE_string('metric', 'eval/accuracy', 'A held-out metric.')
LOWEST = flags.DEFINE_bool('lowest', False, 'Less of the metric is better.')
WORKDIR = flags.DEFINE_string('workdir', 'runs/sweep', 'The folder of all runs.')

ALLOCATOR = flags.DEFINE_bool('allocator', True, 'As of experiments/train.py.')


def main() -> None:
  command.restart(allocator=ALLOCATOR.value)
  if CONFIG.value is None or not GRID.value:
    raise InputError('Give --config=FILE and --grid=path=value,value.')
  folder, overrides = Path(WORKDIR.value), grid.arms(GRID.value)
  configs = grid.every(CONFIG.value, overrides)  # Mistakes show first.
  curves = {}
  for one, config in zip(overrides, configs):
    name = grid.label(one)
    curves[name] = [grid.run(config, folder / name.replace(' ', '_'))]
    compare.check(curves, METRIC.value)  # After one run, not after all.
  sign = 1 if LOWEST.value else -1
  ranked = sorted(curves, key=lambda name: sign * curves[name][0][-1][METRIC.value])
  result = compare.compared({name: curves[name] for name in ranked}, METRIC.value)
  (folder / 'table.md').write_text(compare.table(result, METRIC.value) + '\n')
  print(compare.table(result, METRIC.value))


if __name__ == '__main__':
  flags.FLAGS(sys.argv)
  sys.exit(command.status(main))
