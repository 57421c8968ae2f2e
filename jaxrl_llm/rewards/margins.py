"""By how much a reward tells pairs apart, such as a reward model (`learned`).

python experiments/reshape.py "jaxrl_llm.rewards.margins.margins(
  by={'name': 'learned', 'run': 'runs/reward'})" TABLE OUT
"""

from collections.abc import Iterable, Iterator

from jaxrl_llm import build
from jaxrl_llm.data import kinds, reshape
from jaxrl_llm.rewards.sample import Batched, Sample
from jaxrl_llm.tasks import records
from jaxrl_llm.types import InputError


def margins(rows: Iterable[dict], *, by: dict) -> Iterator[dict]:
  """Kind 'pairs', with `margin`: the reward of the chosen less that of the rejected.

  Args:
    by: a reward that scores batches, with its options.
  """
  reward = scorer(by, 'margins: by')
  told = lambda i, row: (row, *(sample(i, row, side) for side in reshape.SIDES))
  found = [told(i, row) for i, row in enumerate(rows)]  # In turn: an error is of a row.
  better, worse = (reward.score([x[side] for x in found]) for side in (1, 2))
  for (row, *_), one, other in zip(found, better, worse):
    yield row | {'margin': float(one) - float(other)}


def scorer(by: dict, where: str) -> Batched:
  """The reward that `by` names, which must score batches."""
  reward = build.made('jaxrl_llm.rewards', by, where)
  if not isinstance(reward, Batched):
    raise InputError(f'{where}={by!r} scores single answers; name learned or judge.')
  return reward


def sample(number: int, row: dict, side: str) -> Sample:
  """One answer of a pair as a reward sees it."""
  prompt, said = kinds.prompt(row), kinds.said(row, side)
  if isinstance(said, list) and len(said) > 1:
    raise InputError(f'{side!r} has {len(said)} messages; one answer is scored.')
  record = records.Record(number, kinds.conversation(prompt), '', {})
  return Sample(records.question(record), reshape.spoken(said), 0, False, record)
