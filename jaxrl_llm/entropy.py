"""An entropy bonus for any method that trains the policy, fixed or steered to a target.

loss - c sum(weight * H_t), H_t the entropy of the whole distribution at a token. (The
log-prob of what was sampled would be no bonus: its expected gradient is zero.)

Steered (Skywork-OR1, 2025, https://arxiv.org/abs/2505.22312): c counts only where the
mean entropy is at most the target; it then grows by `delta`, and shrinks by it where
the entropy is above. Here the mean is that of the step before, and c moves once a step.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import extras, metrics
from jaxrl_llm.types import InputError, Method


def with_entropy(
  method: Method, *, coef: float, target: float = 0.0, delta: float = 0.0
) -> Method:
  """The method with the bonus.

  Args:
    coef: c, or where it starts.
    target: nats per token; 0 leaves c where it is.
    delta: how far c moves in a step.

  Raises:
    InputError: the method does not read the policy; a target without a delta.
  """
  if 'logp' not in method.needs:
    raise InputError('config.plan.entropy_coef: this method trains no policy.')
  if target < 0 or delta < 0 or bool(target) != bool(delta):
    raise InputError(
      f'config.plan.entropy_target={target} moves the coefficient by '
      f'config.plan.entropy_delta={delta}; give both above 0, or neither.'
    )

  def prepare(state, batch):
    state, batch = method.prepare(state, batch)
    now = jnp.float32(coef)
    if target:
      low = state.extra['entropy'] <= target
      now = jnp.where(low, state.extra['entropy_coef'], 0.0)
    return state, extras.carried(batch, {'entropy_coef': now})

  def loss(out, batch):
    plain, found = method.loss(out, batch)
    w, now = batch.weight, batch.extra['entropy_coef'][:, None, None]
    return plain - jnp.sum(now * w * out.entropy), found | {
      'entropy': metrics.average(out.entropy, w),
      'entropy_coef': metrics.average(now * jnp.ones_like(w), w),
    }

  def after(state, batch, found):
    state = method.after(state, batch, found)
    side = jnp.where(found['entropy'] <= target, delta, -delta)
    moved = jnp.maximum(state.extra['entropy_coef'] + side, 0.0)
    told = {'entropy': found['entropy'], 'entropy_coef': moved}
    return state.replace(extra=state.extra | told)

  changed = dict(loss=loss, prepare=prepare, needs=(*method.needs, 'entropy'))
  if target:
    start = {'entropy': 0.0, 'entropy_coef': coef}
    changed |= dict(after=after, extra=method.extra | start)
  return method._replace(**changed)
