"""ReMax (Li et al., 2023), https://arxiv.org/abs/2310.10505.

  A_t = R(y) - R(greedy y) - beta log(pi_old / pi_ref)_t
  loss = - E_token[ A_t log pi(y_t) ]

Differs from reinforce: the reward of the policy's own greedy completion is the
baseline (config.source.greedy=True draws it; it is not trained on). KL as the official
code has it: each token's own, not what is still to come. beta is ours, as none was
read; discount is left at 1, and the code's clip of R(y) - R(greedy y) is left out.
"""

from jaxrl_llm.methods.reinforce import reinforce
from jaxrl_llm.ops import extras, kl, weights
from jaxrl_llm.types import Method


def remax(*, beta: float = 0.05, aggregate=weights.token_mean) -> Method:
  """With `beta` 0 the reference is neither needed nor run."""

  def prepare(state, batch):
    likeliest = extras.read(batch, 'greedy_reward', 'remax')
    gain = (batch.reward - likeliest[:, None]) * batch.valid
    adv = gain[..., None] * batch.mask
    if beta:
      paid, batch = kl.paid(batch)
      adv -= beta * paid
    return state, batch.replace(advantage=adv)

  needs = ('old_logp', 'ref_logp') if beta else ()
  plain = reinforce(aggregate=aggregate)
  asked = dict(prepare_needs=needs, reads=('greedy_reward',))
  return plain._replace(prepare=prepare, **asked)
