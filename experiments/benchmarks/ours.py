"""Times this library on a benchmark's work (versus.py): one JSON line per step."""

import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
from lines import say

from jaxrl_llm import (
  build,
  forward,
  initial,
  packing,
  sharding,
  sources,
  step,
  types,
)
from jaxrl_llm.models import pretrained
from jaxrl_llm.models.decoder import Decoder
from jaxrl_llm.rollout import draw, sampler

# A method's options, and how many completions of a prompt are one group.
WORK = {'grpo': ({'beta': 0.04}, 8), 'dpo': ({'beta': 0.1}, 2), 'sft': ({}, 1)}


def main(kind: str, folder: str, steps: int) -> None:
  work = np.load(Path(folder) / 'work.npz')
  model, mesh = pretrained.load(f'{folder}/model'), sharding.make_mesh()
  decoder = Decoder(model.config, spread=sharding.constrain(mesh))
  see = forward.make_forward({'policy': decoder, 'ref': decoder})
  given, group = WORK[kind]
  method = build.method(kind, **given)
  tx = optax.adamw(1e-6, weight_decay=0.0)
  roles = forward.roles(method.needs)
  state = initial.state(model, roles, tx, mesh, method, lora=None, seed=0)
  update_step = step.make_update_step(
    see, tx, method, constrain=sharding.constrain(mesh)
  )
  update = sharding.compile_step(update_step, state, mesh)
  draws = sampler.make_sampler(decoder, group=group, max_length=64)
  for i in range(steps):
    start = time.perf_counter()
    if kind == 'grpo':
      batch = on_policy(work, i, state, draws)
    else:
      batch = stored(work, i, group)
    drawn = time.perf_counter()
    state, metrics = update(state, sharding.put_batch(batch, mesh))
    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
    done = time.perf_counter()
    said = {'step': done - start, 'rollout': drawn - start, 'update': done - drawn}
    say(**said, loss=metrics['loss'], tokens=int(batch.length.sum()))


def on_policy(work, i: int, state, draws):
  """Four prompts of 8 completions; the reward counts digits."""
  rows = slice(4 * i, 4 * i + 4)
  prompts, length = work['prompts'][rows], work['length'][rows]
  how = draw.options(4, max_length=64, stop_ids=work['stop_ids'])
  ids = np.arange(4, dtype=np.int32)
  key = jax.random.fold_in(jax.random.key(0), i)
  rollout = draws(state.params['policy'], prompts, length, ids, how, key, i)
  reward = np.isin(rollout.tokens, work['digits']).sum(-1) / 10
  batch = sources.to_batch(prompts, length, rollout, reward, truncated=False)
  return laid(batch)


def laid(batch):
  """Without padding, and so in one pass (config.plan.padding_free)."""
  batch = sources.trimmed(batch)
  return batch.replace(room=packing.room(batch))


def stored(work, i: int, group: int):
  """Eight pairs, or their sixteen completions each alone."""
  rows = np.repeat(np.arange(8 * i, 8 * i + 8), 2 // group)
  said = work['pairs'][8 * i : 8 * i + 8].reshape(len(rows), group, 64)
  length = np.full(said.shape[:2], 64, np.int32)
  batch = types.make_batch(work['prompts'][rows], work['length'][rows], said, length)
  return laid(batch)


if __name__ == '__main__':
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
