"""INPO (Zhang et al., 2024), https://arxiv.org/abs/2407.00617.

  anchor = (tau / eta) log ref + (1 - tau / eta) log pi_old
  h = sum_t (log pi - anchor) of the first completion minus that of the second
  loss = E_pair[ p (h - 1 / (2 eta))^2 + (1 - p) (h + 1 / (2 eta))^2 ]

Differs from online_ipo: the anchor lies between the reference and the policy that
sampled. Fitted exactly this is mirror descent, pi proportional to
exp(P(y beats pi_old) / eta) ref^(tau / eta) pi_old^(1 - tau / eta), whose last policy
comes to rest at the regularised Nash equilibrium; at tau = eta it is online_ipo. The
paper draws the label where p stands, and its rounds are of many updates, these of one
batch. eta 0.0075 and tau = eta / 3 are the paper's, the judge by the rewards ours.
"""

from jaxrl_llm.methods.online_ipo import online_ipo
from jaxrl_llm.ops import preferences
from jaxrl_llm.types import InputError, Method


def inpo(
  *, eta: float = 0.0075, tau: float = 0.0025, judge=preferences.bradley_terry
) -> Method:
  """For groups of two; `tau` pulls to the reference, 1 / `eta` is the step, and `judge`
  is as in online_ipo.
  """
  if not 0 < tau <= eta:
    raise InputError(f'inpo: tau={tau}, eta={eta}; tau is above 0 and at most eta.')
  plain, share = online_ipo(tau=eta, judge=judge), tau / eta

  def loss(out, batch):
    anchor = share * batch.ref_logp + (1 - share) * batch.old_logp
    return plain.loss(out, batch.replace(ref_logp=anchor))

  return plain._replace(loss=loss, needs=('logp', 'old_logp', 'ref_logp'))
