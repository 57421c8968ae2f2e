"""Runs claims, resumes arms that were stopped, and writes what came of it.

  python experiments/claims/run.py
  python experiments/claims/run.py --only=003_two_grpo
  python experiments/claims/run.py --only=001_quickstart --workdir=runs/claims
  python experiments/claims/run.py --only=002_real_data --put gsm8k=FOLDER hh=FILE

A claim is a folder: claim.md says what is claimed and what would count against it, and
this script writes result.json, curve.csv, figure.png and the table of verdicts in
README.md. claim.py has either

  ARMS, flags of train.py, with verdict(result) and table(result); `--arms=bt dpo` runs
  those alone, what is recorded of the others stays, each with the commit that it is of,
  and arms that are done are not run again. MEASURES, scripts and their arguments, with
  {root} for the folder of all arms, are asked about them then, and write --out; where
  an arm's folder is not there, what they said before stays; or
  run() -> compare.Curves, all arms and seeds in this process (small.py), and
  parts(verdicts.Told) -> {what is claimed to be above 0: a number per seed}.

Without --only all claims with run() are run, one after the other.
"""

import argparse
import csv
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import verdicts
from ml_collections.config_dict import ConfigDict

from jaxrl_llm import checkpoint, compare, log
from jaxrl_llm.log import read_lines, write_json

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--only', help='a folder of experiments/claims')
  parser.add_argument('--workdir', type=Path, default=Path('runs/claims'))
  parser.add_argument(
    '--put', nargs='*', default=[], help='{name} in flags: name=value'
  )
  parser.add_argument('--arms', nargs='*', help='some of the arms; all by default')
  parser.add_argument(
    '--tables', action='store_true', help='run none, judge the records'
  )
  options = parser.parse_args()
  if options.tables:
    return write_tables()
  known = {p.name: load(p) for p in folders()}
  if options.only and options.only not in known:
    parser.error(f'there is no claim {options.only!r}; there are {list(known)}')
  quick = [name for name, claim in known.items() if 'run' in vars(claim)]
  for name in [options.only] if options.only else quick:
    if name in quick:
      within(HERE / name, known[name])
    else:
      trained(parser, options, HERE / name, known[name])
  write_tables()


def folders() -> list[Path]:
  """Those of all claims."""
  return sorted(HERE.glob('[0-9]*'))


def within(folder: Path, claim) -> None:
  """Runs a claim's arms in this process, and writes what came of it."""
  start, record = time.perf_counter(), log.run_record(ConfigDict())
  curves = claim.run()
  kept = ('commit', 'dirty', 'versions', 'devices', 'started')
  result = {k: record[k] for k in kept} | {'seconds': time.perf_counter() - start}
  result |= {'arms': verdicts.arms(curves)}
  result |= judged(claim, result)
  write_json(folder / 'result.json', result)
  with (folder / 'curve.csv').open('w', newline='') as file:
    table = csv.writer(file, lineterminator='\n')
    names = list(next(iter(curves.values()))[0][0])
    table.writerow(('arm', 'seed', *names))
    for arm, runs in curves.items():
      for seed, records in enumerate(runs):
        table.writerows((arm, seed, *(f'{r[k]:.5g}' for k in names)) for r in records)
  shown = compare.compared(curves, claim.METRICS[0])
  compare.figure(curves, shown, claim.METRICS[0], folder / 'figure.png')
  print(f'{folder.name}\n{verdicts.table(result, claim.METRICS)}\n{result["verdict"]}')


def judged(claim, result: dict) -> dict:
  """The parts and the verdict that follow from what is recorded of the arms."""
  parts = verdicts.judged(claim.parts(verdicts.told(result)))
  return {'parts': parts, 'verdict': verdicts.verdict(parts)}


def write_tables() -> None:
  """Judges what was recorded again; the tables of claim.md, and that of verdicts."""
  if not (page := HERE / 'README.md').exists():
    return
  rows = []
  for folder in folders():
    if not (path := folder / 'result.json').exists():
      continue
    claim, result = load(folder), json.loads(path.read_text())
    if 'run' in vars(claim):
      result |= judged(claim, result)
      write_json(path, result)
      text = verdicts.table(result, claim.METRICS)
      verdicts.put(folder / 'claim.md', 'table', text)
    rows.append(verdicts.row(folder, claim.METHODS, result['verdict']))
  verdicts.put(page, 'claims', verdicts.index(rows))


def trained(parser, options, folder: Path, claim) -> None:
  """Runs a claim's arms, each a run of train.py, and writes what came of it."""
  root = options.workdir / folder.name
  values = dict(item.split('=', 1) for item in options.put)
  arms = options.arms or list(claim.ARMS)
  if unknown := set(arms) - set(claim.ARMS):
    parser.error(f'--arms: no {sorted(unknown)}; there are {list(claim.ARMS)}')
  for arm in arms:
    try:
      flags = [flag.format(**values) for flag in claim.ARMS[arm]]
    except KeyError as missing:
      parser.error(f'{folder.name} needs --put {missing.args[0]}=...')
    train((root / arm).absolute(), flags)
  earlier = folder / 'result.json'
  known = json.loads(earlier.read_text()) if earlier.exists() else {'arms': {}}
  kept = known['arms'] | {arm: summary(root / arm, claim.HELD_OUT) for arm in arms}
  if missing := [arm for arm in claim.ARMS if arm not in kept]:
    parser.error(f'{missing} have not been recorded: run them too')
  result = {'arms': {arm: kept[arm] for arm in claim.ARMS}}
  if all((root / arm).exists() for arm in claim.ARMS):
    known['measured'] = measured(claim, root.absolute(), values)
  if found := known.get('measured'):
    result['measured'] = found
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


def measured(claim, root: Path, values: dict[str, str]) -> dict:
  """What each of a claim's MEASURES says of its arms; what it has said stays."""
  found = {}
  for name, words in getattr(claim, 'MEASURES', {}).items():
    out = root / f'{name}.json'
    if not out.exists():
      words = [word.format(root=root, **values) for word in words]
      command = [sys.executable, *words, f'--out={out}']
      subprocess.run(command, cwd=ROOT, check=True)
    found[name] = json.loads(out.read_text())
  return found


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
  at_birth = held and held[0]['step'] == 0
  before, after = held[0] if at_birth else {}, held[-1] if held else {}
  found = {
    'before': {k: before[k] for k in held_out if k in before},
    'after': {k: after[k] for k in held_out if k in after},
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
