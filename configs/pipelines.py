"""Recipes of several stages, on a tiny random model: --config=configs/pipelines.py:rlmt

  python experiments/train.py --config=configs/pipelines.py:instruct_gpt

- instruct_gpt: demonstrations, a reward model from comparisons, PPO on its scores
  (Ouyang et al., 2022, https://arxiv.org/abs/2203.02155).
- rto: a DPO policy, and PPO on its token rewards (methods/rto.py).
- deepseek_r1: cold start, GRPO, the best completions to fine-tune the base on, a second
  GRPO (2025, https://arxiv.org/abs/2501.12948; the upper clip is its 10).
- cascade: one domain after another, on policy, without KL, every token alike
  (Nemotron-Cascade, 2025, https://arxiv.org/abs/2512.13607).
- rlmt: think, then answer; a reward model sees the answer alone (2025,
  https://arxiv.org/abs/2509.20357).

Each takes two to four minutes on two CPU cores. The letters stand in for data and
tasks: --config.stages.sft.model.name=smollm2, and data and task of its own, per stage.
A stage is left out with --config.order="('sft','ppo')".
"""

from ml_collections import config_dict

from jaxrl_llm.default_config import KINDS, adam, default_config, sampled, stored

LENGTH = 8  # Tokens of a completion; an answer takes 6, its end included.
THOUGHT = len('<think>a</think>')


def stage(method: str, steps: int, model: str = 'tiny') -> config_dict.ConfigDict:
  """One stage on the letters, as in configs/toy.py."""
  c = default_config(method, method)
  c.model.name = model
  c.steps = steps
  c.optimizer = {r: adam(3e-3) for r in ('policy', 'critic', 'reward')}
  c.evaluation = dict(every=steps, batch=16)
  c.log.tensorboard = False
  if method in KINDS:
    c.source = stored(16, 16, LENGTH)
    c.data = dict(name='letters', kind=KINDS[method], size=1024, test_size=64, seed=0)
    c.data.thought = False
    return c
  for role in c.optimizer:  # A policy that knows something already.
    c.optimizer[role].learning_rate = 1e-3
  c.source = sampled(16, 8, 16, LENGTH)
  c.task = dict(name='letters', alphabet='abcd', length=3, test_size=16, seed=0)
  c.rewards = dict(letter=dict(name='checker', binary=False, weight=1.0))
  return c


def learned(run: str) -> config_dict.ConfigDict:
  """A reward model's score as the only reward."""
  options = dict(name='learned', run=run, after='', missing=-5.0, weight=1.0)
  return config_dict.ConfigDict(dict(score=options))


def instruct_gpt() -> dict:
  ppo = stage('ppo', 40, 'stage:sft/model')
  ppo.rewards = learned('stage:reward')
  reward = stage('bradley_terry', 150, 'stage:sft/model')
  return dict(sft=stage('sft', 45), reward=reward, ppo=ppo)


def rto() -> dict:
  second = stage('rto', 30, 'stage:sft/model')
  second.model.dpo = 'stage:dpo/model'
  first = stage('dpo', 20, 'stage:sft/model')
  return dict(sft=stage('sft', 15), dpo=first, rto=second)


def deepseek_r1() -> dict:
  first = stage('grpo', 20, 'stage:cold_start/model')
  best = stage('grpo', 16, 'stage:first_rl/model')
  best.collect = dict(least=2.0, each=1)
  second = stage('grpo', 20, 'stage:sft/model')
  for c in (first, best, second):
    c.rewards.form = dict(name='answer_format', pattern='[a-d]{5}', weight=1.0)
    c.method.update(clip_high=10.0, beta=0.001)
  start, sft = stage('sft', 45), stage('sft', 60)
  sft.data = dict(name='files', path='stage:best/kept.jsonl', kind='demonstrations')
  sft.data.test_size = 16
  return dict(cold_start=start, first_rl=first, best=best, sft=sft, second_rl=second)


def cascade() -> dict:
  stages, model = {}, 'tiny'
  for name, letters in dict(first='abcd', second='efgh', third='ijkl').items():
    c = stages[name] = stage('grpo', 30, model)
    c.method.update(beta=0.0, aggregate='token_mean')
    c.task.alphabet = letters
    model = f'stage:{name}/model'
  return stages


def rlmt() -> dict:
  sft = stage('sft', 60)
  sft.data.thought = True
  grpo = stage('grpo', 40, 'stage:sft/model')
  grpo.rewards = learned('stage:reward')
  grpo.rewards.score.after = grpo.task.after = '</think>'
  sft.source.max_length = grpo.source.max_length = THOUGHT + LENGTH
  return dict(sft=sft, reward=stage('bradley_terry', 150), grpo=grpo)


RECIPES = {f.__name__: f for f in (instruct_gpt, rto, deepseek_r1, cascade, rlmt)}


def get_config(name: str = 'instruct_gpt') -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.name, stages = name, RECIPES[name]()
  c.stages, c.order = stages, tuple(stages)
  return c
