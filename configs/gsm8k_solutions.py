r"""KTO, or a reward model, on graded model solutions of GSM8K.

  python experiments/train.py --config=configs/gsm8k_solutions.py:kto \
    --config.data.path=FILE

`:bradley_terry` in place of `:kto` trains a reward model on all pairs of a right and a
wrong solution of one question, which are one group. FILE is GSM8K's
example_model_solutions.jsonl: four graded solutions of each of 1,319 questions. LoRA on
SmolLM2-135M-Instruct. Of 125 held-out questions the reward model told right from wrong
in 63.8 % [55.1, 71.7] of their pairs, where the longer one is right in 53.0 %, in 18.2
minutes of two CPU cores with nothing else to do; the policy of kto, by log(pi / ref),
in 62.3 % [52.5, 71.2] of those of 100, where the longer one is right in 51.5 %, in 17.3
minutes. Both learn from questions with a right and a wrong solution. A larger model on
a pod: --config.model.name=Qwen/Qwen2.5-1.5B-Instruct --config.model.dtype=bfloat16
--config.model.remat=full --config.source.prompts=64.
"""

from ml_collections import config_dict

from jaxrl_llm.default_config import adam, default_config, stored

# The role that a method trains.
ROLES = {'kto': 'policy', 'bradley_terry': 'reward'}


def get_config(method: str = 'kto') -> config_dict.ConfigDict:
  c = default_config(f'gsm8k_solutions_{method}', method)
  c.model.dtype = 'mixed'
  c.steps = 16 if method == 'kto' else 40
  c.plan.pack = 1280
  c.model.lora.rank = 16
  role = ROLES[method]
  c.optimizer = {role: adam(2e-4)}
  c.optimizer[role].decay = 'linear'
  # At the start all solutions are alike to both methods.
  c.evaluation.update(every=c.steps, batch=16, at_start=False)
  c.source = stored(8, 256, 256)
  if method == 'kto':
    c.method.baseline, c.source.cache_reference = 'batch', True
    # Of what is trained on, 1,338 are wrong and 1,186 right (of the whole file 1.64
    # to 1): with equal weights it would pay to make all less likely.
    c.method.desirable = 1.13
  c.data = dict(
    name='solutions',
    path=config_dict.placeholder(str),
    contrast=True,
    test_size=100 if method == 'kto' else 125,
    long_prompt='drop',
    long_completion='cut',
  )
  return c
