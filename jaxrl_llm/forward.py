"""From what a method needs to what the networks say: the sensors, and the layout.

A need names a sensor; a sensor is a tree of the state, a role in it and what to read
there. The layout (a group's prompt once, completions after it) is this file's own
affair: everything it returns is [B, G, T] or [B, G].
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import flax
import jax.numpy as jnp

from jaxrl_llm.models.decoder import Decoder, extend, head_kernel, prefill
from jaxrl_llm.ops import logprobs
from jaxrl_llm.types import Batch, InputError, Outputs, Params

Forward = Callable[[Params, Params, Batch, Iterable[str]], Outputs]


class Sensor(NamedTuple):
  """Where a number comes from: `tree` is 'params' (trained) or 'frozen'."""

  tree: str
  role: str
  read: str


SENSORS = {
  'logp': Sensor('params', 'policy', 'logp'),
  'entropy': Sensor('params', 'policy', 'entropy'),
  'value': Sensor('params', 'critic', 'value'),
  'score': Sensor('params', 'reward', 'score'),
  'token_score': Sensor('params', 'reward', 'token_score'),
  'attributes': Sensor('params', 'reward', 'attributes'),
  'ref_logp': Sensor('frozen', 'ref', 'logp'),
}

# Fields of Batch read once per batch, without gradient, and the sensor that fills each.
OBSERVED = {'old_logp': 'logp', 'old_value': 'value', 'ref_logp': 'ref_logp'}


def make_forward(decoders: dict[str, Decoder]) -> Forward:
  """Returns `forward(params, frozen, batch, needs) -> Outputs`.

  Args:
    decoders: one per role; a role's decoder reads the role's tree of parameters, laid
      over `frozen['base']` where there is one (LoRA).
  """

  def forward(params: Params, frozen: Params, batch: Batch, needs) -> Outputs:
    trees = {'params': params, 'frozen': frozen}
    found: dict[str, object] = {}
    own = {n: sensor(n) for n in needs if not n.startswith('aux/')}
    for source in {(s.tree, s.role) for s in own.values()}:
      tree, role = source
      read = {n: s.read for n, s in own.items() if (s.tree, s.role) == source}
      own_params = lay(trees[tree].get(role, {}), frozen.get('base', {}))
      found |= read_role(decoders[role], own_params, batch, read)
    if aux := tuple(n.removeprefix('aux/') for n in needs if n.startswith('aux/')):
      found['aux'] = forward(params, frozen, batch.aux, aux)
    return Outputs(**found)

  return forward


def lay(own: Params, base: Params) -> Params:
  """One tree over another: where both have a leaf, `own` counts."""
  flat = flax.traverse_util.flatten_dict
  return flax.traverse_util.unflatten_dict(flat(base) | flat(own))


def policy(state) -> Params:
  """The whole tree of a state's policy, to sample from."""
  return lay(state.params['policy'], state.frozen.get('base', {}))


def sensor(need: str) -> Sensor:
  """The sensor behind a need; an unknown one is an InputError."""
  if need not in SENSORS:
    raise InputError(f'Unknown need {need!r}; there are {sorted(SENSORS)}.')
  return SENSORS[need]


def roles(needs: Iterable[str]) -> dict[str, set[str]]:
  """The roles a method's needs touch: {'params': {...}, 'frozen': {...}}."""
  found: dict[str, set[str]] = {'params': set(), 'frozen': set()}
  for need in needs:
    name = need.removeprefix('aux/')
    tree, role, _ = sensor(OBSERVED.get(name, name))
    found[tree].add(role)
  return found


def read_role(decoder: Decoder, params, batch: Batch, names: dict[str, str]) -> dict:
  """Runs one network over a batch. `names` maps field to 'logp', 'value', ..."""
  before, at = states(decoder, params, batch)
  reads = set(names.values())
  out = {}
  if reads & {'logp', 'entropy'}:
    kernel = head_kernel(params)
    out['logp'], out['entropy'] = logprobs.token_stats(
      before,
      kernel,
      batch.completions,
      batch.temperature,
      cap=decoder.config.logit_cap,
    )
  if 'scores' in params:
    out |= read_scores(params['scores'], before, at, batch.length)
  return {field: out[name] for field, name in names.items()}


def read_scores(kernel, before, at, length) -> dict:
  """What a head [D, A] says: of the state before a token, at it, and at the last."""
  read = lambda x: jnp.einsum(
    'bgtd,da->bgta', x.astype(jnp.float32), kernel.astype(jnp.float32)
  )
  value, score = read(before), read(at)
  last = jnp.maximum(length - 1, 0)[..., None, None]
  attributes = jnp.take_along_axis(score, last, 2)[:, :, 0]
  return {
    'value': value[..., 0],
    'token_score': score[..., 0],
    'attributes': attributes,
    'score': attributes[..., 0],
  }


def states(decoder: Decoder, params, batch: Batch):
  """Hidden states before and at each completion token, both [B, G, T, D]."""
  b, g, t = batch.completions.shape
  prompts, length, completions = batch.prompts, batch.prompt_length, batch.completions
  if batch.row_prompt is not None:  # Every row is a group of its own.
    prompts = batch.row_prompt.reshape(b * g, -1)
    length = batch.row_prompt_length.reshape(-1)
    completions = completions.reshape(b * g, 1, t)
  last, prefix = prefill(decoder, params, prompts, length)
  at = extend(decoder, params, length, completions, prefix)
  last = jnp.broadcast_to(last, (*at.shape[:2], 1, at.shape[-1]))
  before = jnp.concatenate([last, at[:, :, :-1]], 2)
  shaped = lambda x: x.reshape(b, g, t, -1)
  return shaped(before), shaped(at)
