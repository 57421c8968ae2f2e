"""1 where the completion's number is the record's answer, else 0."""

from jaxrl_llm.rewards import extract as extraction
from jaxrl_llm.rewards import numbers
from jaxrl_llm.rewards.sample import Reward, Sample
from jaxrl_llm.types import InputError


def numeric(*, extract: str = 'last_number') -> Reward:
  """Compares numbers as GSM8K's graders do.

  Args:
    extract: where the answer stands, a name of rewards/extract.py. 'hash_answer' is
      GSM8K's strict form ('#### 42'), 'last_number' its flexible one.

  Raises:
    InputError: there is no such extraction; at a call, the record's answer is neither
      a number nor ends in '#### number'.
  """
  find = extraction.by_name(extract)

  def reward(sample: Sample) -> float:
    return float(numbers.equal(gold(sample.record.answer), find(sample.completion)))

  return reward


def gold(answer: str) -> str:
  """The number of a reference answer: what follows '####', else all of it."""
  found = extraction.hash_answer(answer)
  found = answer.strip() if found is None else found
  if numbers.parse(found) is None:
    raise InputError(
      f'the reference answer {answer[-100:]!r} is no number; write a number, or end '
      "the answer in '#### number'."
    )
  return found
