"""Runs a claim's arms, resumes those that were stopped, and writes what came of it.

  python experiments/claims/run.py --only=001_quickstart --workdir=runs/claims
  python experiments/claims/run.py --only=002_real_data --put gsm8k=FOLDER hh=FILE

`--arms=bt dpo` runs those alone; what is recorded of the others stays, each with the
commit that it is of. Arms that are done are not run again.

A claim is a folder: claim.md says what is claimed and what would count against it,
claim.py has the arms, the verdict and the table, and this script writes result.json,
curve.csv and figure.png.
"""

import argparse
import csv
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

from jaxrl_llm import checkpoint
from jaxrl_llm.log import read_lines, write_json

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--only', required=True, help='a folder of experiments/claims')
  parser.add_argument('--workdir', type=Path, default=Path('runs/claims'))
  parser.add_argument(
    '--put', nargs='*', default=[], help='{name} in flags: name=value'
  )
  parser.add_argument('--arms', nargs='*', help='some of the arms; all by default')
  options = parser.parse_args()
  known = sorted(p.name for p in HERE.glob('[0-9]*'))
  if options.only not in known:
    parser.error(f'there is no claim {options.only!r}; there are {known}')
  folder, root = HERE / options.only, options.workdir / options.only
  values = dict(item.split('=', 1) for item in options.put)
  claim = load(folder)
  arms = options.arms or list(claim.ARMS)
  if unknown := set(arms) - set(claim.ARMS):
    parser.error(f'--arms: no {sorted(unknown)}; there are {list(claim.ARMS)}')
  for arm in arms:
    try:
      flags = [flag.format(**values) for flag in claim.ARMS[arm]]
    except KeyError as missing:
      parser.error(f'{options.only} needs --put {missing.args[0]}=...')
    train((root / arm).absolute(), flags)
  earlier = folder / 'result.json'
  kept = json.loads(earlier.read_text())['arms'] if earlier.exists() else {}
  kept |= {arm: summary(root / arm, claim.HELD_OUT) for arm in arms}
  if missing := [arm for arm in claim.ARMS if arm not in kept]:
    parser.error(f'{missing} have not been recorded: run them too')
  result = {'arms': {arm: kept[arm] for arm in claim.ARMS}}
  result['verdict'] = claim.verdict(result)
  write_json(earlier, result)
  write_curve(root, folder / 'curve.csv', claim, arms)
  if claim.FIGURE in arms:
    shutil.copy(root / claim.FIGURE / 'figure.png', folder / 'figure.png')
  print(f'{claim.table(result)}\n{result["verdict"]}')


def train(workdir: Path, flags: list[str]) -> None:
  """Runs an arm, or goes on with it; ends this script where that was stopped."""
  command = [sys.executable, 'experiments/train.py', *flags, f'--workdir={workdir}']
  subprocess.run(command, cwd=ROOT, check=True)
  steps = json.loads((workdir / 'run.json').read_text())['config']['steps']
  if (checkpoint.read_meta(workdir) or {'step': 0})['step'] < steps:
    sys.exit(f'{workdir} was stopped. The same command goes on.')


def load(folder: Path):
  """A claim's module."""
  spec = importlib.util.spec_from_file_location(folder.name, folder / 'claim.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def summary(folder: Path, held_out: tuple[str, ...]) -> dict:
  """Held-out metrics before and after, what it took, and on what."""
  record = json.loads((folder / 'run.json').read_text())
  lines = read_lines(folder / 'metrics.jsonl')
  held = [r for r in lines if r['split'] == 'eval']
  train = [r for r in lines if r['split'] == 'train']
  kept = ('command', 'commit', 'dirty', 'versions', 'devices', 'started')
  parts = ('seconds/rollout', 'seconds/reward', 'seconds/update')
  found = {
    'before': {k: held[0][k] for k in held_out if k in held[0]},
    'after': {k: held[-1][k] for k in held_out if k in held[-1]},
    'steps': train[-1]['step'],
    'tokens': sum(r['tokens'] for r in train),
    'seconds_in_steps': sum(r.get(p, 0.0) for r in train for p in parts),
    'seconds_in_evaluation': sum(r['seconds/eval'] for r in held),
    **{k: record[k] for k in kept},
  }
  if 'rollouts' in train[-1]:
    found['rollouts'] = train[-1]['rollouts']
  return found


def write_curve(root: Path, path: Path, claim, arms) -> None:
  """Every arm's curves as one table; rows of arms that were not run stay."""
  kept = path.read_text().splitlines()[1:] if path.exists() else []
  with path.open('w', newline='') as file:
    table = csv.writer(file, lineterminator='\n')
    table.writerow(('arm', 'step', 'split', *claim.CURVE))
    for arm in claim.ARMS:
      if arm not in arms:
        file.writelines(f'{r}\n' for r in kept if r.startswith(f'{arm},'))
        continue
      for r in read_lines(root / arm / 'metrics.jsonl'):
        shown = [round(r[k], 4) if k in r else '' for k in claim.CURVE]
        table.writerow((arm, r['step'], r['split'], *shown))


if __name__ == '__main__':
  main()
