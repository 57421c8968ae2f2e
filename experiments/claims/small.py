"""A world small enough that a claim is seconds: five seeds or more in one program.

Policy and critic are networks of one hidden layer over the prompt, the place in the
completion and the tokens just before; the update is step.make_update_step, unchanged,
under vmap over seeds. Arms start from the same parameters, seed by seed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm.forward import sensor
from jaxrl_llm.methods.sft import sft
from jaxrl_llm.step import make_update_step
from jaxrl_llm.types import Array, Batch, Method, Outputs, State

# (state, key) -> a batch, and what drawing it took: 'rollouts' and 'tokens'.
Draw = Callable[[State, Array], tuple[Batch, dict]]


class Net(NamedTuple):
  """What a network sees and says. `stop` ends a completion; -1 is no such token."""

  vocab: int
  prompt: int
  length: int
  memory: int = 1  # Tokens just before that it sees.
  first: bool = False  # Whether it sees a completion's first token throughout.
  stop: int = -1
  width: int = 64


# ---- The network ---------------------------------------------------------------------


def init(net: Net, key: Array, outputs: int) -> dict:
  """Says 0 of everything until it is trained."""
  sizes = {
    'prompt': net.prompt * net.vocab,
    'place': net.length,
    'before': (net.memory + net.first) * (net.vocab + 1),
  }
  scale = (net.prompt + 1 + net.memory + net.first) ** -0.5
  keys = jax.random.split(key, len(sizes))
  found = {
    name: scale * jax.random.normal(k, (size, net.width))
    for k, (name, size) in zip(keys, sizes.items())
  }
  return found | {'out': jnp.zeros((net.width, outputs)), 'bias': jnp.zeros(outputs)}


def say(net: Net, params: dict, prompts: Array, before: Array, place: Array) -> Array:
  """[B, G or 1, P], [B, G, t, memory] and [t] to [B, G, t, outputs]."""
  hot = lambda x, n: jax.nn.one_hot(x, n).reshape(*x.shape[:-1], -1)
  told = hot(prompts, net.vocab) @ params['prompt']
  seen = hot(before, net.vocab + 1) @ params['before']
  hidden = jnp.tanh(told[:, :, None] + seen + params['place'][place][None, None])
  return hidden @ params['out'] + params['bias'][None, None, None]


def before(net: Net, completions: Array) -> Array:
  """The tokens before each, the nearest first, `vocab` where there is none."""
  none = net.vocab
  back = lambda k: jnp.pad(completions, ((0, 0), (0, 0), (k, 0)), constant_values=none)
  found = [back(k)[..., : net.length] for k in range(1, net.memory + 1)]
  if net.first:
    opening = jnp.broadcast_to(completions[..., :1], completions.shape)
    found.append(jnp.where(jnp.arange(net.length)[None, None] > 0, opening, none))
  return jnp.stack(found, -1)


def make_forward(net: Net):
  """The sensors of jaxrl_llm.forward, on these networks."""

  def forward(params, frozen, batch, needs):
    trees = {'params': params, 'frozen': frozen}
    prompts = batch.prompts[:, None] if batch.row_prompt is None else batch.row_prompt
    tokens, found = before(net, batch.completions), {}
    for need in needs:
      tree, role, read, _ = sensor(need)
      x = say(net, trees[tree][role], prompts, tokens, jnp.arange(net.length))
      found[need] = READ[read](x, batch)
    return Outputs(**found)

  return forward


def logp(x: Array, batch: Batch) -> Array:
  chosen = batch.completions[..., None]
  return jnp.take_along_axis(jax.nn.log_softmax(x), chosen, -1)[..., 0]


def entropy(x: Array, batch: Batch) -> Array:
  found = jax.nn.log_softmax(x)
  return -jnp.sum(jnp.exp(found) * found, -1)


READ = {
  'logp': logp,
  'entropy': entropy,
  'value': lambda x, batch: x[..., 0],
  'score': lambda x, batch: x[..., -1, 0],
}


# ---- Completions ---------------------------------------------------------------------


def sample(net: Net, policy: dict, key: Array, prompts: Array, group: int, given=None):
  """Completions of prompts [B, P] or [B, G, P], as a batch without reward.

  `given` [B, G] are first tokens that the policy did not choose: their mask is 0.
  """
  rows = prompts[:, None] if prompts.ndim == 2 else prompts
  b = len(prompts)

  def one(carry, place):
    last, opening, done = carry
    tokens = jnp.concatenate([last, *([opening[..., None]] if net.first else [])], -1)
    x = say(net, policy, rows, tokens[:, :, None], place[None])[:, :, 0]
    token = jax.random.categorical(jax.random.fold_in(key, place), x)
    if given is not None:
      token = jnp.where(place == 0, given, token)
    token = jnp.where(done, 0, token)
    said = jnp.take_along_axis(jax.nn.log_softmax(x), token[..., None], -1)[..., 0]
    opening = jnp.where(place == 0, token, opening)
    last = jnp.concatenate([token[..., None], last[..., :-1]], -1)
    return (last, opening, done | (token == net.stop)), (token, ~done, said)

  none = jnp.full((b, group), net.vocab)
  carry = (jnp.stack([none] * net.memory, -1), none, jnp.zeros((b, group), bool))
  (_, _, done), found = jax.lax.scan(one, carry, jnp.arange(net.length))
  completions, mask, said = (jnp.moveaxis(x, 0, -1) for x in found)
  batch = stored(prompts if prompts.ndim == 2 else prompts[:, 0], completions)
  mask = mask.astype(jnp.float32)
  batch = batch.replace(mask=mask, length=mask.sum(-1).astype(jnp.int32))
  if prompts.ndim == 3:
    length = jnp.full((b, group), net.prompt)
    batch = batch.replace(row_prompt=prompts, row_prompt_length=length)
  if given is not None:
    batch = batch.replace(mask=mask.at[..., 0].set(0.0))
  out_of_room = jnp.where(net.stop >= 0, 1.0 - done, jnp.zeros_like(1.0 - done))
  return batch.replace(truncated=out_of_room, behavior_logp=said)


def stored(prompts: Array, completions: Array) -> Batch:
  """Whole completions [B, G, T] as a batch, every token chosen."""
  b, g, t = completions.shape
  ones = jnp.ones((b, g))
  return Batch(
    prompts=prompts,
    prompt_length=jnp.full(b, prompts.shape[1]),
    completions=completions,
    length=jnp.full((b, g), t),
    mask=jnp.ones((b, g, t)),
    prompt_id=jnp.arange(b),
    valid=ones,
    truncated=0 * ones,
    temperature=ones,
  )


def spent(batch: Batch) -> dict:
  """What a batch took to draw."""
  return {'rollouts': 1.0 * batch.length.size, 'tokens': 1.0 * batch.length.sum()}


def fresh(net: Net, questions, score, prompts: int, group: int) -> Draw:
  """Of the policy: `questions(key, n) -> [n, P]` and `score(batch) -> [B, G]`."""

  def draw(state, key):
    asked, drawn = jax.random.split(key)
    batch = sample(net, state.params['policy'], drawn, questions(asked, prompts), group)
    return batch.replace(reward=score(batch)), spent(batch)

  return draw


# ---- Training ------------------------------------------------------------------------


def born(net: Net, seeds: int, roles=('policy',)) -> dict:
  """Parameters of each role, with a leading axis of seeds."""
  keys = jax.vmap(jax.random.key)(jnp.arange(seeds))

  def one(key):
    outputs = lambda role: net.vocab if role == 'policy' else 1
    return {
      role: init(net, jax.random.fold_in(key, i), outputs(role))
      for i, role in enumerate(roles)
    }

  return jax.vmap(one)(keys)


def run(
  net: Net | Callable,
  draw: Draw,
  method: Method,
  params: dict,
  *,
  frozen: dict[str, Any] | None = None,
  rate: float = 3e-3,
  steps: int = 200,
  every: int = 20,
  measure=lambda state, key: {},
  log: Callable[[Batch, dict], dict] | None = None,
  salt: int = 0,
  **plan,
) -> tuple[dict, list[list[dict]]]:
  """Trains all seeds at once: the parameters, and the records of each seed.

  Args:
    net: or a forward pass of another world (tables.py).
    draw: see Draw; its key is of the seed and the step, the same for every arm.
    measure: (state, key) -> numbers, before and after every so many steps.
    log: (batch, metrics) -> numbers of each step; a record has those since the last one
      as `log`, lists by name.
    salt: sets one stage's draws apart from another's.
    plan: of make_update_step.
  """
  seeds = len(jax.tree.leaves(params)[0])
  tx = optax.adam(rate)
  see = make_forward(net) if isinstance(net, Net) else net
  update = make_update_step(see, tx, method, **plan)
  extra = {k: jnp.asarray(x, jnp.float32) for k, x in method.extra.items()}

  def begin(seed, params, frozen):
    key = jax.random.fold_in(jax.random.key(seed), 1000 + salt)
    counts = dict.fromkeys(('step', 'applied', 'skipped'), jnp.int32(0))
    return State(
      params=params,
      opt_state=tx.init(params),
      frozen=frozen,
      extra=extra,
      key=key,
      **counts,
    )

  def one(state, _):
    batch, took = draw(state, jax.random.fold_in(state.key, state.step))
    state, metrics = update(state, batch)
    logged = log(batch, metrics) if log else {}
    return state, (took | {'skipped': metrics['skipped']}, logged)

  look = jax.jit(jax.vmap(lambda s: measure(s, jax.random.fold_in(s.key, 10**6))))
  go = jax.jit(jax.vmap(lambda s: jax.lax.scan(one, s, length=every)))
  states = jax.vmap(begin)(jnp.arange(seeds), params, frozen or {})
  total, curves = {'rollouts': 0.0, 'tokens': 0.0}, [[] for _ in range(seeds)]
  for step in range(0, steps + 1, every):
    logged = {}
    if step:
      states, (took, logged) = go(states)
      total = {k: x + np.asarray(took[k]).sum(-1) for k, x in total.items()}
      if np.asarray(took['skipped']).any():
        raise FloatingPointError('A gradient was not finite.')
    seen = jax.device_get(look(states))
    for i, records in enumerate(curves):
      each = {k: float(np.broadcast_to(x, seeds)[i]) for k, x in (total | seen).items()}
      records.append({'step': step} | each)
      if log:
        records[-1]['log'] = {k: np.asarray(x)[i].tolist() for k, x in logged.items()}
  return states.params, curves


def taught(net: Net, demonstrations, params: dict, *, steps: int, rate: float = 3e-3):
  """The policy after `demonstrations(key) -> (prompts, completions)`, supervised."""

  def draw(state, key):
    prompts, completions = demonstrations(key)
    return stored(prompts, completions[:, None]), {'rollouts': 0.0, 'tokens': 0.0}

  own = {'policy': params['policy']}
  found, _ = run(net, draw, sft(), own, steps=steps, every=steps, rate=rate, salt=1)
  return params | found


def sorting(count: int, size: int):
  """Sorting `count` digits below `size`: all questions [N, count], shuffled, and
  whether completions of a batch are right [B, G].
  """
  grid = np.stack(np.meshgrid(*[np.arange(size)] * count), -1).reshape(-1, count)
  everything = jnp.asarray(np.random.default_rng(0).permutation(grid))

  def right(batch: Batch) -> Array:
    due = jnp.sort(batch.prompts, -1)[:, None]
    return (batch.completions == due).all(-1).astype(jnp.float32)

  return everything, right


def chosen(questions: Array):
  """Draws from a table of questions: (key, n) -> [n, P]."""
  return lambda key, n: questions[jax.random.randint(key, (n,), 0, len(questions))]
