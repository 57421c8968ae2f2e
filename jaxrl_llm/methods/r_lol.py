"""R-LoL (2023), https://arxiv.org/abs/2305.14718, offline policy gradient.

loss = E_seq[ R s nll ],  s and nll as in a_lol

Differs from a_lol: the reward itself, no value and nothing left out. A negative reward
pushes down, so the scale of the rewards matters; the paper's are from 0 to 1.
"""

from jaxrl_llm.methods.a_lol import make_loss
from jaxrl_llm.types import Method


def r_lol(*, variant: str = 'sequence', clip: float = 0.9, beta: float = 0.1) -> Method:
  """The arguments are a_lol's."""

  def prepare(state, batch):
    return state, batch.replace(advantage=batch.reward * batch.valid)

  ref = () if variant == 'free' else ('ref_logp',)
  return Method(make_loss(variant, clip, beta), ('logp', *ref), prepare, whole=True)
