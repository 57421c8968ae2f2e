"""A method of pairs on fresh completions: --config=configs/online.py:dpo

Of eight answers to a letter the best and the worst are a pair; groups that are tied
teach nothing. Every 20 updates the reference becomes the policy, as between the rounds
of iterative DPO; --config.plan.refresh=0 keeps the first one. Any method of pairs will
do; --config.source.pair=best_random sets the best against the policy itself.
"""

from ml_collections import config_dict

from jaxrl_llm.default_config import adam, default_config, sampled


def get_config(method: str = 'dpo') -> config_dict.ConfigDict:
  c = default_config(f'online_{method}', method)
  c.model.name = 'tiny'
  c.steps = 60
  c.plan.refresh = 20
  c.optimizer = dict(policy=adam(3e-3))
  c.evaluation.update(every=20, batch=16)
  c.source = sampled(16, 8, 16, 6)
  c.source.pair = 'best_worst'
  c.task = dict(name='letters', alphabet='abcd', length=3, test_size=16, seed=0)
  c.rewards = dict(letter=dict(name='checker', binary=False, weight=1.0))
  return c
