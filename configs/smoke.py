"""The quickstart's path with a tiny random model, in under a minute.

  python experiments/train.py --config=configs/smoke.py

The model sees three letters and learns to repeat the last one.
"""

from ml_collections import config_dict

from jaxrl_llm.default_config import adam, default_config, sampled


def get_config() -> config_dict.ConfigDict:
  c = default_config('smoke', 'grpo')
  c.model.name = 'tiny'
  c.steps = 60
  c.optimizer = dict(policy=adam(3e-3))
  c.evaluation.update(every=20, batch=16)
  c.source = sampled(16, 8, 16, 6)
  c.task = dict(name='letters', alphabet='abcd', length=3, test_size=16, seed=0)
  c.rewards = dict(letter=dict(name='checker', binary=False, weight=1.0))
  return c
