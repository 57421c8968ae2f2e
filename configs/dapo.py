"""DAPO with all of its four parts, on a tiny random model, in about a minute.

  python experiments/train.py --config=configs/dapo.py

A wider upper clip and the mean over tokens are the method's; groups whose rewards are
all equal are sampled again (source.name); and what nears the end of its room pays for
it (rewards.long), which in a room of 20,480 tokens is the last 4,096. At most four
times as many groups are sampled; with several updates a batch the clip comes to act.
"""

from ml_collections import config_dict

from jaxrl_llm.default_config import adam, default_config, sampled


def get_config() -> config_dict.ConfigDict:
  c = default_config('dapo', 'dapo')
  c.model.name = 'tiny'
  c.steps = 60
  c.plan.minibatches = 4
  c.optimizer = dict(policy=adam(1e-3))
  c.evaluation.update(every=20, batch=16)
  c.source = sampled(16, 8, 16, 8)
  c.source.update(name='until_mixed', limit=4)
  c.task = dict(name='letters', alphabet='abcd', length=3, test_size=16, seed=0)
  c.rewards = dict(
    letter=dict(name='checker', binary=False, weight=1.0),
    long=dict(name='overlong', max_length=8, cache=4, weight=0.5),
  )
  return c
