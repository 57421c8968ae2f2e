r"""Ablates by swapping: paired seeds, intervals and a figure in one command.

  python experiments/ablate.py --config=configs/toy.py:grpo \
    --swap=method.advantage=group_norm,leave_one_out,group_mean --seeds=5

Every combination of the swaps is an arm; each arm runs with the same seeds, and arms
are compared with the first, seed by seed. `--swap=method.name=grpo,rloo` swaps methods:
each with its own defaults, and what the config sets beside those of the first, but for
options of the source that only the first reads. What an arm has is said before any
runs. The same command goes on where it stopped. --workdir gets table.md, result.json,
figure.png and a run folder per arm and seed.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from jaxrl_llm import command, compare, grid, log
from jaxrl_llm.types import InputError

CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
SWAP = flags.DEFINE_multi_string('swap', [], 'path=value,value')
SEEDS = flags.DEFINE_integer('seeds', 5, 'Runs of each arm, with seeds from 0.')
METRIC = flags.DEFINE_string('metric', 'eval/accuracy', 'A held-out metric.')
WORKDIR = flags.DEFINE_string('workdir', 'runs/ablate', 'The folder of all runs.')

ALLOCATOR = flags.DEFINE_bool('allocator', True, 'As of experiments/train.py.')


def main() -> None:
  command.restart(allocator=ALLOCATOR.value)
  if CONFIG.value is None or not SWAP.value or SEEDS.value < 1:
    raise InputError('Give --config=FILE, --swap=path=value,value and --seeds from 1.')
  folder, config = Path(WORKDIR.value), CONFIG.value
  overrides = grid.arms(SWAP.value)
  configs = grid.every(config, overrides)  # Mistakes show first.
  curves = {grid.label(one): [] for one in overrides}
  for name, one in zip(curves, configs):
    print(f'{name}: {one.method.to_dict()}')
  for seed in range(SEEDS.value):  # Seed by seed, so that a stopped one is paired too.
    for name, one in zip(curves, configs):
      one.seed = seed
      curves[name].append(
        grid.run(one, folder / name.replace(' ', '_') / f'seed{seed}')
      )
      compare.check({name: curves[name]}, METRIC.value)  # After one run, not after all.
  result = compare.compared(curves, METRIC.value)
  record = log.run_record(config) | {'swap': SWAP.value, 'metric': METRIC.value}
  log.write_json(folder / 'result.json', record | {'arms': result})
  (folder / 'table.md').write_text(compare.table(result, METRIC.value) + '\n')
  compare.figure(curves, result, METRIC.value, folder / 'figure.png')
  print(compare.table(result, METRIC.value))


if __name__ == '__main__':
  flags.FLAGS(sys.argv)
  sys.exit(command.status(main))
