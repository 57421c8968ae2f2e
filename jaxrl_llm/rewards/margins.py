"""By how much a reward tells pairs apart, such as a reward model (`learned`).

python experiments/reshape.py "jaxrl_llm.rewards.margins.margins(
  by={'name': 'learned', 'run': 'runs/reward'})" TABLE OUT
"""

from collections.abc import Iterable, Iterator

from jaxrl_llm import build
from jaxrl_llm.data import kinds
from jaxrl_llm.rewards.sample import Batched, Sample
from jaxrl_llm.tasks import records
from jaxrl_llm.types import InputError


def margins(rows: Iterable[dict], *, by: dict) -> Iterator[dict]:
  """Kind 'pairs', with `margin`: the reward of the chosen less that of the rejected.

  Args:
    by: a reward that scores batches, with its options.
  """
  reward, rows = scorer(by, 'margins: by'), list(rows)
  better, worse = (
    reward.score([sample(i, row, side) for i, row in enumerate(rows)])
    for side in ('chosen', 'rejected')
  )
  for row, one, other in zip(rows, better, worse):
    yield row | {'margin': float(one) - float(other)}


def scorer(by: dict, where: str) -> Batched:
  """The reward that `by` names, which must score batches."""
  reward = build.made('jaxrl_llm.rewards', by, where)
  if not isinstance(reward, Batched):
    raise InputError(f'{where}={by!r} scores single answers; name learned or judge.')
  return reward


def sample(number: int, row: dict, side: str) -> Sample:
  """One answer of a pair as a reward sees it."""
  prompt, text = kinds.prompt(row), kinds.text(row, side)
  record = records.Record(number, kinds.conversation(prompt), '', {})
  return Sample(records.question(record), text, 0, False, record)
