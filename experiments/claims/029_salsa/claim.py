"""PPO held to the average of two supervised models in the place of one of them."""

import functools

import jax
import jax.numpy as jnp
import small

from jaxrl_llm.methods.ppo import ppo
from jaxrl_llm.models import merging

METHODS = ('pipelines.py:salsa',)
METRICS = ('reward', 'kl_sft', 'kl_ref')
NET = small.Net(vocab=4, prompt=2, length=4, memory=3)
WORDS = jnp.array([-1.0, -0.3, 0.3, 1.0])  # What each token says, bad or good.
SEEDS, STEPS, ROWS, TEXTS = 6, 400, 128, 48
BETAS = (0.1, 0.3, 1.0)


def run():
  start = small.born(NET, SEEDS, ('policy', 'critic'))
  start = small.taught(NET, text, start, steps=150)
  first, second = (
    small.taught(NET, functools.partial(again, half=half), start, steps=300)
    for half in (0, 1)
  )
  soup = merging.average((first['policy'], second['policy']))
  refs = {'one model': first['policy'], 'soup': soup}
  ask = small.fresh(NET, prompts, score, ROWS // 4, 4)
  how = dict(steps=STEPS, every=40, measure=measure, rate=1e-3)
  return {
    f'{name}, beta {beta}': small.run(
      NET,
      ask,
      ppo(beta=beta, lam=1.0),
      first,
      frozen={'ref': ref, 'sft': first['policy']},
      **how,
    )[1]
    for beta in BETAS
    for name, ref in refs.items()
  }


def text(key, count=64):
  """Tokens that tend to go on as they are."""
  kind, drawn = jax.random.split(key)
  logits = jax.random.normal(kind, (count, 1, 1)) * WORDS
  found = jax.random.categorical(drawn, logits, shape=(count, 6))
  return found[:, :2], found[:, 2:]


def again(key, half):
  """A few texts, one half of the demonstrations, over and over."""
  del key
  return text(jax.random.key(900 + half), TEXTS)


def prompts(key, n):
  return jax.random.randint(key, (n, 2), 0, 4)


def score(batch):
  said = WORDS[batch.completions].sum(-1) + WORDS[batch.prompts].sum(-1)[:, None]
  return 4 * jax.nn.sigmoid(said)


def measure(state, key):
  """Of 512 fresh answers, the reward and how far they are from either model."""
  asked, drawn = jax.random.split(key)
  policy = state.params['policy']
  batch = small.sample(NET, policy, drawn, prompts(asked, 512), 1)
  see = small.make_forward(NET)
  logp = lambda tree: see({'policy': tree}, {}, batch, ('logp',)).logp.sum(-1)
  far = {k: (logp(policy) - logp(state.frozen[k])).mean() for k in ('sft', 'ref')}
  reward = score(batch).mean()
  return {'reward': reward, 'kl_sft': far['sft'], 'kl_ref': far['ref']}


def parts(told):
  gap = lambda metric, beta: (
    told.last[f'soup, beta {beta}'][metric]
    - told.last[f'one model, beta {beta}'][metric]
  )
  found = {f'reward: soup less one, beta {b}': gap('reward', b) for b in BETAS}
  found |= {f'KL to it: soup less one, beta {b}': gap('kl_sft', b) for b in BETAS}
  return found
