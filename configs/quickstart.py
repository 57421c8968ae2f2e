"""GRPO teaches SmolLM2-135M-Instruct to add and subtract, on two CPU cores.

python experiments/train.py --config=configs/quickstart.py
"""

from ml_collections import config_dict

from jaxrl_llm.default_config import default_config


def get_config() -> config_dict.ConfigDict:
  c = default_config('quickstart', 'grpo')
  c.steps = 60
  c.task = dict(
    name='reasoning_gym',
    dataset='chain_sum',
    test_size=200,
    seed=0,
    options=dict(min_terms=2, max_terms=3, min_digits=1, max_digits=1),
  )
  c.rewards = dict(correct=dict(name='checker', binary=True, weight=1.0))
  c.source = dict(
    name='on_policy',
    prompts=4,
    group=8,
    max_prompt=52,
    max_length=16,
    temperature=1.0,
  )
  return c
