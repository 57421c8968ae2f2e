"""T-REG (2024), https://arxiv.org/abs/2412.02685: token rewards beside dpo.

  c_t = sigmoid(log ref(y_t | x_better, y_<t) - log ref(y_t | x_worse, y_<t)) - 1/2
  gain = sum over both completions and their tokens of beta c_t log pi(y_t)
  loss = E_pair[ - log sigmoid(m) - alpha sg(sigmoid(-m)) gain ],  m dpo's margin

x_better and x_worse ask for a better and a worse answer to x, so that the reference
itself says which tokens make an answer good (kind contrastive_pairs). Differs from dpo:
the second term; where both prompts are one, c_t is 0 and so is it. Experimental: from
sources about the paper. Its words of the two requests were not found;
data.reshape.contrasted takes yours. Of alpha the paper has 0.1, 0.25 and 0.5.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import metrics, sequences
from jaxrl_llm.types import InputError, Method


def t_reg(*, beta: float = 0.1, alpha: float = 0.25) -> Method:
  """Pairs; their reference runs after the two other prompts at every update too."""

  def prepare(state, batch):
    if batch.aux is None:
      raise InputError(
        "t_reg: the pairs have no second prompts. Set config.data.kind='"
        "contrastive_pairs'."
      )
    return state, batch

  def measure(out, batch):
    better, worse = jnp.split(out.aux.ref_logp, 2, 1)
    found = (jax.nn.sigmoid(better - worse) - 0.5) * batch.mask
    return batch.replace(extra=batch.extra | {'contrast': found})

  def loss(out, batch):
    r = beta * sequences.seq_sum(out.logp - batch.ref_logp, batch.mask)
    m, w, told = sequences.margin(r), batch.prompt_weight, batch.extra['contrast']
    near = jax.lax.stop_gradient(jax.nn.sigmoid(-m))
    gain = beta * sequences.seq_sum(told * out.logp, batch.mask).sum(1)
    total = jax.nn.softplus(-m) - alpha * near * gain
    right = sequences.margin(sequences.seq_mean(told, batch.mask))
    found = metrics.pairs(r, w) | {'contrast': metrics.average(right, w)}
    return jnp.sum(w * total), found

  return Method(
    loss,
    ('logp', 'ref_logp'),
    prepare,
    measure=measure,
    measure_needs=('aux/ref_logp',),
  )
