"""From what a claim recorded to its verdict, and the tables that show it."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrl_llm import compare
from jaxrl_llm.grid import bootstrap


class Told(NamedTuple):
  """What arms came to, each as arm -> metric -> [seeds]."""

  first: dict[str, dict[str, np.ndarray]]
  last: dict[str, dict[str, np.ndarray]]
  mean: dict[str, dict[str, np.ndarray]]  # Over a run's records, the first left out.


def arms(curves: compare.Curves) -> dict:
  """What is recorded of each arm: of each seed the first record, the last, the mean."""

  def mean(run):
    return {k: float(np.mean([r[k] for r in run[1:] or run])) for k in run[0]}

  return {
    arm: {
      'first': [run[0] for run in runs],
      'last': [run[-1] for run in runs],
      'mean': [mean(run) for run in runs],
    }
    for arm, runs in curves.items()
  }


def told(result: dict) -> Told:
  """From what `arms` recorded."""

  def values(when):
    return {
      arm: {k: np.array([r[k] for r in found[when]]) for k in found[when][0]}
      for arm, found in result['arms'].items()
    }

  return Told(*map(values, Told._fields))


def judged(parts: dict[str, np.ndarray]) -> dict[str, dict]:
  """Of each part, a number per seed that the claim says is above 0: mean, interval."""
  return {
    part: {'mean': float(np.mean(x)), 'interval': list(bootstrap(x))}
    for part, x in parts.items()
  }


def verdict(found: dict[str, dict]) -> str:
  """'reproduced' if every interval is above 0, 'contradicted' if the first is below.

  'direction only' if every mean is above 0, and at least one interval.
  """
  ends = [x['interval'] for x in found.values()]
  if all(low > 0 for low, _ in ends):
    return 'reproduced'
  if ends[0][1] < 0:
    return 'contradicted'
  toward = all(x['mean'] > 0 for x in found.values()) and any(
    low > 0 for low, _ in ends
  )
  return 'direction only' if toward else 'not reproduced'


def of_all(holds: Iterable[bool]) -> str:
  """'reproduced' if all of it holds, 'direction only' if some of it does."""
  found = [*holds]
  if all(found):
    return 'reproduced'
  return 'direction only' if any(found) else 'not reproduced'


def table(result: dict, metrics) -> str:
  """The parts with their intervals, and what each arm came to, mean over seeds."""
  rows = ['| what the claim says is above 0 | mean | 95 % interval |', '|---|---|---|']
  for part, x in result['parts'].items():
    low, high = x['interval']
    rows.append(f'| {part} | {x["mean"]:.3f} | [{low:.3f}, {high:.3f}] |')
  rows += [
    '',
    f'| arm | {" | ".join(metrics)} | seeds | steps | completions | tokens |',
  ]
  rows.append('|' + '---|' * (len(metrics) + 5))
  for arm, found in told(result).last.items():
    values = (found[m] for m in metrics)
    shown = [f'{x.mean():.3f} ({x.std():.3f})' for x in values]
    spent = [f'{found[k].mean():.0f}' for k in ('step', 'rollouts', 'tokens')]
    cells = [arm, *shown, str(len(found['step'])), *spent]
    rows.append(f'| {" | ".join(cells)} |')
  return '\n'.join([*rows, '', 'In brackets the standard deviation over seeds.'])


def row(folder: Path, methods, said: str) -> str:
  """A claim's line in the table of all: what is claimed, of what, and the verdict."""
  title = (folder / 'claim.md').read_text().split('\n')[0].lstrip('# ')
  names = ', '.join(f'`{name}`' for name in methods)
  return f'| [{title}]({folder.name}/claim.md) | {names} | {said} |'


def index(rows: list[str]) -> str:
  """The table of all claims, of their rows."""
  return '\n'.join(['| claim | methods | verdict |', '|---|---|---|', *rows])


def put(path: Path, mark: str, text: str) -> None:
  """Writes text between the marks of that name in a file."""
  marks = rf'(<!-- {mark} -->\n).*?(<!-- /{mark} -->)'
  found, count = re.subn(
    marks, lambda m: f'{m[1]}{text}\n{m[2]}', path.read_text(), flags=re.S
  )
  if count != 1:
    raise ValueError(f'{path} has {count} places <!-- {mark} -->; one is due.')
  path.write_text(found)
