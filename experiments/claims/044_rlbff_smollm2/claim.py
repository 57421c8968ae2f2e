"""RLBFF and Bradley-Terry on SmolLM2, of the same judgements."""

import numpy as np

from jaxrl_llm.evaluate import accuracy

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
  _, low, high = apart(result)
  if low > 0:
    return 'reproduced'
  return 'contradicted' if high < 0 else 'not reproduced'


def apart(result: dict) -> tuple[float, float, float]:
  """RLBFF's accuracy less Bradley-Terry's, of the same pairs, with its interval."""
  one, other = (right(result, arm) for arm in ('rlbff', 'bradley_terry'))
  return (float((one - other).mean()), *accuracy.bootstrap(one - other))


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
  mean, low, high = (100 * x for x in apart(result))
  lines.append(
    f'| RLBFF less Bradley-Terry | {" | " * (len(SOURCES) - 1)} | '
    f'{mean:.1f} [{low:.1f}, {high:.1f}] |'
  )
  return '\n'.join(lines)


def share(mean: float, count: float) -> str:
  low, high = accuracy.wilson(mean * count, count)
  return f'{100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}]'
