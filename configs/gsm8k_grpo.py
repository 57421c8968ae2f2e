r"""GRPO on GSM8K's questions: the last number of an answer counts.

  python experiments/train.py --config=configs/gsm8k_grpo.py \
    --config.task.train_path=TRAIN --config.task.test_path=TEST

TRAIN and TEST are GSM8K's own files (question, answer). SmolLM2-135M solves few of them
and in 30 steps learns nothing to be seen: 5 of 100 held-out answers were right before
[2.2, 11.2 %] and 2 after [0.6, 7.0], seed 0, 19 minutes on two CPU cores beside other
work. This shows the path; for a result start from a model that solves some. A larger
model on a pod:
--config.model.name=Qwen/Qwen2.5-1.5B-Instruct --config.model.dtype=bfloat16
--config.model.remat=full --config.source.prompts=64 --config.source.max_length=512.
"""

from ml_collections import config_dict

from jaxrl_llm.default_config import default_config, sampled

# Something is calculated, and the end is as in GSM8K's own solutions. Without the first
# half the same number, whatever the question, is the best answer that 135M find.
FORM = r'[\s\S]*=[\s\S]*#### ?\$?-?[0-9][0-9,]*(\.[0-9]+)?'


def get_config() -> config_dict.ConfigDict:
  c = default_config('gsm8k_grpo', 'grpo')
  c.steps = 30
  c.plan.update(microbatches=4, padding_free=True)
  c.model.lora.rank = 16
  c.optimizer.policy.update(learning_rate=3e-4, decay='linear')
  c.evaluation.update(every=30, batch=50)
  c.task = dict(
    name='questions',
    train_path=config_dict.placeholder(str),
    test_path=config_dict.placeholder(str),
    limit=100,
    contamination=13,
    seed=0,
    suffix='\nCalculate in one or two lines, then end with "#### " and the number.',
  )
  c.rewards = dict(
    correct=dict(name='checker', binary=True, weight=1.0),
    form=dict(name='answer_format', pattern=FORM, max_length=1000, weight=0.2),
  )
  c.source = sampled(4, 8, 240, 80)
  return c
