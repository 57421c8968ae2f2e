"""RLBFF and Bradley-Terry on SmolLM2, of the same judgements."""

import numpy as np
import verdicts

from jaxrl_llm.evaluate import accuracy
from jaxrl_llm.train import interval

COMMON = [
  '--config.steps=63',
  '--config.plan.microbatches=1',
  '--config.plan.pack=768',
  '--config.data.as_chat=True',
  '--config.evaluation.every=0',
  '--config.log.tensorboard=False',
]
ARMS = {
  'bradley_terry': [
    '--config=configs/data.py:bradley_terry',
    '--config.data.path={data}/pairs.jsonl',
    '--config.data.test_path={data}/test.jsonl',
    '--config.source.prompts=16',
    '--config.source.max_prompt=256',
    '--config.source.max_length=256',
    *COMMON,
  ],
  'rlbff': [
    '--config=configs/data.py:rlbff',
    '--config.data.path={data}/judgements.jsonl',
    '--config.data.test_path={data}/test_judgements.jsonl',
    '--config.source.prompts=32',
    '--config.source.max_prompt=640',
    '--config.source.max_length=8',
    *COMMON,
  ],
}
SCORE = ('experiments/score_benchmark.py', 'principles', '{data}/test.jsonl')
TOLD = {'bradley_terry': '', 'rlbff': ', principle="@principle"'}
MEASURES = {
  'length': [*SCORE, '--by=characters'],
  **{
    arm: [
      *SCORE,
      f'--by=learned(run="{{root}}/{arm}"{told})',
      f'--progress={{root}}/{arm}.scores.jsonl',
    ]
    for arm, told in TOLD.items()
  },
}
METHODS = ('rlbff', 'bradley_terry')
HELD_OUT, FIGURE = (), 'rlbff'
CURVE = ('loss', 'accuracy', 'nll_two')
SOURCES = ('GSM8K', 'hh-rlhf', 'feedback')


def verdict(result: dict) -> str:
  """By the interval of the share of held-out pairs of which RLBFF alone is right, less
  that of which Bradley-Terry alone is.
  """
  return verdicts.verdict(apart(result))


def apart(result: dict) -> dict[str, dict]:
  """RLBFF's accuracy less Bradley-Terry's, of the same pairs, with its interval."""
  one, other = (right(result, arm) for arm in ('rlbff', 'bradley_terry'))
  mean, ends = float((one - other).mean()), accuracy.bootstrap(one - other)
  return {'RLBFF less Bradley-Terry': {'mean': mean, 'interval': ends}}


def right(result: dict, name: str) -> np.ndarray:
  scores = np.array(result['measured'][name]['scores'])
  return (scores[:, 0] > scores[:, 1]).astype(float)


def table(result: dict) -> str:
  """The README's table: a model a line."""
  names = {
    'bradley_terry': 'Bradley-Terry',
    'rlbff': 'RLBFF',
    'length': 'the longer one',
  }
  lines = [
    f'| right of held-out pairs | {" | ".join(SOURCES)} | all |',
    '|---' * (len(SOURCES) + 2) + '|',
  ]
  for name, title in names.items():
    found = result['measured'][name]['table']
    cells = [share(*found[source]) for source in SOURCES]
    every = right(result, name)
    cells.append(share(every.mean(), len(every)))
    lines.append(f'| {title} | {" | ".join(cells)} |')
  for name, found in apart(result).items():
    mean, low, high = (100 * x for x in (found['mean'], *found['interval']))
    cells = ['', '', '', f'{mean:.1f} [{low:.1f}, {high:.1f}]']
    lines.append(f'| {name} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def share(mean: float, count: float) -> str:
  low, high = accuracy.wilson(mean * count, count)
  return interval({'eval/accuracy': mean, 'eval/low': low, 'eval/high': high})
