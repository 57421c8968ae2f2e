"""1 where the completion is <think>...</think><answer>...</answer>, else 0.

DeepSeek-R1 (2025), https://arxiv.org/abs/2501.12948, section 2.2.
"""

import re

from jaxrl_llm.rewards.sample import Reward, Sample

TAGS = ('<think>', '</think>', '<answer>', '</answer>')
FORM = re.compile(r'\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*', re.DOTALL)


def think_format(*, allow_empty: bool = False) -> Reward:
  """Each tag once, in order, nothing before or after but white space.

  Args:
    allow_empty: whether tags with nothing between them pass.
  """

  def reward(sample: Sample) -> float:
    match = matched(sample.completion)
    if match is None:
      return 0.0
    return float(allow_empty or all(part.strip() for part in match.groups()))

  return reward


def matched(text: str) -> re.Match | None:
  """The text as its two parts, or None if it has another form."""
  # Counted first: with each tag once the search below is linear.
  if any(text.count(tag) != 1 for tag in TAGS):
    return None
  return FORM.fullmatch(text)
