"""Runs the quickstart on three seeds, and once without KL; writes what came of it.

  python experiments/claims/001_quickstart/run.py --workdir=runs/001_quickstart

About eleven minutes an arm on two CPU cores. Arms that are done are not run again.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

from jaxrl_llm.log import read_lines, write_json

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
ARMS = {
  'seed0': ['--config.seed=0'],
  'seed1': ['--config.seed=1'],
  'seed2': ['--config.seed=2'],
  'no_kl_seed0': ['--config.seed=0', '--config.method.beta=0.0'],
}
CURVE = ('reward', 'kl_ref', 'length', 'eval/accuracy', 'eval/low', 'eval/high')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', type=Path, default=Path('runs/001_quickstart'))
  root = parser.parse_args().workdir
  for arm, flags in ARMS.items():
    command = ['experiments/train.py', '--config=configs/quickstart.py', *flags]
    folder = (root / arm).absolute()
    run = [sys.executable, *command, f'--workdir={folder}']
    subprocess.run(run, cwd=ROOT, check=True)
  result = {'arms': {arm: summary(root / arm) for arm in ARMS}}
  result['verdict'] = verdict(result)
  write_json(HERE / 'result.json', result)
  write_curve(root)
  shutil.copy(root / 'seed0' / 'figure.png', HERE / 'figure.png')
  print(f'{table(result)}\n{result["verdict"]}')


def summary(folder: Path) -> dict:
  """Held-out accuracy before and after, what it took, and on what."""
  record = json.loads((folder / 'run.json').read_text())
  lines = read_lines(folder / 'metrics.jsonl')
  held = [r for r in lines if r['split'] == 'eval']
  train = [r for r in lines if r['split'] == 'train']
  keys = ('eval/accuracy', 'eval/low', 'eval/high')
  kept = ('command', 'commit', 'dirty', 'versions', 'devices', 'started')
  parts = ('seconds/rollout', 'seconds/reward', 'seconds/update')
  return {
    'before': {k: held[0][k] for k in keys},
    'after': {k: held[-1][k] for k in keys},
    'steps': train[-1]['step'],
    'rollouts': train[-1]['rollouts'],
    'last_reward': sum(r['reward'] for r in train[-10:]) / 10,
    'seconds_in_steps': sum(r[p] for r in train for p in parts),
    'seconds_in_evaluation': sum(r['seconds/eval'] for r in held),
    **{k: record[k] for k in kept},
  }


def table(result: dict) -> str:
  """The README's table: an arm a line."""
  percent = lambda m: (
    f'{100 * m["eval/accuracy"]:.1f} % '
    f'[{100 * m["eval/low"]:.1f}, {100 * m["eval/high"]:.1f}]'
  )
  rows = [
    '| run | held-out accuracy before | after | completions |',
    '|---|---|---|---|',
  ]
  for arm, a in result['arms'].items():
    words = (
      arm.replace('_', ' ').replace('seed', 'seed ').replace('no kl', 'without KL,')
    )
    rows.append(
      f'| {words} | {percent(a["before"])} | {percent(a["after"])} | '
      f'{a["rollouts"]:.0f} |'
    )
  return '\n'.join(rows)


def write_curve(root: Path) -> None:
  """Every arm's curves as one table."""
  with (HERE / 'curve.csv').open('w', newline='') as file:
    table = csv.writer(file, lineterminator='\n')
    table.writerow(('arm', 'step', 'split', *CURVE))
    for arm in ARMS:
      for r in read_lines(root / arm / 'metrics.jsonl'):
        shown = [round(r[k], 4) if k in r else '' for k in CURVE]
        table.writerow((arm, r['step'], r['split'], *shown))


def verdict(result: dict) -> str:
  """'reproduced' if on every seed the intervals before and after do not overlap."""
  seeds = [a for name, a in result['arms'].items() if name.startswith('seed')]
  apart = [a['after']['eval/low'] > a['before']['eval/high'] for a in seeds]
  if all(apart):
    return 'reproduced'
  return 'direction only' if any(apart) else 'not reproduced'


if __name__ == '__main__':
  main()
