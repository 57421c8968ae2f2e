"""ORPO (Hong et al., 2024), https://arxiv.org/abs/2403.07691.

  p = exp(mean_t log pi),  o = log odds(p_chosen) - log odds(p_rejected)
  loss = E[ NLL(chosen) - lam log sigmoid(o) ]

No reference and no separate SFT stage. NLL is the mean over the chosen completion's
tokens; the official code counts the prompt's tokens in it too.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import metrics, sequences
from jaxrl_llm.types import Method


def orpo(*, lam: float = 0.1) -> Method:
  """`lam` weighs the odds-ratio term."""

  def loss(out, batch):
    logp = sequences.seq_mean(out.logp, batch.mask)
    odds = sequences.margin(sequences.log_odds(logp))
    w, nll, odds_loss = batch.prompt_weight, -logp[:, 0], -jax.nn.log_sigmoid(odds)
    return jnp.sum(w * (nll + lam * odds_loss)), {
      'nll': metrics.average(nll, w),
      'odds_loss': metrics.average(odds_loss, w),
      'accuracy': metrics.wins(odds, w),
    }

  return Method(loss, ('logp',))
