"""How far from the best reward at its KL a policy ends, where all answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import small

from jaxrl_llm.methods.dpo import dpo
from jaxrl_llm.methods.ppo import ppo

METHODS = ('dpo',)
METRICS = ('distance', 'reward', 'kl')
NET = small.Net(vocab=4, prompt=2, length=4, memory=3)
grid = lambda n: jnp.stack(jnp.meshgrid(*[jnp.arange(4)] * n, indexing='ij'), -1)
PROMPTS, ANSWERS = grid(2).reshape(-1, 2), grid(4).reshape(-1, 4)
WORDS = jnp.array([-1.0, -0.3, 0.3, 1.0])  # What each token says, bad or good.
SEEDS, STEPS, PAIRS, ROWS = 6, 600, 8192, 128
BETAS = (0.3, 1.0)
PRICES = jnp.exp(jnp.linspace(-3, 4, 400))  # beta along the frontier.
SAID = WORDS[PROMPTS].sum(-1)[:, None] + WORDS[ANSWERS].sum(-1)[None]
REWARD = 4 * jax.nn.sigmoid(SAID)  # Of each prompt and answer.


def run():
  start = small.taught(
    NET, mixed, small.born(NET, SEEDS, ('policy', 'critic')), steps=300
  )
  frozen = {'ref': start['policy']}
  data = jax.vmap(labelled)(jnp.arange(SEEDS), start['policy'])
  found = {}
  for beta in BETAS:
    ask = small.fresh(NET, small.chosen(PROMPTS), score, ROWS // 4, 4)
    go = lambda method, draw, params, more: small.run(
      NET,
      draw,
      method,
      params,
      frozen=frozen | more,
      steps=STEPS,
      every=30,
      measure=measure,
      rate=1e-3,
    )[1]
    found[f'DPO, beta {beta}'] = go(
      dpo(beta=beta), pairs, {'policy': start['policy']}, {'data': data}
    )
    found[f'PPO, beta {beta}'] = go(ppo(beta=beta, lam=1.0), ask, start, {})
  for n in (4, 16):
    found[f'best of {n}'] = best_of(n, start['policy'])
  return found


def mixed(key):
  """Text of all kinds: tokens that tend to go on as they are."""
  keys = jax.random.split(key, 3)
  kind = jax.random.normal(keys[0], (64, 1))
  logits = kind[..., None] * WORDS
  text = jax.random.categorical(keys[1], logits, shape=(64, 6))
  return text[:, :2], text[:, 2:]


def everything(policy):
  """Log-probs of all answers to all prompts, [X, Y]."""
  said = jnp.broadcast_to(ANSWERS, (len(PROMPTS), *ANSWERS.shape))
  batch = small.stored(PROMPTS, said)
  return small.make_forward(NET)({'policy': policy}, {}, batch, ('logp',)).logp.sum(-1)


def score(batch):
  said = WORDS[batch.completions].sum(-1) + WORDS[batch.prompts].sum(-1)[:, None]
  return 4 * jax.nn.sigmoid(said)


def labelled(seed, policy):
  """Pairs of the reference's answers, labelled by Bradley and Terry."""
  asked, drawn, judged = jax.random.split(jax.random.key(seed + 500), 3)
  batch = small.sample(NET, policy, drawn, small.chosen(PROMPTS)(asked, PAIRS), 2)
  noise = jax.random.gumbel(judged, batch.length.shape)
  order = jnp.argsort(-(score(batch) + noise), -1)[..., None]
  y = jnp.take_along_axis(batch.completions, order, 1)
  return {'x': batch.prompts, 'y': y}


def pairs(state, key):
  data = state.frozen['data']
  at = jax.random.randint(key, (ROWS,), 0, PAIRS)
  return small.stored(data['x'][at], data['y'][at]), {'rollouts': 0.0, 'tokens': 0.0}


def frontier(ref):
  """(KL, reward) of ref exp(reward / beta) / Z, mean over prompts, along PRICES."""

  def one(price):
    logp = jax.nn.log_softmax(ref + REWARD / price)
    return worth(logp, ref)

  return jax.lax.map(one, PRICES[::-1])


def worth(logp, ref):
  p = jnp.exp(logp)
  return jnp.sum(p * (logp - ref), -1).mean(), jnp.sum(p * REWARD, -1).mean()


def placed(logp, ref):
  """Reward, KL, and the share of the best gain at this KL that is missing."""
  distance, reward = worth(logp, ref)
  base = worth(ref, ref)[1]
  best = jnp.interp(distance, *frontier(ref))
  missing = (best - reward) / jnp.maximum(best - base, 1e-6)
  there = distance > 1e-4
  return {'distance': jnp.where(there, missing, 0.0), 'reward': reward, 'kl': distance}


def measure(state, key):
  del key
  now, ref = state.params['policy'], state.frozen['ref']
  return placed(everything(now), everything(ref))


def best_of(n, policies):
  """Exactly: answers in order of reward, of equal ones any."""

  def one(policy):
    ref = everything(policy)
    order = jnp.argsort(REWARD, -1)
    p = jnp.take_along_axis(jnp.exp(ref), order, -1)
    r = jnp.take_along_axis(REWARD, order, -1)
    tied = r[:, :, None] >= r[:, None] - 1e-6
    upto = jnp.sum(tied * p[:, None], -1)  # F of all not better than it.
    level = jnp.sum((tied & tied.transpose(0, 2, 1)) * p[:, None], -1)
    found = (upto**n - jnp.maximum(upto - level, 0.0) ** n) * p / level
    back = jnp.argsort(order, -1)
    best = jnp.take_along_axis(found, back, -1)
    return placed(jnp.log(jnp.maximum(best, 1e-30)), ref)

  told = jax.device_get(jax.jit(jax.vmap(one))(policies))
  spent = {'step': 0, 'rollouts': float(n), 'tokens': float(n * NET.length)}
  return [
    [spent | {k: float(np.asarray(x)[i]) for k, x in told.items()}]
    for i in range(SEEDS)
  ]


def parts(told):
  last = {arm: found['distance'] for arm, found in told.last.items()}
  nearer = {
    f'distance: PPO less DPO, beta {beta}': last[f'PPO, beta {beta}']
    - last[f'DPO, beta {beta}']
    for beta in BETAS
  }
  near = {
    f"0.1 less DPO's, beta {beta}": 0.1 - last[f'DPO, beta {beta}'] for beta in BETAS
  }
  return nearer | near
