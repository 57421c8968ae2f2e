"""Groups of two whose second completion is an opponent's: nash_md's mixture.

A token of it is drawn from logits that are (1 - share) the policy's and `share` the
reference's. Without a cache of keys and values: a completion's every token costs a pass
over all of its places, which is for completions of a few hundred tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.models.decoder import Decoder, extend, head_kernel, prefill
from jaxrl_llm.ops import logprobs
from jaxrl_llm.rollout import draw
from jaxrl_llm.rollout.sampler import Sample, row_keys, uniform
from jaxrl_llm.types import Rollout


def opposed(sample: Sample, opponent) -> Sample:
  """`sample` of groups of two, the second completion by `opponent`.

  The parameters it takes are a pair, the policy's and the reference's.
  """

  def both(trees, prompts, length, ids, how, key, version) -> Rollout:
    found = sample(trees[0], prompts, length, ids, how, key, version)
    other = jax.device_get(opponent(*trees, prompts, length, ids, how, key))
    first = {k: vars(found)[k] for k in other}
    second = lambda k, x: np.concatenate([x[:, :1], other[k].astype(x.dtype)], 1)
    both = {k: second(k, x) for k, x in first.items()}
    return found.replace(**both, keep_within=None)  # An opponent's words are not ours.

  return both


def make_opponent(decoder: Decoder, *, share: float, max_length: int):
  """Returns `opponent(params, ref, prompts, length, ids, how, key)`: Rollout's fields.

  Its random numbers are those of a group's second completion: with a share of 0 it is
  the completion that the sampler would have drawn.
  """

  @jax.jit
  def opponent(params, ref, prompts, length, ids, how, key):
    keys = jax.random.key_data(row_keys(key, ids, 2))[:, 1:]
    sides = [(tree, *prefill(decoder, tree, prompts, length)) for tree in (params, ref)]

    def logits(side, tokens, t):
      tree, last, prefix = side
      at = extend(decoder, tree, length, tokens, prefix)
      before = jnp.concatenate([last, at[:, :, :-1]], 2)[:, 0, t]
      return logprobs.logits(before, head_kernel(tree), decoder.config.logit_cap)

    def step(t, rows):
      mine, other = (logits(side, rows['tokens'], t) for side in sides)
      mixed = (1 - share) * mine + share * other
      age = jnp.full(len(prompts), t)
      said = draw.draw(mixed, how, uniform(keys, age))
      alive = (rows['stop_reason'] == 0) & (t < how.max_length)[:, None]
      put = lambda k, x: (
        rows[k].at[:, :, t].set(jnp.where(alive, x[:, None], rows[k][:, :, t]))
      )
      stops = (said[0][:, None] == how.stop_ids).any(1, keepdims=True)
      return {
        **{
          k: put(k, x) for k, x in zip(('tokens', 'behavior_logp', 'kept_mass'), said)
        },
        'length': rows['length'] + alive,
        'stop_reason': jnp.where(alive & stops, 1, rows['stop_reason']),
      }

    zero = jnp.zeros((len(prompts), 1, max_length))
    none = jnp.zeros((len(prompts), 1), jnp.int32)
    rows = {
      'tokens': zero.astype(jnp.int32),
      'behavior_logp': zero,
      'kept_mass': zero + 1,
    }
    rows |= {'length': none, 'stop_reason': none}
    return jax.lax.fori_loop(0, max_length, step, rows)

  return opponent
