"""Five preference losses from one start, on hh-rlhf's harmless pairs."""

import statistics

import verdicts

from jaxrl_llm.evaluate import policies

METHODS = ('dpo', 'ipo', 'kto', 'orpo', 'simpo')


def setting(method: str) -> list[str]:
  """The config at the size that the record is of."""
  rows = 2 if method == 'kto' else 1
  return [
    f'--config=configs/hh.py:{method}',
    '--config.model.dtype=float32',
    '--config.source.max_prompt=256',
    f'--config.source.prompts={16 * rows}',
    f'--config.data.test_size={500 * rows}',
  ]


ARMS = {
  m: [
    *setting(m),
    f'--config.data.path={{{"labels" if m == "kto" else "hh"}}}',
    *(() if m == 'dpo' else ('--config.evaluation.every=0',)),
    '--config.log.tensorboard=False',
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
  return verdicts.of_all(holds(result).values())


def table(result: dict) -> str:
  """The README's table: a policy a line."""
  found, seconds = (result['measured'][k] for k in ('policies', 'seconds'))
  middle = {m: f'{statistics.median(x):.1f}' for m, x in seconds.items()}
  return policies.table(found, {'seconds a step': middle})
