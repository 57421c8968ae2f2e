"""1 where a judge who may compute finds the completion's answer to be the record's.

After CoSineVerifier (2025), https://arxiv.org/abs/2512.01224: its points for the judge,
in words of ours. Experimental: a judge that was not trained for it need not use the
tool, and nothing here was compared with the paper's numbers.
"""

from jaxrl_llm.rewards.judge import judge
from jaxrl_llm.rewards.sample import Batched

RUBRIC = (
  'The grade is 1 if the final answer is that of the reference, and else 0. Compare '
  'final answers alone. They are the same if they are after simplification or after '
  'rounding to two decimals. A unit that is left out is no fault. Of several parts all '
  'must match. An answer that is cut off or goes round in circles is wrong.'
)


def verified(*, by: dict, rounds: int = 2, votes: int = 1) -> Batched:
  """The share of votes that find the answer right; 0 where none can be read.

  A completion that ran out of room is worth 0, and nobody is asked.

  Args:
    by, votes: as of the reward `judge`.
    rounds: how often a judge may have things computed (judges/computing.py).
  """
  computing = dict(name='computing', by=by, rounds=rounds)
  scale = dict(low=0, high=1, reference=True)
  grade = judge(by=computing, rubric=RUBRIC, votes=votes, **scale)

  def score(samples) -> list[float]:
    found = iter(grade.score([s for s in samples if not s.truncated]))
    return [0.0 if s.truncated else next(found) for s in samples]

  return Batched(score)
