"""Recipes of several stages, on a tiny random model: --config=configs/pipelines.py:rlmt

  python experiments/train.py --config=configs/pipelines.py:instruct_gpt

- instruct_gpt: demonstrations, a reward model from comparisons, PPO on its scores
  (Ouyang et al., 2022, https://arxiv.org/abs/2203.02155).
- rto: a DPO policy, and PPO on its token rewards (methods/rto.py).
- deepseek_r1: cold start, GRPO, the best completions to fine-tune the base on, a second
  GRPO (2025, https://arxiv.org/abs/2501.12948). Its upper clip of 10 does nothing in
  one update a batch, as here; plan.minibatches=16 and plan.refresh=400 are its others.
- cascade: one domain after another, on policy, without KL, every token alike
  (Nemotron-Cascade, 2025, https://arxiv.org/abs/2512.13607).
- salsa: two SFT runs and PPO from the first, its reference the average of both (2024,
  https://arxiv.org/abs/2411.01798).
- iterative_dpo: two rounds of fresh pairs, best against worst, and DPO on them, its
  reference the SFT model as in the text of GSHF (2023,
  https://arxiv.org/abs/2312.11456); the code's is the round before.
- gshf_offline: DPO from the SFT model, and against it, on stored pairs: the first of
  the same paper's settings, without its pessimism.
- gshf_online: the same on fresh pairs of all rounds so far; best against worst stands
  for the second agent, which explores.
- gshf_hybrid: stored pairs first, and fresh ones beside them.
- spin: two rounds of the task's answers against the policy's own (methods/spin.py).
- self_rewarding: as iterative_dpo, each round's pairs by the policy's own grades of its
  answers, three of each from 0 to 5, and its reference the round before (2024,
  https://arxiv.org/abs/2401.10020; there each round has new prompts). Fine-tuning
  teaches to grade too, on what reshape.py's `grades` makes of labels or scores.
- accelerated: as iterative_dpo, each round from a step beyond the last one, which is
  its reference too. Experimental (models/merging.py: extrapolate).
- mpo: pairs of the SFT model, split by how far a reward model sets them apart; DPO on
  the far ones, then PPO on the prompts of the others, from the DPO policy and against
  it (2024, https://arxiv.org/abs/2403.19443). Experimental: the paper's threshold was
  not found, and the median is ours.
- rlbff: a generative reward model, from demonstrations and then by what is right, and
  a policy on its verdicts, which does not see the principle (2025,
  https://arxiv.org/abs/2509.21319; methods/rlbff_generative.py).
- rlmt: think, then answer; a reward model sees the answer alone (2025,
  https://arxiv.org/abs/2509.20357).

Each takes two to four minutes on two CPU cores. The letters stand in
for data and tasks: --config.stages.sft.model.name=smollm2, and data and task of its
own, per stage.
A stage is left out with --config.order="('sft','ppo')".
"""

from ml_collections import config_dict

from jaxrl_llm.default_config import KINDS, adam, default_config, sampled, stored

GRADED, VERDICT = 512, 32  # Tokens of a question for a grade, and of the reply.
LENGTH = 8  # Tokens of a completion; an answer takes 6, its end included.
THOUGHT = len('<think>a</think>')


def stage(method: str, steps: int, model: str = 'tiny') -> config_dict.ConfigDict:
  """One stage on the letters, as in configs/toy.py."""
  c = default_config(method, method)
  c.model.name = model
  c.steps = steps
  c.optimizer = {r: adam(3e-3) for r in ('policy', 'critic', 'reward')}
  c.evaluation.update(every=steps, batch=16)
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


def salsa() -> dict:
  stages = dict(sft=stage('sft', 30), other=stage('sft', 30))
  stages['other'].seed = stages['other'].data.seed = 1
  ppo = stages['ppo'] = stage('ppo', 40, 'stage:sft/model')
  soup = "average(models=('stage:sft/model', 'stage:other/model'), shares=(0.5, 0.5))"
  ppo.model.ref = soup
  return stages


def gently(c: config_dict.ConfigDict) -> config_dict.ConfigDict:
  """At a sixth of the rate: a policy whose answers no longer end, or are all right,
  leaves no pairs for the next round.
  """
  c.optimizer.policy.learning_rate = 5e-4
  return c


def rounds(method: str, pair: str, count: int = 2) -> dict:
  """After SFT, so many rounds of collecting pairs and learning from them."""
  stages, model = dict(sft=stage('sft', 45)), 'stage:sft/model'
  for i in range(1, count + 1):
    c = stages[f'pairs_{i}'] = stage('grpo', 16, model)
    c.seed, c.collect = i, dict(pair=pair, margin=0.0)
    c = stages[f'{method}_{i}'] = gently(stage(method, 20, model))
    c.data = dict(name='files', path=f'stage:pairs_{i}/kept.jsonl', kind='pairs')
    c.data.test_size = 8
    model = f'stage:{method}_{i}/model'
  return stages


def iterative_dpo() -> dict:
  stages = rounds('dpo', 'best_worst')
  for i in (1, 2):
    stages[f'dpo_{i}'].model.ref = 'stage:sft/model'
  return stages


def self_rewarding() -> dict:
  stages = rounds('dpo', 'best_worst')
  sft = stages['sft']
  sft.steps = sft.evaluation.every = 300
  sft.source.update(max_prompt=GRADED, max_length=VERDICT)
  graded = dict(name='files', path='python:jaxrl_llm.data.letters.graded')
  graded.update(kind='demonstrations', test_size=32, weight=9.0)
  parts = dict(answers=sft.data.to_dict() | dict(weight=1.0), grades=graded)
  sft.data = dict(name='mixture', parts=parts)
  for i, before in ((1, 'sft'), (2, 'dpo_1')):
    c = stages[f'pairs_{i}']
    by = dict(name='local', model=f'stage:{before}/model', temperature=0.7)
    by.update(max_prompt=GRADED, max_tokens=VERDICT)
    grade = dict(name='judge', by=by, low=0, high=5, votes=3, weight=1.0)
    c.rewards = config_dict.ConfigDict(dict(grade=grade))
  return stages


def gshf(stored: bool, count: int) -> dict:
  """Each DPO begins with the SFT model and has all pairs so far: the stored ones, where
  there are any, and those of `count` rounds of the policy before.
  """
  stages, model, parts = dict(sft=stage('sft', 90)), 'stage:sft/model', {}
  for i in range(not stored, count + 1):
    if i:
      c = stages[f'pairs_{i}'] = stage('grpo', 16, model)
      c.seed, c.collect = i, dict(pair='best_worst', margin=0.0)
      path = f'stage:pairs_{i}/kept.jsonl'
      part = dict(name='files', path=path, kind='pairs', test_size=8)
    else:
      part = dict(name='letters', kind='pairs', size=256, test_size=8)
    parts[f'round_{i}'] = part | dict(weight=1.0)
    c = stages[f'dpo_{i}'] = gently(stage('dpo', 20, 'stage:sft/model'))
    c.model.ref = 'stage:sft/model'
    c.data = dict(name='mixture', parts=dict(parts))
    model = f'stage:dpo_{i}/model'
  return stages


def gshf_offline() -> dict:
  return gshf(True, 0)


def gshf_online() -> dict:
  return gshf(False, 2)


def gshf_hybrid() -> dict:
  return gshf(True, 2)


def spin() -> dict:
  return rounds('spin', 'answer')


def accelerated() -> dict:
  stages = rounds('dpo', 'best_worst', 3)
  for i in (2, 3):
    before = 'sft' if i == 2 else f'dpo_{i - 2}'
    new, old = f'stage:dpo_{i - 1}/model', f'stage:{before}/model'
    step = f"extrapolate(models=('{new}', '{old}'), alpha=0.3)"
    stages[f'pairs_{i}'].model.name = stages[f'dpo_{i}'].model.name = step
  return stages


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


def mpo() -> dict:
  stages = dict(sft=stage('sft', 30))
  stages['reward'] = stage('bradley_terry', 150, 'stage:sft/model')
  c = stages['pairs'] = stage('grpo', 16, 'stage:sft/model')
  c.collect, c.rewards = dict(pair='best_worst', margin=0.0), learned('stage:reward')
  for call in ('easy', 'hard'):
    told = dict(reshape=call, table='stage:pairs/kept.jsonl')
    stages[call] = config_dict.ConfigDict(told)
  c = stages['dpo'] = stage('dpo', 20, 'stage:sft/model')
  c.data = dict(name='files', path='stage:easy/kept.jsonl', kind='pairs', test_size=16)
  c = stages['ppo'] = stage('ppo', 40, 'stage:dpo/model')
  paths = {f'{k}_path': f'stage:{v}/kept.jsonl' for k, v in SPLIT.items()}
  c.task = dict(name='questions', question='prompt', answer='', limit=16, **paths)
  c.task.verify = "answer_format(pattern='[a-d]{5}')"
  c.rewards = learned('stage:reward')
  return stages


SPLIT = {'train': 'hard', 'test': 'easy'}  # Whose prompts MPO samples and holds out.


def rlmt() -> dict:
  sft = stage('sft', 60)
  sft.data.thought = True
  grpo = stage('grpo', 40, 'stage:sft/model')
  grpo.rewards = learned('stage:reward')
  grpo.rewards.score.after = grpo.task.after = '</think>'
  sft.source.max_length = grpo.source.max_length = THOUGHT + LENGTH
  return dict(sft=sft, reward=stage('bradley_terry', 150), grpo=grpo)


def rlbff() -> dict:
  rows = 'python:jaxrl_llm.data.letters'
  sft = stage('sft', 60)
  sft.data = dict(name='files', path=f'{rows}.reasoned', kind='demonstrations')
  sft.data.test_size = 32
  genrm = stage('rlbff_generative', 40, 'stage:sft/model')
  words = dict(ask='', verdicts=('y', 'n'))
  genrm.task = dict(name='principles', path=f'{rows}.principles', test_size=32) | words
  genrm.rewards = dict(right=dict(name='checker', binary=True, weight=1.0))
  genrm.source.verdict, genrm.method.scale = True, 0.1
  policy = stage('grpo', 40)
  policy.optimizer.policy.learning_rate = 3e-3
  policy.task = dict(name='questions', question='prompt', keep=('principle',))
  policy.task.update(train_path=f'{rows}.principles', test_path=f'{rows}.held')
  policy.task.verify = 'equal(by="text", extract="whole")'
  score = dict(name='reasoned', run='stage:generative', principle='@principle')
  policy.rewards = dict(
    score=score | dict(shape='clip(low=-10.0, high=10.0)', weight=1.0)
  )
  return dict(sft=sft, generative=genrm, policy=policy)


ALL = (instruct_gpt, rto, salsa, iterative_dpo, self_rewarding, spin, accelerated)
ALL += (gshf_offline, gshf_online, gshf_hybrid, mpo)
RECIPES = {f.__name__: f for f in (*ALL, deepseek_r1, cascade, rlmt, rlbff)}


def get_config(name: str = 'instruct_gpt') -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.name, stages = name, RECIPES[name]()
  c.stages, c.order = stages, tuple(stages)
  return c
