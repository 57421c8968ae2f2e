"""A bigram policy, a tabular critic and reward: exact, and quick to compile."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import types
from jaxrl_llm.forward import sensor
from jaxrl_llm.ops import divergences, users
from jaxrl_llm.types import Batch, Outputs, State

B, G, P, T, V = 8, 2, 3, 5, 5
SGD = optax.sgd(1.0)
FROZEN = {'ref': 1, 'dpo': 3, 'teacher': 4, 'ema': 5}  # Role to seed.


def float64():
  """A context in which 64-bit numbers exist. jax.enable_x64 is new in jax 0.8."""
  if hasattr(jax, 'enable_x64'):
    return jax.enable_x64(True)
  return jax.experimental.enable_x64()


def forward(params, frozen, batch, needs):
  """The sensors of jaxrl_llm.forward, on tables."""
  trees = {'params': params, 'frozen': frozen}
  found = {}
  for need in needs:
    if need.startswith('aux/'):
      continue
    tree, role, read, _ = sensor(need)
    table = trees[tree][role]
    if read == 'own':
      found[need] = table
    elif need == 'members':
      found[need] = members(table, batch)
    elif read == 'divergence':
      found[need] = divergence(params['policy'], table, batch)
    else:
      found[need] = READ[read](table, batch)
    if need == 'score' and 'anybody' in params.get('own', {}):
      found[need] += softly(params['own'], batch)
  if aux := tuple(n.removeprefix('aux/') for n in needs if n.startswith('aux/')):
    found['aux'] = forward(params, frozen, batch.aux, aux)
  return Outputs(**found)


def previous(batch):
  """The token before each completion token: [B, G, T]."""
  if batch.row_prompt is not None:
    last = batch.row_prompt_length[..., None] - 1
    last = jnp.take_along_axis(batch.row_prompt, last, 2)
    return jnp.concatenate([last, batch.completions[..., :-1]], -1)
  last = jnp.take_along_axis(batch.prompts, batch.prompt_length[:, None] - 1, 1)
  last = jnp.broadcast_to(last[:, :, None], (*batch.completions.shape[:2], 1))
  return jnp.concatenate([last, batch.completions[..., :-1]], -1)


def distribution(table, batch):
  logits = table[previous(batch)] / batch.temperature[..., None, None]
  return jax.nn.log_softmax(logits)


def logp(table, batch):
  chosen = batch.completions[..., None]
  return jnp.take_along_axis(distribution(table, batch), chosen, -1)[..., 0]


def mixed_logp(table, batch):
  """Rows of the table of the token before and of the likeliest one there, blended."""
  fixed, tokens = jax.lax.stop_gradient(table), batch.completions
  best = fixed[previous(batch)].argmax(-1)[..., :-1]
  share = batch.extra['mixed'][0]
  blend = share * table[best] + (1 - share) * table[tokens[..., :-1]]
  first = table[previous(batch)[..., :1]]
  logits = jnp.concatenate([first, blend], 2) / batch.temperature[..., None, None]
  logp = jax.nn.log_softmax(logits)
  return jnp.take_along_axis(logp, tokens[..., None], -1)[..., 0]


def softly(own, batch):
  """What a user's soft tokens add to a score, one for one."""
  told = users.soft(own, batch.extra['user']).sum(1)
  place = jnp.arange(len(told))[:, None, None]
  return (told[place, batch.completions] * batch.mask).sum(-1)


def entropy(table, batch):
  logp = distribution(table, batch)
  return -jnp.sum(jnp.exp(logp) * logp, -1)


def collision(table, batch):
  return jnp.log(jnp.sum(jnp.exp(2 * distribution(table, batch)), -1))


def odds(table, batch):
  pair = jnp.stack([batch.extra[f'verdict_{x}'][0] for x in ('first', 'second')])
  said = distribution(table, batch)[..., pair]
  return said[..., 0] - said[..., 1]


def divergence(table, teacher, batch):
  sides = (distribution(x, batch).reshape(-1, V) for x in (table, teacher))
  found = divergences.jsd(*sides, batch.extra['jsd_beta'][0])
  return found.reshape(batch.mask.shape)


def score(table, batch):
  return (table[batch.completions] * batch.mask).sum(-1)


def members(table, batch):
  """Scores of an ensemble, whose table is [V, K]."""
  return (table[batch.completions] * batch.mask[..., None]).sum(-2)


def spread(table, tokens):
  """table[tokens], each in a place of its own: [..., V]."""
  return table[tokens][..., None] * jax.nn.one_hot(tokens, V, dtype=table.dtype)


READ = {
  'logp': logp,
  'entropy': entropy,
  'mixed_logp': mixed_logp,
  'collision': collision,
  'odds': odds,
  'value': lambda table, batch: table[previous(batch)],
  'score': score,
  'token_score': lambda table, batch: table[batch.completions],
  'asked': lambda table, batch: spread(table, previous(batch)[..., 0]),
  'embedding': lambda table, batch: (
    spread(table, batch.completions) * batch.mask[..., None]
  ).sum(-2),
  'attributes': lambda table, batch: jnp.stack(
    [score(jnp.roll(table, i), batch) for i in range(2)], -1
  ),
}


def tables(seed, scale=0.5):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
  names = {'policy': (V, V), 'critic': (V,), 'reward': (V,), 'prm': (V, V)}
  names |= {'cost_critic': (V,), 'ensemble': (V, 3), 'twin_critic': (V,)}
  return {name: draw(*shape) for name, shape in names.items()}


def state(tx=SGD, seed=0, own=None) -> State:
  """`own` is that of a Method."""
  params = tables(seed)
  params |= {'own': own(jax.random.key(seed + 6), V)} if own else {}
  return State(
    step=jnp.int32(0),
    applied=jnp.int32(0),
    skipped=jnp.int32(0),
    params=params,
    opt_state=tx.init(params),
    frozen={r: tables(seed + i)['policy'] for r, i in FROZEN.items()},
    extra={},
    key=jax.random.key(seed + 2),
  )


def batch(seed=0, g=G) -> Batch:
  """Ragged completions and rewards of -1 and 1, in no order."""
  rng = np.random.default_rng(seed)
  made = types.make_batch(
    rng.integers(0, V, (B, P)).astype(np.int32),
    rng.integers(1, P + 1, B).astype(np.int32),
    rng.integers(0, V, (B, g, T)).astype(np.int32),
    rng.integers(1, T + 1, (B, g)).astype(np.int32),
  )
  reward = np.sign(rng.normal(size=(B, g))).astype(np.float32)
  extra = {
    'greedy_reward': np.sign(rng.normal(size=B)),
    'anchor_reward': rng.normal(size=B),
    'cost': rng.uniform(-0.3, 0.3, (B, g)),
    'feasible': (rng.random((B, g)) > 0.2) * 1.0,
    'first': rng.integers(0, 2, (B, g)),
    'user': np.arange(B) % 3,
  }
  extra = {k: x.astype(np.float32) for k, x in extra.items()}
  extra['turn'] = (1 + (np.arange(T) > 2)) * np.asarray(made.mask, np.int32)
  last = np.arange(T) == np.asarray(made.length)[..., None] - 1
  extra['answer'] = extra['verdict'] = last.astype(np.float32)
  extra['verdict_side'] = np.float32(np.arange(B) % 2 * 2 - 1)
  extra |= {'verdict_first': np.int32([1] * B), 'verdict_second': np.int32([3] * B)}
  return scored(jax.tree.map(jnp.asarray, made.replace(extra=extra)), reward)


def contrasted(batch) -> Batch:
  """The batch with each pair after two prompts that end otherwise, as its aux."""
  twice = lambda x: jnp.concatenate([x, x], 1)
  names = ('completions', 'length', 'mask', 'valid', 'truncated', 'temperature')
  rows = {name: twice(vars(batch)[name]) for name in names}
  last = jnp.repeat(jnp.arange(2), 2)[None, :, None] + batch.prompts[:, :1, None]
  own = {'row_prompt': last % V, 'row_prompt_length': rows['length'] * 0 + 1}
  own |= {'reward': twice(batch.reward), 'behavior_logp': None, 'extra': {}}
  return batch.replace(aux=batch.replace(**rows, **own))


def scored(batch, reward) -> Batch:
  """The batch with rewards [B, G], of its completions and of their steps of two, and
  with labels and ratings that say the same; of a third of the rows one is not there.
  """
  reward = jnp.asarray(reward)
  left = jnp.cumsum(batch.mask[..., ::-1], -1)[..., ::-1]
  end = batch.mask * (left % 2)
  steps = {'step_end': end, 'step_reward': end * reward[..., None]}
  steps['step_label'] = batch.mask * (reward[..., None] > 0)
  there = jnp.stack([jnp.arange(len(reward)) % 3 > 0] * reward.shape[1], 1)
  steps |= {'rating/a': reward, 'rated/a': jnp.ones_like(reward)}
  steps |= {'rating/b': -reward, 'rated/b': there.astype(reward.dtype)}
  return batch.replace(reward=reward, extra=batch.extra | steps)
