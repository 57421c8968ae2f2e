"""1 where the completion's answer is the record's, by a chosen notion of the same."""

import functools
from collections.abc import Callable

from jaxrl_llm.rewards import extract as extraction
from jaxrl_llm.rewards import numbers, symbolic, units
from jaxrl_llm.rewards.sample import Reward, Sample
from jaxrl_llm.types import InputError


def letter(gold: str, answer: str | None) -> bool:
  """Whether both name the same choice: 'B' is '(b)' and 'B.'"""
  found = answer and extraction.choice(answer)
  return bool(found) and found == extraction.choice(gold)


def text(gold: str, answer: str | None) -> bool:
  """Whether both are the same words, up to case and white space."""
  plain = lambda x: ' '.join(x.casefold().split())
  return answer is not None and plain(gold) == plain(answer) != ''


# (gold, answer or None) -> bool. None of them raises, whatever the answer is.
NOTIONS: dict[str, Callable[[str, str | None], bool]] = {
  'number': numbers.equal,
  'units': units.equal,
  'math': symbolic.equal,
  'choice': letter,
  'text': text,
}


def equal(*, by: str = 'math', extract: str = 'boxed') -> Reward:
  """Compares what stands at `extract` with the record's answer.

  Args:
    by: 'number' (rewards/numbers.py), 'units' (units.py), 'math' (symbolic.py),
      'choice' or 'text'.
    extract: where the answer stands, a name of rewards/extract.py.

  Raises:
    InputError: there is no such notion or place; at a call, the record's answer is none
      by this notion, and would be nobody's.
  """
  same, find = notion(by), extraction.by_name(extract)
  # Once for a question, not for each of its completions.
  known = functools.lru_cache(lambda gold: same(gold, gold))

  def reward(sample: Sample) -> float:
    gold = sample.record.answer
    if not known(gold):
      raise InputError(
        f'equal(by={by!r}): the reference answer {gold[-100:]!r} is none; it has to be '
        'the answer alone. Mend the record, or take another `by`.'
      )
    return float(same(gold, find(sample.completion)))

  return reward


def notion(by: str) -> Callable[[str, str | None], bool]:
  """The function of that name. Raises InputError with the nearest names."""
  if by not in NOTIONS:
    raise InputError(f'by={by!r}: {extraction.nearest(by, NOTIONS)}')
  return NOTIONS[by]
