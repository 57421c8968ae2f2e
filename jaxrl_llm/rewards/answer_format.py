"""1 where the whole completion, or a part of it, has a given form, else 0."""

from jaxrl_llm.rewards import automaton
from jaxrl_llm.rewards.sample import Reward, Sample
from jaxrl_llm.types import InputError


def answer_format(
  *,
  pattern: str = r'-?[0-9][0-9,]*(\.[0-9]+)?\.?',
  max_length: int = 100,
  anywhere: bool = False,
) -> Reward:
  """Matches the stripped completion. The default form is one number, no other word.

  Args:
    pattern: a regular expression, matched in linear time (automaton.py).
    max_length: characters; a longer completion scores 0 and is not matched.
    anywhere: whether a part of the completion may have the form.

  Raises:
    InputError: `pattern` is no regular expression, or one with back references or
      look-around.
  """
  try:
    form = automaton.compiled(pattern)
  except InputError as error:
    raise InputError(f'answer_format: {error}') from error

  def reward(sample: Sample) -> float:
    text = sample.completion.strip()
    if len(text) > max_length:
      return 0.0
    return float(automaton.matched(form, text, anywhere=anywhere))

  return reward
