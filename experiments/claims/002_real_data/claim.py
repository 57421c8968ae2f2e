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
  'kto': 'KTO, GSM8K solutions: loss',
}


def holds(result: dict) -> dict[str, bool]:
  """For each arm whether what the claim says of it is so."""
  arms = result['arms']
  lower = lambda arm: arms[arm]['after']['eval/loss'] < before(arms[arm])['eval/loss']
  return {
    'bt': arms['bt']['after']['eval/low'] > by_length(arms['bt']['after']),
    'dpo': arms['dpo']['after']['eval/low'] > 0.5,
    'sft': lower('sft'),
    'kto': lower('kto'),
  }


def before(arm: dict) -> dict:
  """What a run says of its start. One that does not look there starts as its own
  reference, or from a head of zeros: pairs are ties, and kto's loss is 0.5.
  """
  return arm['before'] or {'eval/loss': 0.5}


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
    tied = pairs and not a['before']
    begun = 'a tie' if tied else shown(before(a))
    minutes = (a['seconds_in_steps'] + a['seconds_in_evaluation']) / 60
    rows.append(
      f'| {WHAT[arm]} | {begun} | {shown(a["after"])} | {length} | '
      f'{a["steps"]} | {minutes:.0f} |'
    )
  return '\n'.join(rows)
