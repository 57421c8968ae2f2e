"""Arms of an ablation against the first of them, seed by seed."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jaxrl_llm.figure import finish
from jaxrl_llm.grid import bootstrap
from jaxrl_llm.types import InputError

Curves = dict[str, list[list[dict]]]  # Arm -> seed -> held-out records (grid.curve).
COLOURS = ('#1f4e79', '#c8553d', '#588b8b', '#7d4f9e', '#b8860b', '#555555')


def check(curves: Curves, metric: str) -> None:
  """Refuses a metric that some arm has not."""
  for runs in curves.values():
    if metric not in runs[0][-1]:
      known = sorted(k for k in runs[0][-1] if k.startswith('eval/'))
      raise InputError(f'--metric={metric}: there are {known}.')


def compared(curves: Curves, metric: str) -> dict[str, dict]:
  """Each arm's last values, their mean, and its paired difference from the first arm.

  Intervals are 95 % bootstrap ones over seeds, None of a single seed. What was spent,
  completions and tokens, is the mean of a run.
  """
  found, base = {}, None
  for name, runs in curves.items():
    last = [run[-1] for run in runs]
    values = [r[metric] for r in last]
    base = values if base is None else base
    gaps = [x - y for x, y in zip(values, base)]
    several = len(values) > 1
    found[name] = {
      'values': values,
      'mean': float(np.mean(values)),
      'interval': bootstrap(values) if several else None,
      'difference': float(np.mean(gaps)),
      'difference_interval': bootstrap(gaps) if several else None,
      'steps': last[0]['step'],
      'rollouts': float(np.mean([r['rollouts'] for r in last])),
      'tokens': float(np.mean([r['tokens'] for r in last])),
    }
  return found


def table(result: dict[str, dict], metric: str) -> str:
  """The arms as a markdown table."""
  show = lambda x, ends: (
    f'{x:.3f}' + (f' [{ends[0]:.3f}, {ends[1]:.3f}]' if ends else '')
  )
  rows = [
    f'| arm | {metric} | against the first | seeds | steps | completions | tokens |',
    '|---|---|---|---|---|---|---|',
  ]
  for i, (name, a) in enumerate(result.items()):
    against = show(a['difference'], a['difference_interval']) if i else ''
    rows.append(
      f'| {name} | {show(a["mean"], a["interval"])} | {against} | {len(a["values"])} | '
      f'{a["steps"]} | {a["rollouts"]:.0f} | {a["tokens"]:.0f} |'
    )
  return '\n'.join(rows)


def figure(curves: Curves, result: dict[str, dict], metric: str, out: Path) -> None:
  """Means over seeds with the range of all, and the paired differences."""
  fig = Figure(figsize=(8, 3.2), layout='tight')
  left, right = fig.subplots(1, 2, width_ratios=(3, 2))
  colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(curves)}
  for name, runs in curves.items():
    step = [r['step'] for r in runs[0]]
    values = np.array([[r[metric] for r in run] for run in runs])
    left.fill_between(
      step, values.min(0), values.max(0), color=colours[name], alpha=0.15, lw=0
    )
    left.plot(step, values.mean(0), 'o-', ms=3, color=colours[name], label=name)
  left.legend(fontsize=7, frameon=False)
  finish(left, f'{metric}: mean and range of {len(runs)} seeds')
  for i, (name, a) in enumerate(list(result.items())[1:]):
    low, high = a['difference_interval'] or (a['difference'],) * 2
    right.plot([low, high], [i, i], color=colours[name], lw=2)
    right.plot([a['difference']], [i], 'o', color=colours[name])
  right.axvline(0, color='#999999', lw=0.8)
  right.set_yticks(range(len(result) - 1), list(result)[1:], fontsize=7)
  finish(right, f'difference from {next(iter(result))}')
  right.set_xlabel(metric, fontsize=8)
  fig.savefig(out, dpi=150)
