"""A judge of two completions, for config.judge: above 0 where the first is better.

Zheng et al. (2023), https://arxiv.org/abs/2306.05685: pairwise comparison, in both
orders; RLAIF (2023), https://arxiv.org/abs/2309.00267 averages them instead.
"""

from collections.abc import Sequence

from jaxrl_llm.judges import asked, verdicts
from jaxrl_llm.rewards.sample import Batched, Sample
from jaxrl_llm.types import InputError

ORDERS = ('mean', 'agree', 'first')


def judge_pairs(
  *,
  by: dict,
  orders: str = 'mean',
  reference: bool = False,
  rubric: str = '',
  votes: int = 1,
  unreadable: float = 0.0,
) -> Batched:
  """Pairs of samples to preferences in [-1, 1].

  Args:
    by, rubric, votes: as of the reward `judge`.
    orders: 'mean' and 'agree' ask in both orders (verdicts.both_orders); 'first' asks
      once, and a judge that favours a place favours that completion.
    reference: the judge sees the record's answer too.
    unreadable: the preference where a verdict cannot be read.
  """
  if orders not in ORDERS:
    raise InputError(f'judge_pairs: orders={orders!r}; there are {ORDERS}.')
  ask = asked.make(by)

  def question(one: Sample, other: Sample) -> verdicts.Question:
    known = asked.reference(one.record, reference)
    texts = (one.prompt, one.completion, other.completion)
    return verdicts.compared(*texts, reference=known, rubric=rubric)

  def score(pairs: Sequence[tuple[Sample, Sample]]) -> list[float]:
    games = [question(*pair) for pair in pairs]
    if orders != 'first':
      games += [question(other, one) for one, other in pairs]
    found = asked.means(ask, games, verdicts.preference, votes)
    first, second = found[: len(pairs)], found[len(pairs) :]
    if second:
      first = [verdicts.both_orders(*both, orders) for both in zip(first, second)]
    return [unreadable if x is None else x for x in first]

  return Batched(score)
