"""The quickstart on three seeds, and once without KL. About eleven minutes an arm."""

import verdicts

from jaxrl_llm.train import interval

CONFIG = '--config=configs/quickstart.py'
ARMS = {
  'seed0': [CONFIG, '--config.seed=0'],
  'seed1': [CONFIG, '--config.seed=1'],
  'seed2': [CONFIG, '--config.seed=2'],
  'no_kl_seed0': [CONFIG, '--config.seed=0', '--config.method.beta=0.0'],
}
METHODS = ('grpo',)
HELD_OUT = ('eval/accuracy', 'eval/low', 'eval/high')
CURVE = ('reward', 'kl_ref', 'length', *HELD_OUT)
FIGURE = 'seed0'


def verdict(result: dict) -> str:
  """'reproduced' if on every seed the intervals before and after do not overlap."""
  seeds = [a for name, a in result['arms'].items() if name.startswith('seed')]
  return verdicts.of_all(
    a['after']['eval/low'] > a['before']['eval/high'] for a in seeds
  )


def table(result: dict) -> str:
  """The README's table: an arm a line."""
  rows = [
    '| run | held-out accuracy before | after | completions |',
    '|---|---|---|---|',
  ]
  for arm, a in result['arms'].items():
    words = (
      arm.replace('_', ' ').replace('seed', 'seed ').replace('no kl', 'without KL,')
    )
    rows.append(
      f'| {words} | {interval(a["before"])} | {interval(a["after"])} | '
      f'{a["rollouts"]:.0f} |'
    )
  return '\n'.join(rows)
