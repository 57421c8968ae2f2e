"""Five preference losses from one start, on hh-rlhf's harmless pairs."""

import statistics

METHODS = ('dpo', 'ipo', 'kto', 'orpo', 'simpo')
QUIET = '--config.log.tensorboard=False'
ARMS = {
  m: [
    f'--config=configs/hh.py:{m}',
    f'--config.data.path={{{"labels" if m == "kto" else "hh"}}}',
    *(() if m == 'dpo' else ('--config.evaluation.every=0',)),
    QUIET,
  ]
  for m in METHODS
}
MEASURES = {
  'policies': ['experiments/compare_policies.py', *(f'{{root}}/{m}' for m in METHODS)],
  'seconds': [
    'experiments/claims/043_five_losses/seconds.py',
    '{root}/seconds',
    '--hh={hh}',
    '--labels={labels}',
  ],
}
HELD_OUT, FIGURE = ('eval/accuracy', 'eval/low', 'eval/high', 'eval/longer'), 'dpo'
CURVE = ('loss', 'accuracy', 'margin', *HELD_OUT)
RATIO, LIKELY = 'prefers chosen, sum log(pi / ref)', 'prefers chosen, mean log pi'
OWN = {m: LIKELY if m in ('orpo', 'simpo') else RATIO for m in METHODS}


def holds(result: dict) -> dict[str, bool]:
  """Whether a policy's own reward prefers the chosen completion more often than the
  start does: the lower end is above one half, or above the start's share.
  """
  found = result['measured']['policies']
  floor = {RATIO: 0.5, LIKELY: found['before'][LIKELY][0]}
  return {m: found[m][OWN[m]][1] > floor[OWN[m]] for m in METHODS}


def verdict(result: dict) -> str:
  """'reproduced' if all five do."""
  found = holds(result).values()
  if all(found):
    return 'reproduced'
  return 'direction only' if any(found) else 'not reproduced'


def table(result: dict) -> str:
  """The README's table: a policy a line."""
  found, seconds = (result['measured'][k] for k in ('policies', 'seconds'))
  names = [*found['before']]
  head = ['policy', *names, 'seconds a step']
  lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
  for name, of in found.items():
    cells = [shown(key, *of[key]) for key in names]
    cells.append(f'{statistics.median(seconds[name]):.1f}' if name in seconds else '')
    lines.append(f'| {name} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def shown(name: str, *found: float) -> str:
  if name.startswith(('prefers', 'out')):
    value, low, high = (100 * x for x in found)
    return f'{value:.1f} % [{low:.1f}, {high:.1f}]'
  value, low, high = (round(x, 1) + 0.0 for x in found)  # Not -0.0.
  return f'{value} [{low}, {high}]'
