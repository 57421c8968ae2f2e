"""RAFT, or best-of-n fine-tuning; SuperHF (2023), https://arxiv.org/abs/2310.16763.

loss = - E_token[ log pi(y_t) ] over the best completion of each group

The first of the best where several are. This is SuperHF without its KL prior, as its
code has it by default; that prior reads whole distributions.
"""

from jaxrl_llm.methods.sft import sft
from jaxrl_llm.ops import sequences
from jaxrl_llm.types import Method


def raft() -> Method:
  """What is not the best of its group is not valid."""

  def prepare(state, batch):
    kept = sequences.best(batch.reward, batch.valid)
    return state, batch.replace(valid=kept, mask=batch.mask * kept[..., None])

  return sft()._replace(prepare=prepare)
