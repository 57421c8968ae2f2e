"""The configs for stored completions on real data."""

import verdicts

from jaxrl_llm.train import interval

SOLUTIONS = '--config.data.path={gsm8k}/model_solutions.jsonl'
ARMS = {
  'bt': ['--config=configs/gsm8k_solutions.py:bradley_terry', SOLUTIONS],
  'dpo': ['--config=configs/hh.py:dpo', '--config.data.path={hh}'],
  'sft': ['--config=configs/gsm8k_sft.py', '--config.data.path={gsm8k}/train.jsonl'],
  'kto': ['--config=configs/gsm8k_solutions.py:kto', SOLUTIONS],
}
METHODS = ('bradley_terry', 'dpo', 'sft', 'kto')
HELD_OUT = tuple(
  f'eval/{name}' for name in ('loss', 'nll', 'accuracy', 'low', 'high', 'longer')
)
CURVE = ('loss', 'nll', 'accuracy', 'margin', *HELD_OUT)
FIGURE = 'sft'
WHAT = {
  'bt': 'reward model, GSM8K solutions: right over wrong',
  'dpo': 'DPO, hh-rlhf harmless: implicit reward, chosen over rejected',
  'sft': 'SFT, GSM8K: loss, nats per token',
  'kto': 'KTO, GSM8K solutions: implicit reward, right over wrong',
}


def holds(result: dict) -> dict[str, bool]:
  """For each arm whether what the claim says of it is so."""
  after = {name: arm['after'] for name, arm in result['arms'].items()}
  return {
    'bt': after['bt']['eval/low'] > by_length(after['bt']),
    'dpo': after['dpo']['eval/low'] > 0.5,
    'sft': after['sft']['eval/loss'] < result['arms']['sft']['before']['eval/loss'],
    'kto': after['kto']['eval/low'] > 0.5,
  }


def by_length(held: dict) -> float:
  """Accuracy of always preferring the longer one, or always the shorter one."""
  return max(held['eval/longer'], 1 - held['eval/longer'])


def verdict(result: dict) -> str:
  """'reproduced' if all of it holds."""
  return verdicts.of_all(holds(result).values())


def table(result: dict) -> str:
  """The README's table: an arm a line."""
  rows = [
    '| held out | before | after | by length alone | steps | minutes |',
    '|---|---|---|---|---|---|',
  ]
  for arm, a in result['arms'].items():
    pairs = 'eval/accuracy' in a['after']
    shown = interval if pairs else lambda m: f'{m["eval/loss"]:.3f}'
    length = f'{100 * by_length(a["after"]):.1f} %' if pairs else ''
    # Its own reference, or a head of zeros, ranks nobody: there is no look.
    begun = shown(a['before']) if a['before'] else 'a tie'
    minutes = (a['seconds_in_steps'] + a['seconds_in_evaluation']) / 60
    rows.append(
      f'| {WHAT[arm]} | {begun} | {shown(a["after"])} | {length} | '
      f'{a["steps"]} | {minutes:.0f} |'
    )
  return '\n'.join(rows)
