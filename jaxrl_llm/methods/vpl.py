"""VPL, variational preference learning (Poddar et al., 2024),
https://arxiv.org/abs/2408.10075: a reward model for people who disagree.

  e = the state at a completion's last token
  h_k = MLP([e_chosen; e_rejected]) of each pair k that the user is known to have chosen
  mu, log sigma^2 = linear(mean_k attend(h)_k),   log sigma^2 held within +-1
  z = mu + sigma noise, brought to the norm sqrt(latent);   s = MLP([e; z])
  loss = E[ - log sigmoid(s_chosen - s_rejected) + kl_coef KL(N(mu, sigma^2), N(0, 1)) ]

A group is a user: its first two completions are the pair that is asked about, the
others in twos the pairs that are known (kind user_pairs). Who has none is anybody:
mu 0, sigma 1. Differs from bradley_terry: the order of two completions is a user's own.
What is measured and served has z = mu. kl_coef stays at 0.1, the baseline of the
official code, which anneals it in cycles. Scores of two users are on no common scale.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import latents, metrics, sequences
from jaxrl_llm.types import Method


def vpl(*, latent: int = 512, hidden: int = 512, kl_coef: float = 0.1) -> Method:
  """Trains the role reward, a trunk whose head stands apart, and that.

  Args:
    latent, hidden: how wide z and the small networks are.
    kl_coef: what a nat of KL costs.
  """

  def prepare(state, batch):
    noise = latents.noise(state, batch.prompt_id, latent)
    return state, batch.replace(extra=batch.extra | {'noise': noise})

  def score(out, z):
    return latents.scored(out.own, out.embedding, z)

  def loss(out, batch):
    mu, log_var = latents.posterior(out.own, latents.known(out.embedding))
    z = mu + jnp.exp(log_var / 2) * batch.extra['noise']
    drawn = sequences.margin(score(out, latents.scaled(z))[:, :2])
    quiet = sequences.margin(score(out, mu)[:, :2])
    w, apart = batch.prompt_weight, latents.kl_normal(mu, log_var)
    nll = -jax.nn.log_sigmoid(drawn)
    return jnp.sum(w * (nll + kl_coef * apart)), {
      'nll': metrics.average(-jax.nn.log_sigmoid(quiet), w),
      'margin': metrics.average(quiet, w),
      'accuracy': metrics.wins(quiet, w),
      'kl_user': metrics.average(apart, w),
    }

  def serve(out):
    return score(out, latents.posterior(out.own, latents.known(out.embedding))[0])

  own = lambda key, width: latents.init(key, width, hidden, latent)
  return Method(loss, ('embedding', 'own'), prepare, own=own, serve=serve)
