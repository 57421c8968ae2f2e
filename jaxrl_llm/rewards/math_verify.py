"""1 where math-verify takes the completion's answer for the record's, else 0.

Math-Verify (Hugging Face), https://github.com/huggingface/Math-Verify: text to sympy,
then several comparisons, the gold first. It runs in processes of its own, which are
killed when they hang (sandbox/workers.py); this one imports neither it nor sympy. It
reads more of LaTeX than equal(by='math') and is slower, and what it takes for equal
depends on its version.
"""

import importlib.util
from pathlib import Path

from jaxrl_llm.rewards import extract as extraction
from jaxrl_llm.rewards.sample import Batched, Sample
from jaxrl_llm.sandbox import equations, workers
from jaxrl_llm.types import InputError

LONGEST = 1000  # Characters of an answer, or of a completion's end; ours.


def math_verify(
  *,
  extract: str = 'boxed',
  seconds: float = 5.0,
  memory: int = 2048,
  processes: int = 2,
) -> Batched:
  """Compares what stands at `extract` with the record's answer.

  An answer that cannot be read, takes too long or too much memory is worth 0. On a
  machine so busy that `seconds` are not enough for a plain one, so is that.

  Args:
    extract: where the answer stands, a name of rewards/extract.py; '' leaves the search
      to math-verify, in the completion's last 1,000 characters.
    seconds: for one answer.
    memory: MiB of a process.
    processes: answers compared at once.

  Raises:
    InputError: the package is missing, or there is no such extraction; at a call, a
      process cannot start.
  """
  if importlib.util.find_spec('math_verify') is None:
    raise InputError(
      'rewards.math_verify: the package is missing. pip install math-verify, or take '
      "equal(by='math'), which needs none."
    )
  find = extraction.by_name(extract) if extract else None
  limits = dict(seconds=seconds, memory=memory, workers=processes)
  each = workers.make_pool(Path(equations.__file__), **limits)

  def text(sample: Sample) -> str:
    """What is to be compared, or '' where there is no answer."""
    if find is None:
      return sample.completion[-LONGEST:]
    found = find(sample.completion)
    return f'\\boxed{{{found}}}' if found and len(found) <= LONGEST else ''

  def score(samples) -> list[float]:
    texts = [text(s) for s in samples]
    asked = [
      {'gold': s.record.answer, 'text': t} for s, t in zip(samples, texts) if t.strip()
    ]
    found = iter(each(asked))
    return [float(t.strip() != '' and next(found) is True) for t in texts]

  return Batched(score)
