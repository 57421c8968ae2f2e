"""The first state of a run."""

import re

import jax
import jax.numpy as jnp

from jaxrl_llm import checkpoint, sharding
from jaxrl_llm.models import decoder
from jaxrl_llm.models import lora as adapters
from jaxrl_llm.models.config import Lora
from jaxrl_llm.types import Array, InputError, Method, Params, State

# Roles with a head of scores for a vocabulary's.
SCORED = ('critic', 'cost_critic', 'twin_critic', 'reward', 'ensemble')
TWINS = ('twin_critic',)  # Of a zero head too it would be the critic for ever.
BORN = ('ref', 'ema')  # Frozen roles that start as the policy does.
ENSEMBLE = 'ensemble'  # The role of several models.
OWN = 'own'  # The role of the arrays of a method (Method.own).
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
  model,
  roles,
  tx,
  mesh,
  method: Method,
  *,
  lora: Lora | None,
  others=None,
  judged: str = '',
  seed: int,
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
    method: says what its state has beside networks, and what their heads are.
    judged: the folder of a run whose reward model the critic starts as.
  """
  others, heads = others or {}, method.heads
  place = lambda path, shape: sharding.leaf_sharding(f'params/{path}', shape, mesh)
  base, key = model.params(place), jax.random.key(seed)
  trained, kept = sorted(roles['params'] - {OWN}), sorted(roles['frozen'] - set(others))
  first = own_trees if lora is None else adapted
  params, frozen = first(base, trained, kept, model.config, lora, heads, key)
  frozen |= {role: other.params(place) for role, other in others.items()}
  draw = lambda i: jax.random.fold_in(key, len(trained) + i)
  if OWN in roles['params']:
    params[OWN] = method.own(draw(0), model.config.width)
  if ENSEMBLE in params:
    params[ENSEMBLE] = several(params[ENSEMBLE], method.members, draw(1))
  if judged and 'critic' in params:
    params['critic'] = reward_model(judged, params['critic'])
  carried = {name: jnp.array(x, jnp.float32) for name, x in method.extra.items()}
  found = at_birth(params, jax.jit(tx.init)(params), frozen, carried, key)
  return jax.device_put(found, sharding.state_sharding(found, mesh))


def own_trees(base: Params, trained, kept, config, lora, heads, key):
  """Trained and frozen roles, each a copy of the whole network."""
  del config, lora
  # The first takes the arrays that were read: no array may stand in two places.
  trees = {
    role: role_tree(jax.tree.map(jnp.copy, base) if i else base, role, heads, key)
    for i, role in enumerate([*trained, *kept])
  }
  return tuple({r: trees[r] for r in names} for names in (trained, kept))


def adapted(base: Params, trained, kept, config, lora: Lora, heads, key):
  """Trained roles as adapters, with heads of their own, over one frozen base."""
  params = {
    role: adapters.init(config, lora, jax.random.fold_in(key, i))
    | head(role, config.width, heads, key)
    for i, role in enumerate(trained)
  }
  frozen = {r: jax.tree.map(jnp.copy, params['policy']) for r in kept if r in ADAPTED}
  return params, {'base': base} | frozen


def at_birth(params: Params, opt_state, frozen: Params, extra, key: Array) -> State:
  """The state before the first step."""
  return State(
    step=jnp.int32(0),
    applied=jnp.int32(0),
    skipped=jnp.int32(0),
    params=params,
    opt_state=opt_state,
    frozen=frozen,
    extra=extra,
    key=key,
  )


def several(tree: Params, members: int, key) -> Params:
  """Copies in a leading axis, each with a head drawn from normal(0, 1 / sqrt(D))."""
  copies = lambda x: jnp.broadcast_to(x[None], (members, *x.shape))
  head = (members, *tree['scores'].shape)
  scores = jax.random.normal(key, head) / jnp.sqrt(head[1])
  return jax.tree.map(copies, tree) | {'scores': scores}


def reward_model(workdir: str, like: Params) -> Params:
  """The reward model of a run's newest checkpoint, laid out as `like`.

  With LoRA both are adapters, which belong to one base: assemble.py has seen to that.
  """
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
  target = {'params': {'reward': jax.tree.map(shape, like)}}
  if (found := checkpoint.restore(workdir, target)) is None:
    raise InputError(f'config.model.critic={workdir} has no checkpoint yet.')
  return found[0]['params']['reward']


def role_tree(params: Params, role: str, heads: dict[str, int], key: Array) -> Params:
  """A role's own tree: critic and reward have a head of scores for a vocabulary's."""
  extra = head(role, params['embed'].shape[1], heads, key)
  return {k: v for k, v in params.items() if not extra or k != 'head'} | extra


def head(role: str, width: int, heads: dict[str, int], key: Array) -> Params:
  """[D, A] for a role that scores, zeros but in a twin; nothing for one that speaks."""
  if not (count := scores(role, heads)):
    return {}
  draw = decoder.NORMAL if role in TWINS else decoder.ZEROS
  return {'scores': draw(key, (width, count))}


def scores(role: str, heads: dict[str, int]) -> int:
  """How many numbers a role's head gives (Method.heads); 0 for one that speaks."""
  return heads.get(role, 1) if role in SCORED else 0
