"""Think-RM's pairwise RLHF (2025), https://arxiv.org/abs/2505.16265.

A_i = (1/G) sum_j d_ij / sqrt( sum_ij d_ij^2 / (2 G (G - 1)) + 1e-6 ),  and then as grpo

Differs from grpo: d_ij is a judge's verdict on completions i and j (config.judge),
d_ji = -d_ij, and no completion has a score of its own: preferences may run in circles.
Without a judge d_ij = R_i - R_j, and this is grpo with the sample's deviation. The KL's
beta 1e-4 is the official code's, the clip is grpo's. Its judge says 1 / (length of the
verdict's text) for a win; here a judge says what it likes, 1 by rewards/better.py.
config.judge may ask in both orders (both_orders=True), which the code does not.
"""

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import advantages
from jaxrl_llm.types import Method


def think_rm_pairwise(
  *, clip_low: float = 0.2, clip_high: float = 0.2, beta: float = 1e-4
) -> Method:
  """With `beta` 0 the reference is neither needed nor run."""

  def prepare(state, batch):
    gaps = batch.reward[:, :, None] - batch.reward[:, None]
    adv = advantages.of_duels(batch.extra.get('duel', gaps), batch.valid)
    return state, batch.replace(advantage=adv[..., None])

  plain = grpo(clip_low=clip_low, clip_high=clip_high, beta=beta)
  return plain._replace(prepare=prepare, reads=('duel',))
