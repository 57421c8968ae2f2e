"""Reward and KL of DPO, PPO and best of n on SmolLM2, the reward being a lexicon's."""

import functools
import itertools

import jax
import numpy as np
import optax

from jaxrl_llm import build, forward, initial, sharding, sources, step, types
from jaxrl_llm.evaluate import best_of_n
from jaxrl_llm.models import pretrained
from jaxrl_llm.models.config import Lora
from jaxrl_llm.models.decoder import Decoder
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.rewards.sentiment import sentiment
from jaxrl_llm.rollout import draw, sampler
from jaxrl_llm.tasks.records import Record

METHODS = ('dpo',)
METRICS = ('missing', 'reward', 'kl')
WHAT = ('food', 'staff', 'price', 'noise', 'view', 'seat', 'wait', 'music')
WHERE = ('hotel', 'train', 'hospital', 'bar', 'zoo', 'school', 'farm', 'market', 'spa')
HELD_OUT = 24  # Prompts of the 72.
SCALE = 2.0  # Of a score in [-1, 1]: two completions differ by 4 at most.
SEEDS, STEPS, EVERY, BETA, RATE = 5, 40, 10, 0.3, 2e-4
PROMPTS, GROUP, LENGTH, FRESH, BEST = 8, 4, 24, 8, 64
ADAPTERS = Lora(16, 32.0, r'.*')


def run():
  world = World()
  best = world.best()
  found = {f'best of {n}': [] for n in (4, 16)} | {'DPO': [], 'PPO': []}
  for seed in range(SEEDS):
    pairs = world.labelled(seed)
    found['DPO'].append(world.trained('dpo', seed, pairs, best, beta=BETA))
    found['PPO'].append(world.trained('ppo', seed, None, best, beta=BETA, lam=1.0))
    for n in (4, 16):
      spent = {'step': 0, 'rollouts': float(n), 'tokens': float(n * LENGTH)}
      point = {'missing': 0.0, 'reward': best[n - 1], 'kl': best_of_n.kl(n)}
      found[f'best of {n}'].append([spent | point])
  return found


class World:
  """SmolLM2, its prompts, and what samples and trains it; compiled once."""

  def __init__(self):
    self.model, self.mesh = pretrained.load('smollm2'), sharding.make_mesh()
    adapted = functools.partial(Decoder, self.model.config, lora=ADAPTERS)
    policy = adapted()
    decoders = {'policy': policy, 'critic': adapted(scores=1)}
    self.see = forward.make_forward(decoders | {'ref': Decoder(self.model.config)})
    self.read = jax.jit(lambda s, b: self.see(s.params, s.frozen, b, ['ref_logp']))
    self.samplers = {
      g: sampler.make_sampler(policy, group=g, max_length=LENGTH, slots=PROMPTS)
      for g in (GROUP, FRESH)
    }
    ask = 'In one sentence, how was the {} at the {}?'
    texts = [ask.format(*both) for both in itertools.product(WHAT, WHERE)]
    chat = lambda text: [{'role': 'user', 'content': text}]
    ids = [pretrained.encode_chat(self.model.tokenizer, chat(t)) for t in texts]
    self.prompts, self.length = sources.pad(ids, max(map(len, ids)))
    order = np.random.default_rng(0).permutation(len(ids))
    self.test, self.train = order[:HELD_OUT], order[HELD_OUT:]
    self.positive = sentiment()

  def born(self, method, seed):
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE))
    roles = forward.networks(method)
    state = initial.state(
      self.model, roles, tx, self.mesh, method, lora=ADAPTERS, seed=seed
    )
    return state, tx

  def sample(self, state, rows, group, key):
    """Scored completions of these prompts, as a batch."""
    stops = pretrained.stop_ids(self.model.tokenizer)
    how = draw.options(len(rows), max_length=LENGTH, stop_ids=stops)
    asked = self.prompts[rows], self.length[rows]
    ids, params = np.arange(len(rows), dtype=np.int32), forward.policy(state)
    rollout = self.samplers[group](params, *asked, ids, how, key, 0)
    rollout = jax.device_get(rollout)
    reward = np.zeros(rollout.length.shape)
    for at in np.ndindex(*reward.shape):
      reward[at] = self.score(rollout.tokens[at][: rollout.length[at]])
    return sources.to_batch(*asked, rollout, reward, truncated=False)

  def score(self, tokens):
    text = self.model.tokenizer.decode(tokens, skip_special_tokens=True)
    record = Record(0, [], '', {})
    return SCALE * self.positive(Sample('', text, len(tokens), False, record))

  def labelled(self, seed):
    """All pairs of four answers of the reference each, by Bradley and Terry."""
    state, _ = self.born(build.method('dpo'), seed)
    rng, found = np.random.default_rng(seed), []
    for turn in range(4):
      key = jax.random.fold_in(jax.random.key(100 + seed), turn)
      batch = self.sample(state, self.train, GROUP, key)
      for i, (a, b) in itertools.product(
        range(len(self.train)), itertools.combinations(range(GROUP), 2)
      ):
        odds = batch.reward[i, a] - batch.reward[i, b]
        first = rng.random() < 1 / (1 + np.exp(-odds))
        order = [a, b] if first else [b, a]
        found.append(
          (self.train[i], batch.completions[i, order], batch.length[i, order])
        )
    return [found[i] for i in rng.permutation(len(found))]

  def trained(self, name, seed, pairs, best, **options):
    """The records of one run."""
    method = build.method(name, **options)
    state, tx = self.born(method, seed)
    spread = sharding.constrain(self.mesh)
    update = step.make_update_step(self.see, tx, method, constrain=spread)
    update = sharding.compile_step(update, state, self.mesh)
    rng, count = np.random.default_rng(seed), PROMPTS * GROUP // 2
    records, spent = [], {'rollouts': 0.0, 'tokens': 0.0}
    for i in range(STEPS + 1):
      if i % EVERY == 0:
        records.append({'step': i} | spent | self.measured(state, best))
        print(name, seed, records[-1], flush=True)
      if i == STEPS:
        return records
      if pairs:
        batch = stored(self, pairs[i * count : (i + 1) * count])
      else:
        rows = rng.choice(self.train, PROMPTS, replace=False)
        key = jax.random.fold_in(jax.random.key(seed), i)
        batch = self.sample(state, rows, GROUP, key)
        spent['rollouts'] += batch.length.size
        spent['tokens'] += float(batch.length.sum())
      state, _ = update(state, sharding.put_batch(batch, self.mesh))

  def measured(self, state, best):
    """Reward and KL of fresh answers to held-out prompts."""
    batch = self.sample(state, self.test, FRESH, jax.random.key(7))
    ref = np.asarray(self.read(state, sharding.put_batch(batch, self.mesh)).ref_logp)
    apart = np.where(batch.mask > 0, batch.behavior_logp - ref, 0.0).sum(-1).mean()
    reward = float(batch.reward.mean())
    ladder = [best_of_n.kl(n) for n in range(1, BEST + 1)]
    due = np.interp(apart, ladder, best)
    missing = (due - reward) / (due - best[0]) if apart > 0.1 else 0.0
    return {'missing': float(missing), 'reward': reward, 'kl': float(apart)}

  def best(self):
    """The expected reward of the best of 1, 2, ... of the reference's answers."""
    state, _ = self.born(build.method('dpo'), 0)
    drawn = [
      self.sample(state, self.test, FRESH, jax.random.key(900 + i)).reward
      for i in range(BEST // FRESH)
    ]
    found = np.concatenate(drawn, -1)
    of = lambda n: np.mean([best_of_n.expected(r, r, n) for r in found])
    return [float(of(n)) for n in range(1, BEST + 1)]


def stored(world, rows):
  at, said, length = (np.stack(x) for x in zip(*rows))
  return types.make_batch(world.prompts[at], world.length[at], said, length)


def parts(told):
  first, last = told.first, told.last
  gain = lambda arm: last[arm]['reward'] - first[arm]['reward']
  return {
    'missing: PPO less DPO': last['PPO']['missing'] - last['DPO']['missing'],
    'gain of DPO': gain('DPO'),
    'gain of PPO': gain('PPO'),
  }
