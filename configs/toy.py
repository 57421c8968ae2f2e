"""Any method on a tiny random model, in about a minute: --config=configs/toy.py:dpo

Methods that learn from rewards sample answers and are scored by how much of each is
the asked letter; methods that learn from stored answers get pairs, labels or
demonstrations of the same.
"""

from ml_collections import config_dict

from jaxrl_llm.default_config import (
  KINDS,
  adam,
  default_config,
  played,
  sampled,
  stored,
)

COSTLY = ('safe_rlhf', 'hc_rlhf', 'cgpo_crpg', 'cgpo_codpo', 'cgpo_crraft')
ANCHORED = ('pairwise_ppo', 'cgpo_crpg', 'cgpo_crraft')


def get_config(method: str = 'grpo') -> config_dict.ConfigDict:
  c = default_config(f'toy_{method}', method)
  c.model.name = 'tiny'
  c.steps = 60
  roles = ('policy', 'critic', 'cost_critic', 'twin_critic', 'reward', 'prm')
  roles += ('own', 'ensemble')
  c.optimizer = {r: adam(3e-3) for r in roles}
  c.evaluation.update(every=20, batch=16)
  c.source = sampled(16, 8, 16, 6)
  if method == 'remax':
    c.source.greedy = True
  if method == 'grpo_care':
    c.source.answer = 'whole'  # Letters stand without tags, or reasoning.
  if method == 'prompt_gdro':
    c.method.signal = 'reward'
  if method == 'rollout_gdro':
    c.source.update(name='rationed', group=4)
    c.method.update(least=2, most=4, mean=3, signal='reward')
  if method == 'grpo_process':
    c.source.steps = 'a'  # Every a ends a step, in want of lines.
  if method in ('two_grpo', 'rebel', 'online_ipo', 'nash_md', 'inpo'):
    c.source.group = 2
  if method == 'nash_md':
    c.source.mixture = 0.25
  if method == 'rto':
    c.model.dpo = 'tiny'  # A stand-in: the policy at its birth, which rewards nothing.
  if method in ('gkd', 'minillm'):
    c.model.teacher = 'tiny'  # A stand-in: the policy at its birth, nothing to learn.
  if method == 'vpl':
    c.method.update(latent=16, hidden=32)
  if method == 'p_rlhf':
    c.method.update(count=2, tokens=2)
  if method == 'armo':
    c.method.hidden = 32
  if 'attributes' in c.method:
    c.method.attributes = 'share,size'
  if method == 'heron':
    c.method.factors = 'share,size'
  if method == 'brme':
    c.method.attribute = 'share'
  if method == 'multitask_ratings':
    c.method.update(attribute='share', classes=2)
  if 'max_length' in c.method:
    c.method.max_length = c.source.max_length
  if method in KINDS:
    c.source = stored(16, 16, 6)
    c.data = dict(name='letters', kind=KINDS[method], size=256, test_size=64, seed=0)
    return c
  c.task = dict(name='letters', alphabet='abcd', length=3, test_size=16, seed=0)
  c.rewards = dict(letter=dict(name='checker', binary=False, weight=1.0))
  if method == 'rlbff_generative':
    path, words = 'python:jaxrl_llm.data.letters.principles', ('y', 'n')
    c.task = dict(name='principles', path=path, test_size=16, ask='', verdicts=words)
    c.rewards = dict(right=dict(name='checker', binary=True, weight=1.0))
    c.source.verdict, c.method.scale = True, 0.1
  if method in ('refuel', 'score_rl'):
    pairs = method == 'refuel'
    c.source = played(16, 2 if pairs else 8, 16, 16, turns=2)
    c.source.update(name='episode_pairs' if pairs else 'episodes', turn_length=6)
    c.task = dict(name='two_attempts', of=c.task.to_dict(), prompt='?')
    c.rewards = dict(second=dict(name='environment', weight=1.0))
  if method in COSTLY:  # Of the letter a no more than a tenth of an answer.
    c.costs = dict(a=dict(name='letter_share', letter='a', allowed=0.1, weight=1.0))
  if method in ANCHORED:
    c.source.anchor = True
  return c
