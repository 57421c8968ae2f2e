"""The first state of a run."""

import re

import jax
import jax.numpy as jnp

from jaxrl_llm import sharding
from jaxrl_llm.models import lora as adapters
from jaxrl_llm.models.config import Lora
from jaxrl_llm.types import InputError, Params, State

# Roles with a head of scores for a vocabulary's.
SCORED = ('critic', 'cost_critic', 'reward')
BORN = ('ref', 'ema')  # Frozen roles that start as the policy does.
ADAPTED = ('ema',)  # Those of them that have adapters where the policy has.


def lora(model) -> Lora | None:
  """config.model.lora as options; None, for full fine-tuning, where its rank is 0."""
  options = model.get('lora', {})
  if not options or not options['rank']:
    return None
  try:
    re.compile(options['targets'])
  except re.error as error:
    raise InputError(
      f'config.model.lora.targets={options["targets"]!r} is no regular expression: '
      f'{error}.'
    ) from error
  return Lora(options['rank'], float(options['alpha']), options['targets'])


def state(
  model, roles, tx, mesh, *, lora: Lora | None, others=None, extra=None, seed: int
) -> State:
  """Every role starts from the pretrained weights, where it belongs.

  With LoRA the weights are held once, as frozen['base']: trained roles have adapters
  (and heads) of their own, and the reference is the base itself. An average of
  policies has adapters too, at first the policy's.

  Args:
    model: a models.pretrained.Pretrained.
    roles: {'params': trained roles, 'frozen': others} (forward.roles).
    tx: the optimizer.
    others: frozen roles with weights of their own -> Pretrained.
    extra: what the method starts with (Method.extra).
  """
  others = others or {}
  place = lambda path, shape: sharding.leaf_sharding(f'params/{path}', shape, mesh)
  base, key = model.params(place), jax.random.key(seed)
  trained, kept = sorted(roles['params']), sorted(roles['frozen'] - set(others))
  if lora is None:
    # The first takes the arrays that were read: no array may stand in two places.
    trees = {
      role: role_tree(jax.tree.map(jnp.copy, base) if i else base, role)
      for i, role in enumerate([*trained, *kept])
    }
    params, frozen = ({r: trees[r] for r in names} for names in (trained, kept))
  else:
    frozen = {'base': base}
    params = {
      role: adapters.init(model.config, lora, jax.random.fold_in(key, i))
      | head(role, model.config.width)
      for i, role in enumerate(trained)
    }
    averaged = [role for role in kept if role in ADAPTED]
    frozen |= {r: jax.tree.map(jnp.copy, params['policy']) for r in averaged}
  frozen |= {role: other.params(place) for role, other in others.items()}
  found = State(
    step=jnp.int32(0),
    applied=jnp.int32(0),
    skipped=jnp.int32(0),
    params=params,
    opt_state=jax.jit(tx.init)(params),
    frozen=frozen,
    extra={name: jnp.array(x, jnp.float32) for name, x in (extra or {}).items()},
    key=key,
  )
  return jax.device_put(found, sharding.state_sharding(found, mesh))


def role_tree(params: Params, role: str) -> Params:
  """A role's own tree: critic and reward have a head of scores for a vocabulary's."""
  extra = head(role, params['embed'].shape[1])
  return {k: v for k, v in params.items() if not extra or k != 'head'} | extra


def head(role: str, width: int) -> Params:
  """Zeros [D, 1] for a role that scores; nothing for one that speaks."""
  return {'scores': jnp.zeros((width, 1))} if role in SCORED else {}
