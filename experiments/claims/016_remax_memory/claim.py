"""What the update of ReMax and of PPO takes of memory, as the compiler counts it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import forward, types
from jaxrl_llm.methods.ppo import ppo
from jaxrl_llm.methods.remax import remax
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.models.decoder import Decoder, causal
from jaxrl_llm.step import make_update_step
from jaxrl_llm.types import State

METHODS = ('remax',)
METRICS = ('total', 'state', 'working')
PROMPT = 32
# Width, layers, completions, tokens of a completion: in the place of seeds.
SHAPES = (
  (128, 4, 8, 64),
  (256, 4, 8, 64),
  (256, 8, 8, 128),
  (256, 4, 32, 128),
  (512, 8, 8, 128),
)
ROLES = {'PPO': ('policy', 'critic'), 'ReMax': ('policy',)}
NEW = {'PPO': ppo, 'ReMax': remax}


def run():
  return {arm: [[taken(arm, *shape)] for shape in SHAPES] for arm in ROLES}


def taken(arm, width, layers, rows, tokens):
  """MiB of the state, of what the update needs beside it, and of both."""
  config = DecoderConfig(
    vocab=8 * width,
    width=width,
    layers=layers,
    heads=width // 64,
    kv_heads=width // 64,
    mlp_width=3 * width,
    head_dim=64,
  )
  decoders = {
    'policy': Decoder(config),
    'ref': Decoder(config),
    'critic': Decoder(config, scores=1),
  }
  tx = optax.adam(1e-6)
  update = make_update_step(forward.make_forward(decoders), tx, NEW[arm]())
  state = jax.eval_shape(lambda: begun(decoders, tx, ROLES[arm]))
  program = (
    jax.jit(update, donate_argnums=0).lower(state, asked(rows, tokens)).compile()
  )
  used = program.memory_analysis()
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(trees(state)))
  total = used.argument_size_in_bytes + used.temp_size_in_bytes
  total += used.output_size_in_bytes - used.alias_size_in_bytes
  drawn = rows * (2 if arm == 'ReMax' else 1)
  spent = {'step': 0, 'rollouts': drawn, 'tokens': drawn * tokens}
  found = {'total': total, 'state': size, 'working': total - size}
  return {k: float(x) for k, x in spent.items()} | {
    k: x / 2**20 for k, x in found.items()
  }


def trees(state):
  """What a state holds but for its key, whose size is none."""
  return state.params, state.opt_state, state.frozen


def begun(decoders, tx, roles):
  zero = jnp.zeros((1, 1, 1), jnp.int32)
  new = lambda role: decoders[role].init(jax.random.key(0), zero, zero, causal(1))
  params = {role: new(role)['params'] for role in roles}
  counts = dict.fromkeys(('step', 'applied', 'skipped'), jnp.int32(0))
  return State(
    params=params,
    opt_state=tx.init(params),
    frozen={'ref': new('ref')['params']},
    extra={},
    key=jax.random.key(0),
    **counts,
  )


def asked(rows, tokens):
  """A completion of each prompt, and for ReMax what a greedy one got."""
  whole = lambda *shape: np.ones(shape, np.int32)
  batch = types.make_batch(
    whole(rows, PROMPT),
    np.full(rows, PROMPT),
    whole(rows, 1, tokens),
    np.full((rows, 1), tokens),
  )
  told = {'greedy_reward': np.ones(rows, np.float32)}
  return batch.replace(reward=np.ones((rows, 1), np.float32), extra=told)


def parts(told):
  total = {arm: x['total'] for arm, x in told.last.items()}
  saved = 1 - total['ReMax'] / total['PPO']
  return {
    "share of PPO's memory that ReMax saves, less 0.4": saved - 0.4,
    '0.6 less that share': 0.6 - saved,
  }
