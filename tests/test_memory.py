"""What a compiled step takes: no logits of all tokens and words, in any layout.

Programs are compiled and not run, so sizes cost nothing.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs

from jaxrl_llm import build, forward, packing, types
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.models.decoder import Decoder, causal
from jaxrl_llm.ops import logprobs
from jaxrl_llm.step import make_update_step

B, G, P, T, V = 8, 8, 4, 64, 50_000
ALL = 4 * B * G * T * V  # Bytes of every token's logits.
CONFIG = DecoderConfig(
  vocab=V, width=8, layers=1, heads=2, kv_heads=1, mlp_width=8, head_dim=4
)
LAYOUTS = {
  'padded': lambda batch: batch,
  'packed': lambda batch: packing.pack(batch, P + G * T, rows=B),
  'padding_free': lambda batch: batch.replace(room=packing.room(batch)),
}


def temporaries(layout):
  """Bytes of a step's temporaries."""
  decoder, one = Decoder(CONFIG), jnp.zeros((1, 1, 1), jnp.int32)
  init = lambda key: decoder.init(key, one, one, causal(1))['params']
  params = {'policy': jax.eval_shape(init, jax.random.key(0))}
  tx, zero = optax.sgd(1.0), jnp.int32(0)
  moments = jax.eval_shape(tx.init, params)
  state = types.State(zero, zero, zero, params, moments, {}, {}, jax.random.key(0))
  see = forward.make_forward({'policy': decoder})
  step = make_update_step(see, tx, build.method('reinforce'))
  full = functools.partial(np.full, dtype=np.int32)
  batch = types.make_batch(
    full((B, P), 1), full(B, P), full((B, G, T), 1), full((B, G), T)
  )
  batch = LAYOUTS[layout](batch.replace(reward=np.ones((B, G), np.float32)))
  compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize('layout', LAYOUTS)
def test_no_array_of_all_logits(layout):
  assert temporaries(layout) < ALL / 20


@pytest.mark.parametrize('whole', [('chunk',), ('block',), ('chunk', 'block')])
def test_which_would_show(whole, monkeypatch):
  """Without chunks of tokens, blocks of words, or both."""
  for name in whole:
    monkeypatch.setitem(logprobs.token_stats.__kwdefaults__, name, 1 << 30)
  assert temporaries('padded') > (ALL if len(whole) == 2 else ALL / 20)


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'full'])
def test_a_step_of_grpo_takes_what_it_should(remat, monkeypatch):
  """SmolLM2-135M's shape, 4 prompts of 45 tokens and 8 completions of 64."""
  monkeypatch.syspath_prepend(runs.ROOT / 'experiments/benchmarks')
  memory = importlib.import_module('memory')
  found = memory.measured(memory.WORK, remat)
  assert found < 1.3 * sum(memory.on_paper(memory.WORK, remat).values())
