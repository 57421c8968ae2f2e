r"""How near this device's limits decoding and training come, and how cost grows.

  python experiments/benchmarks/roofline.py [--layers=30 --width=576 --vocab=49152] \
    [--dtype=bfloat16] [--prompts=4 --group=8 --prompt=48 --length=64]

Random weights of the Llama family. Limits are measured first: the best of a large
matrix product and of a large copy. Decoding is compared with the time to read weights
and cache once per token, and to compute; training with its floating-point operations,
six per parameter and token and those of attention. Both also with the products of
their matrices alone, at their own sizes and one after the other: what XLA could reach
if all else were free. Slopes are log2 of the time at twice the size: 1 is linear.
"""

import argparse
import functools
import json
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import build, forward, log, step, types
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.models.decoder import Decoder
from jaxrl_llm.models.pretrained import random_params
from jaxrl_llm.models.products import product
from jaxrl_llm.rollout import draw, sampler

SIZES = dict(
  layers=30, width=576, vocab=49152, prompts=4, group=8, prompt=48, length=64
)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name, value in SIZES.items():
    parser.add_argument(f'--{name}', type=int, default=value)
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
  parser.add_argument('--slopes', action='store_true', help='also at twice each size')
  parser.add_argument('--out', type=Path, help='a JSON file of what was found')
  options = parser.parse_args()
  dtype = jnp.dtype(options.dtype)
  size = {name: vars(options)[name] for name in SIZES}
  limits = {'flops': peak(dtype), 'bytes': bandwidth()}
  found = measure(size, dtype, limits)
  found['device'] = jax.devices()[0].device_kind
  found['limits'] = {k: f'{v:.3g} a second' for k, v in limits.items()}
  print(json.dumps(found, indent=2))
  slopes = {}
  for name in SIZES if options.slopes else ():
    again = measure(size | {name: 2 * size[name]}, dtype, limits)
    slopes[name] = {k: math.log2(again[k] / found[k]) for k in ('decode_s', 'train_s')}
    print(f'{name} x 2:', *(f'{k} slope {v:.2f}' for k, v in slopes[name].items()))
  log.keep(options.out, {'size': size, **found, 'slopes': slopes})


def best(run, times: int = 3) -> float:
  """Seconds of the fastest call after a first one."""
  jax.block_until_ready(run())
  spent = []
  for _ in range(times):
    start = time.perf_counter()
    jax.block_until_ready(run())
    spent.append(time.perf_counter() - start)
  return min(spent)


def peak(dtype, n: int = 4096) -> float:
  """Floating-point operations a second of a product of two [n, n]."""
  x = jnp.ones((n, n), dtype)
  square = jax.jit(lambda x: product(x, x, dtype))
  return 2 * n**3 / best(lambda: square(x), 5)


def bandwidth(size: int = 1 << 27) -> float:
  """Bytes read and written a second."""
  x = jnp.ones(size, jnp.float32)
  more = jax.jit(lambda x: x + 1)
  return 8 * size / best(lambda: more(x), 5)


def shape(size) -> DecoderConfig:
  """Heads of 64, three to a key; the MLP 8/3 as wide, in steps of 64."""
  heads = size['width'] // 64
  return DecoderConfig(
    vocab=size['vocab'],
    width=size['width'],
    layers=size['layers'],
    heads=heads,
    kv_heads=heads // 3 if heads % 3 == 0 else heads,
    mlp_width=-(-size['width'] * 8 // 3 // 64) * 64,
    head_dim=64,
  )


def measure(size, dtype, limits) -> dict:
  config = shape(size)
  params = jax.tree.map(jnp.asarray, random_params(config))
  count = sum(x.size for x in jax.tree.leaves(params))
  decode, bytes_per_token = decoding(size, config, dtype, params, count)
  train, flops = training(size, config, dtype, params, count)
  rows = size['prompts'] * size['group']
  floor = (
    max(bytes_per_token / limits['bytes'], 2 * count * rows / limits['flops'])
    * size['length']
  )
  return {
    'parameters': count,
    'decode_s': decode,
    'decode_tokens_per_s': rows * size['length'] / decode,
    'decode_share_of_limit': floor / decode,
    'decode_products_s': size['length'] * products(config, dtype, rows, rows),
    'train_s': train,
    'train_flops_per_s': flops / train,
    'train_share_of_peak': flops / train / limits['flops'],
    'train_products_s': products(config, dtype, *tokens(size), learn=True),
  }


def tokens(size) -> tuple[int, int]:
  """Tokens that the layers see, prompts once, and those that the head sees."""
  told = size['prompts'] * size['group'] * size['length']
  return size['prompts'] * size['prompt'] + told, told


def products(c: DecoderConfig, dtype, count: int, told: int, *, learn=False):
  """Seconds of a decoder's matrix products and nothing else, forward, or with the
  gradients of inputs and matrices; `told` of the tokens go through the head.
  """
  inner, shared = c.heads * c.head_dim, c.kv_heads * c.head_dim
  shapes = {'q': (c.width, inner), 'k': (c.width, shared), 'v': (c.width, shared)}
  shapes |= {'o': (inner, c.width), 'gate': (c.width, c.mlp_width)}
  shapes |= {'up': (c.width, c.mlp_width), 'down': (c.mlp_width, c.width)}
  layer = lambda: {k: jnp.full(shape, 0.01, dtype) for k, shape in shapes.items()}
  layers, head = [layer() for _ in range(c.layers)], jnp.full((c.width, c.vocab), 0.01)
  head = head.astype(dtype)

  by = functools.partial(product, operands=dtype)

  def through(layers, x):
    for w in layers:
      shared = jnp.tile(by(x, w['k']) + by(x, w['v']), c.heads // c.kv_heads)
      x = by(by(x, w['q']) + shared, w['o'])
      x = by(by(x, w['gate']) + by(x, w['up']), w['down'])
    return size(x)

  # A square, so that no gradient is of one value and its product left out.
  size = lambda y: jnp.square(y).sum(dtype=jnp.float32)
  out = lambda head, x: size(by(x, head))
  chunk = min(told, 256)
  x, y = (jnp.full((n, c.width), 0.01, dtype) for n in (count, chunk))
  spent = []
  for f, args in ((through, (layers, x)), (out, (head, y))):
    run = jax.jit(jax.value_and_grad(f, (0, 1)) if learn else f)
    spent.append(best(lambda run=run, args=args: run(*args)))
  return spent[0] + spent[1] * told / chunk


def asked(size):
  rng = np.random.default_rng(0)
  b, p = size['prompts'], size['prompt']
  prompts = rng.integers(0, size['vocab'], (b, p)).astype(np.int32)
  return prompts, np.full(b, p, np.int32)


def decoding(size, config, dtype, params, count) -> tuple[float, float]:
  """Seconds to sample `length` tokens for every row, and bytes each token needs."""
  decoder = Decoder(config, dtype)
  draws = sampler.make_sampler(decoder, group=size['group'], max_length=size['length'])
  prompts, length = asked(size)
  how = draw.options(len(prompts), max_length=size['length'])
  ids, key = np.arange(len(prompts), dtype=np.int32), jax.random.key(0)
  run = lambda: draws(params, prompts, length, ids, how, key, 0).tokens
  slots = size['prompts'] * (size['prompt'] + size['group'] * size['length'] / 2)
  cache = 2 * config.layers * config.kv_heads * config.head_dim * slots
  return best(run), (count + cache) * dtype.itemsize


def training(size, config, dtype, params, count) -> tuple[float, float]:
  """Seconds of one AdamW step of `reinforce`, and the operations it needs."""
  see = forward.make_forward({'policy': Decoder(config, dtype)})
  tx = optax.adamw(1e-6)
  update = jax.jit(
    step.make_update_step(see, tx, build.method('reinforce')), donate_argnums=0
  )
  prompts, length = asked(size)
  b, g, t = (size[k] for k in ('prompts', 'group', 'length'))
  batch = types.make_batch(
    prompts, length, np.zeros((b, g, t), np.int32), np.full((b, g), t, np.int32)
  ).replace(reward=np.random.default_rng(0).normal(size=(b, g)).astype(np.float32))
  trained = {'policy': jax.tree.map(jnp.copy, params)}
  state = types.State(
    step=jnp.int32(0),
    applied=jnp.int32(0),
    skipped=jnp.int32(0),
    params=trained,
    opt_state=tx.init(trained),
    frozen={},
    extra={},
    key=jax.random.key(0),
  )
  held = [state]

  def run():
    held[0], metrics = update(held[0], batch)
    return metrics

  seen = b * (size['prompt'] ** 2 / 2 + g * t * (size['prompt'] + t / 2))
  attention = 12 * config.layers * config.heads * config.head_dim * seen
  whole, told = tokens(size)
  head = 6 * config.vocab * config.width * told
  inner = 6 * (count - config.vocab * config.width) * whole
  return best(run), inner + head + attention


if __name__ == '__main__':
  main()
