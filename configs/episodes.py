"""A tiny random model learns to guess a number from 1 to 3 in two turns of one token.

  python experiments/train.py --config=configs/episodes.py

It has to open with 2 and to mind the reply: without that, two numbers of three are the
most there are. Measured, seed 0: none of the three before, all three after 120 steps,
40 s of CPU.
"""

from ml_collections import config_dict

from jaxrl_llm.default_config import adam, default_config, played


def get_config() -> config_dict.ConfigDict:
  c = default_config('episodes', 'grpo')
  c.model.name = 'tiny'
  c.steps = 120
  c.method.beta = 0.0
  c.optimizer = dict(policy=adam(3e-3))
  c.optimizer.policy.decay = 'linear'
  c.evaluation.update(every=20, batch=16)
  c.task = dict(name='guess_number', low=1, high=3)
  c.rewards = dict(score=dict(name='environment', weight=1.0))
  c.source = played(16, 8, 8, 16, turns=2)
  c.source.turn_length = 1
  return c
