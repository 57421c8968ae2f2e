"""What a reward says of completions as their ratings, such as a reward model's.

python experiments/reshape.py "jaxrl_llm.rewards.rated.rated(
  by={'name': 'learned', 'run': 'runs/reward'})" TABLE OUT
"""

from collections.abc import Iterable, Iterator

from jaxrl_llm.data import kinds
from jaxrl_llm.rewards import margins


def rated(
  rows: Iterable[dict], *, by: dict, attribute: str = 'overall'
) -> Iterator[dict]:
  """Kind 'ratings', of both sides of a pair or of a single completion.

  Args:
    by: a reward that scores batches, with its options.
    attribute: what the rating is called.
  """
  reward = margins.scorer(by, 'rated: by')
  told = [(row, side) for row in rows for side in sides(row)]
  samples = [margins.sample(i, *at) for i, at in enumerate(told)]
  for (row, side), score in zip(told, reward.score(samples)):
    said = {'prompt': kinds.prompt(row), 'completion': kinds.text(row, side)}
    yield said | {'ratings': {attribute: float(score)}}


def sides(row: dict) -> tuple[str, ...]:
  return ('chosen', 'rejected') if 'chosen' in row else ('completion',)
