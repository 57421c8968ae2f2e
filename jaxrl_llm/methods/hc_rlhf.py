"""HC-RLHF, the candidate's half (2025), https://arxiv.org/abs/2506.08266.

  max E[R]  subject to  mean C + kappa std C <= threshold
  kappa = c1 t_{1 - delta, n - 1} / sqrt(n) + c2 t_{1 - delta, m - 1} / sqrt(m)
  c' = C + kappa (C^2 - 2 C mean) / (2 std)
  return = R - beta sum_t log(pi_old / ref) - lambda c',  less the group's mean
  loss = - E_seq[ A sum_t log pi(y_t) ]

Differs from safe_rlhf: no critic, no clip, and a bound in place of the mean: the
candidate is to pass the safety test (evaluate/safety.py), which is the other half, on m
costs that nobody has trained on. n is the window, and mean and std are the window's in
lambda (as in safe_rlhf) and in c' alike; the official code mixes two. Until the window
has filled there are fewer costs than n, and kappa is too small for them; a batch larger
than the window is more of them. Its running-mean baseline is left out. Defaults are the
official code's.
"""

from jaxrl_llm import controllers
from jaxrl_llm.methods.rloo import rloo
from jaxrl_llm.ops import advantages, costs, extras, metrics
from jaxrl_llm.types import Method


def hc_rlhf(
  *,
  threshold: float = 0.0,
  delta: float = 0.1,
  window: int = 256,
  safety_size: int = 1000,
  c1: float = 1.0,
  c2: float = 1.0,
  multiplier: float = 1.0,
  rate: float = 0.01,
  multiplier_max: float = 1e6,
  delay: int = 0,
  beta: float = 0.1,
  advantage=advantages.group_mean,
) -> Method:
  """With c1 and c2 0 the mean cost itself is held at the threshold.

  Args:
    safety_size: m, costs of the test to come.
    multiplier, delay: as in safe_rlhf.
  """
  kappa = c1 * costs.margin(window, delta) + c2 * costs.margin(safety_size, delta)
  bounds = dict(most=multiplier_max, threshold=threshold, size=window)
  moved, start = controllers.multiplier(
    multiplier, rate, delay=delay, kappa=kappa, **bounds
  )
  plain = rloo(beta=beta, advantage=advantage)

  def prepare(state, batch):
    cost = extras.read(batch, 'cost', 'hc_rlhf')
    state, found = moved(state, cost, extras.fresh(batch))
    paid = found.multiplier * costs.inflated(cost, found.mean, found.std, kappa)
    batch = extras.carried(batch, {'multiplier': found.multiplier})
    reward = batch.reward
    state, batch = plain.prepare(state, batch.replace(reward=reward - paid))
    return state, batch.replace(reward=reward)

  def loss(out, batch):
    value, found = plain.loss(out, batch)
    return value, found | metrics.told(batch, 'multiplier')

  return plain._replace(loss=loss, prepare=prepare, extra=start)
