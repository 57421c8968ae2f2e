"""A reward model that likes flourishes, raw and in the shape that PAR gives it."""

import jax
import jax.numpy as jnp
import numpy as np
import small
import vectors

from jaxrl_llm.methods.bradley_terry import bradley_terry
from jaxrl_llm.methods.ppo import ppo
from jaxrl_llm.rewards import shaping
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.tasks.records import Record

METHODS = ('reward shape=par',)
METRICS = ('gold', 'best', 'proxy', 'kl', 'flourishes')
NET = small.Net(vocab=6, prompt=1, length=12, width=32)
FLOURISH = 5  # The token; all others are right in some places.
TARGET = jnp.asarray(np.random.default_rng(0).integers(0, 5, (6, NET.length)))
SEEDS, STEPS, PAIRS = 6, 240, 64


def run():
  start = small.born(NET, SEEDS, ('policy', 'critic'))
  ref = {'ref': start['policy']}
  first = dict(frozen=ref, rate=0.01, steps=400, every=400)
  model = {'reward': vectors.born(SEEDS, 2, 1)}
  model, _ = small.run(vectors.forward, pairs, bradley_terry(), model, **first)
  frozen = ref | {'proxy': model['reward']}
  how = dict(frozen=frozen, rate=2e-3, minibatches=4, steps=STEPS, every=STEPS // 12)
  how |= dict(measure=measure, salt=1)
  arm = lambda shape: best(
    small.run(NET, shaped(shape), ppo(beta=0.005), start, **how)[1]
  )
  return {
    'raw': arm(lambda score, known: score),
    'PAR, 10 references': arm(par),
    'PAR, 1 reference': arm(lambda score, known: par(score, known[:, :1])),
    'raw / 4': arm(lambda score, known: score / 4),
  }


def features(batch):
  """How many tokens are right, and how many are flourishes: [B, G, 2]."""
  due = TARGET[batch.prompts[:, 0]][:, None]
  right = (batch.completions == due).sum(-1)
  return jnp.stack([right, (batch.completions == FLOURISH).sum(-1)], -1) * 1.0


def gold(batch):
  """Some flourishes are good, three the best, and more are worse and worse."""
  right, flourishes = jnp.moveaxis(features(batch), -1, 0)
  return 3 * (right / 4 + flourishes - flourishes**2 / 6)


def proxy(frozen, batch):
  return vectors.say(frozen['proxy'], features(batch))[..., 0]


def questions(key, n):
  return jax.random.randint(key, (n, 1), 0, NET.vocab)


def pairs(state, key):
  """The reference's completions, labelled by Bradley and Terry on gold."""
  keys = jax.random.split(key, 3)
  batch = small.sample(NET, state.frozen['ref'], keys[0], questions(keys[1], PAIRS), 2)
  found = vectors.judged(keys[2], features(batch), gold(batch))
  return vectors.compared(found), small.spent(batch)


def shaped(shape):
  """Of fresh completions, the proxy as `shape(score, that of references)` bends it."""

  def draw(state, key):
    batch, took = small.fresh(NET, questions, gold, 16, 4)(state, key)
    other = small.sample(
      NET, state.frozen['ref'], jax.random.fold_in(key, 1), batch.prompts, 10
    )
    known = proxy(state.frozen, other)
    return batch.replace(reward=shape(proxy(state.frozen, batch), known)), took

  return draw


def par(score, known):
  """shaping.par, which is the host's; a text here is the number it is scored with."""

  def bend(score, known):
    texts = [[repr(float(x)) for x in row] for row in known]
    records = [Record(0, [], '', {'references': row}) for row in texts]
    rows = [Sample('', '', 0, False, r) for r in records for _ in range(score.shape[1])]
    ask = lambda samples: np.array([float(s.completion) for s in samples])
    return shaping.par(score.ravel(), rows, ask).reshape(score.shape).astype('f')

  like = jax.ShapeDtypeStruct(score.shape, jnp.float32)
  return jax.pure_callback(bend, like, score, known, vmap_method='sequential')


def measure(state, key):
  now, ref = state.params['policy'], state.frozen['ref']
  batch = small.sample(NET, now, key, questions(key, 64), 8)
  logp = lambda tree: (
    small.make_forward(NET)({'policy': tree}, {}, batch, ['logp']).logp
  )
  return {
    'gold': gold(batch).mean(),
    'proxy': proxy(state.frozen, batch).mean(),
    'kl': (logp(now) - logp(ref)).sum(-1).mean(),
    'flourishes': features(batch)[..., 1].mean(),
  }


def best(curves):
  """Records with the best gold so far."""
  for records in curves:
    top = -np.inf
    for record in records:
      top = record['best'] = max(top, record['gold'])
  return curves


def parts(told):
  last = told.last
  lost = lambda arm: last[arm]['best'] - last[arm]['gold']
  shaped, raw = 'PAR, 10 references', 'raw'
  return {
    'gold at the end: PAR less raw': last[shaped]['gold'] - last[raw]['gold'],
    'gold lost since its best: raw less PAR': lost(raw) - lost(shaped),
    "gold at the end: PAR less raw's best": last[shaped]['gold'] - last[raw]['best'],
  }
