"""GRPO teaches SmolLM2-135M-Instruct to add and subtract, on two CPU cores.

  python experiments/train.py --config=configs/quickstart.py

Sums and differences of numbers up to 20, in the words of reasoning-gym's chain_sum; 200
questions are held out. The last number of an answer counts.
"""

from ml_collections import config_dict

from jaxrl_llm.default_config import default_config, sampled


def get_config() -> config_dict.ConfigDict:
  c = default_config('quickstart', 'grpo')
  c.steps = 30
  c.evaluation.every = 10
  c.optimizer.policy.decay = 'linear'
  c.task = dict(
    name='arithmetic',
    template='State the final answer to the following arithmetic problem: '
    '{a} {op} {b} =',
    operations=('+', '-'),
    low=0,
    high=20,
    negative=False,
    test_size=200,
    seed=0,
  )
  c.rewards = dict(correct=dict(name='checker', binary=True, weight=1.0))
  c.source = sampled(8, 8, 48, 16)
  c.source.temperature = 0.7
  return c
