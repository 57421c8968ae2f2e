"""1 where the whole completion has a given form, else 0."""

import re

from jaxrl_llm.rewards.sample import Reward, Sample
from jaxrl_llm.types import InputError


def answer_format(
  *, pattern: str = r'-?[0-9][0-9,]*(\.[0-9]+)?\.?', max_length: int = 100
) -> Reward:
  """Matches the stripped completion. The default form is one number, no other word.

  Args:
    pattern: a regular expression, matched against the whole completion. One that
      nests repetitions, such as '(a+)+', takes exponential time.
    max_length: characters; a longer completion scores 0 and is not matched.

  Raises:
    InputError: `pattern` is no regular expression.
  """
  try:
    form = re.compile(pattern)
  except re.error as error:
    raise InputError(
      f'answer_format: pattern {pattern!r} is no regular expression: {error}.'
    ) from error

  def reward(sample: Sample) -> float:
    text = sample.completion.strip()
    return float(len(text) <= max_length and form.fullmatch(text) is not None)

  return reward
