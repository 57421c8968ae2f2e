r"""The memory of one GRPO update as XLA lays it out, beside what it should take.

  python experiments/benchmarks/memory.py [--layers=30 --width=576 --vocab=49152] \
    [--prompts=4 --group=8 --prompt=45 --length=64]

Compiles the step of SmolLM2-135M's shape (or another) with AdamW and a frozen
reference, in float32, and runs nothing. `on_paper` says which terms are counted.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from roofline import SIZES, shape

from jaxrl_llm import build, forward, step, types
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.models.decoder import Decoder, causal
from jaxrl_llm.ops import blocks, logprobs

WORK = SIZES | dict(prompt=45)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name, value in WORK.items():
    parser.add_argument(f'--{name}', type=int, default=value)
  size = vars(parser.parse_args())
  for remat in ('none', 'full'):
    terms, found = on_paper(size, remat), measured(size, remat)
    total = sum(terms.values())
    print(
      json.dumps({'remat': remat} | {k: round(x / 2**20) for k, x in terms.items()})
    )
    print(
      f'on paper {total / 2**20:.0f} MiB, compiled {found / 2**20:.0f} MiB, '
      f'ratio {found / total:.2f}'
    )


def on_paper(size: dict, remat: str) -> dict[str, int]:
  """Bytes of each term of a step in float32.

  Activations without recomputation are what gradients need of a layer, each once: the
  inputs of norms and those normalised, the inputs of the matrices, queries, keys,
  values, the weights of attention, gate and up. With it, a layer's input, and all of
  one layer. Logits and their gradient are of one chunk.
  """
  c, params = shape(size), weights(size)
  count = 4 * sum(x.size for x in jax.tree.leaves(params))
  rows = size['prompts'] * size['group'] * size['length']
  parts = ((size['prompts'] * size['prompt'], size['prompt']),)
  parts += ((rows, size['prompt'] + size['length']),)
  layer = 4 * sum(n * per_token(c, seen) for n, seen in parts)
  inputs = 4 * sum(n * c.width for n, _ in parts)
  kept = {
    'none': c.layers * layer,
    'full': c.layers * inputs + layer,
  }
  words = -(-c.vocab // blocks.number(c.vocab, blocks.BLOCK))
  return {
    'parameters': count,
    'reference': count,
    'Adam moments': 2 * count,
    'gradients': count,
    'activations': kept[remat],
    'logits': 2 * 4 * min(logprobs.CHUNK, rows) * words,
  }


def per_token(c: DecoderConfig, seen: int) -> int:
  """Numbers that a layer keeps of a token that sees so many slots."""
  norms = 2 * (2 * c.width) + 2 * c.width  # Two, and what the matrices after them read.
  heads = 2 * c.heads * c.head_dim + 2 * c.kv_heads * c.head_dim  # q, out; k, v.
  return norms + heads + c.heads * seen + 3 * c.mlp_width


def weights(size: dict):
  """Shapes of the parameters."""
  one = jnp.zeros((1, 1, 1), jnp.int32)
  make = lambda key: Decoder(shape(size)).init(key, one, one, causal(1))['params']
  return jax.eval_shape(make, jax.random.key(0))


def measured(size: dict, remat: str) -> int:
  """Bytes of the compiled step: arguments, results that are not those, temporaries."""
  decoder = Decoder(shape(size), remat=remat)
  see = forward.make_forward({'policy': decoder, 'ref': decoder})
  tx, tree, zero = optax.adamw(1e-6), weights(size), jnp.int32(0)
  update = step.make_update_step(see, tx, build.method('grpo', beta=0.04))
  params, key = {'policy': tree}, jax.random.key(0)
  moments = jax.eval_shape(tx.init, params)
  state = types.State(zero, zero, zero, params, moments, {'ref': tree}, {}, key)
  lowered = jax.jit(update, donate_argnums=0).lower(state, example(size))
  found = lowered.compile().memory_analysis()
  made = found.output_size_in_bytes - found.alias_size_in_bytes
  return found.argument_size_in_bytes + found.temp_size_in_bytes + made


def example(size: dict) -> types.Batch:
  """A batch without padding."""
  b, g, p, t = (size[k] for k in ('prompts', 'group', 'prompt', 'length'))
  ids = lambda *of: np.zeros(of, np.int32)
  batch = types.make_batch(
    ids(b, p), np.full(b, p, np.int32), ids(b, g, t), np.full((b, g), t, np.int32)
  )
  return batch.replace(reward=np.zeros((b, g), np.float32))


if __name__ == '__main__':
  main()
