"""What every config has, with the values most of them keep."""

from ml_collections import config_dict

from jaxrl_llm import build
from jaxrl_llm.data.fitting import PAIRED
from jaxrl_llm.rollout import trees


def default_config(name: str, method: str) -> config_dict.ConfigDict:
  """A config without task, data, rewards and source; callers add theirs."""
  c = config_dict.ConfigDict()
  c.name = name
  c.seed = 0
  c.steps = 100
  c.model = dict(name='smollm2', dtype='float32', remat='none')
  c.model.chat_template = ''  # A file with a jinja template; the tokenizer's own.
  c.model.ref = ''  # The reference; the policy at its birth (models/merging.py).
  c.model.dpo = ''  # The DPO policy of rto.
  c.model.critic = ''  # A run of a reward model, which the critic starts as.
  c.model.teacher = ''  # Of gkd and minillm: any architecture, the same vocabulary.
  c.model.lora = dict(rank=0, alpha=16.0, targets='q|k|v|o|gate|up|down')
  c.method = build.defaults(method)
  c.plan = dict(epochs=1, minibatches=1, microbatches=1)
  c.plan.update(padding_free=False, pack=0, pack_rows=1)
  c.plan.update(importance='', importance_low=0.5, importance_cap=2.0)
  c.plan.trust_sampler = False
  c.plan.update(refresh=0, refresh_share=1.0)
  c.plan.update(entropy_coef=0.0, entropy_target=0.0, entropy_delta=0.0)
  c.plan.update(top_entropy=1.0, clip_cov=0.0, clip_cov_low=1.0, clip_cov_high=5.0)
  c.plan.update(kl_cov=0.0, kl_cov_coef=0.1)
  c.plan.update(reward_scale='none', reward_bound=0.0)
  c.optimizer = dict(policy=adam(2e-5))
  c.mesh = dict(data=1, fsdp=-1, tensor=1)
  c.evaluation = dict(every=20, batch=50, at_start=True)
  # Held-out questions kept for HC-RLHF's safety test of the last policy; 0 is none.
  c.safety = dict(size=0, threshold=0.0, delta=0.1)
  c.log = dict(samples_every=10, tensorboard=True, wandb=False)
  c.checkpoint = dict(every=20, keep=1)
  return c


def sampled(prompts: int, group: int, max_prompt: int, max_length: int) -> dict:
  """A source of fresh completions: prompts a batch, completions of each, tokens.

  `slots` is how many prompts decode at once, 0 all; `cache` keeps their keys and values
  in 'bfloat16' or 'int8', '' as the network computes; `limit` is of until_mixed alone;
  `greedy` and `anchor` score another completion too, the policy's likeliest and the
  task's answer (ops/extras.py); `filter` is one of filtration.py, `pair` of pairing.py
  with its `margin`; `mask_truncated` learns nothing from what ran out of room; `steps`
  is for grpo_process, and so is `rewriter`, the folder of a model that writes answers
  again, with its `rewriter_tau` (rewriting.py); `mixture` is for nash_md; `answer`
  (answers.py) is for grpo_care, `accuracy`, a name of config.rewards, says what is
  right to that, prompt_gdro, rollout_gdro, prime, until_mixed, `hints` and `pool`;
  `verdict` is for rlbff_generative (spoken.py), with the task `principles`. `hints` is
  how many of each category a question that nobody solves gets (scaffold.py), 0 none,
  after this share of the steps. `pool` draws from the first so many questions by their
  pass rate (curriculum.py), 0 goes through all in turn. `replay` adds so many of the
  last `replay_size` groups (replay.py). `ahead` draws a batch while the update before
  it runs (ahead.py). `tree` grows a share of each group (rollout/trees.py): ((0, 1.0),
  (100, 0.5)) all of it, and half from step 100.
  """
  return dict(
    name='on_policy',
    prompts=prompts,
    group=group,
    limit=4,
    max_prompt=max_prompt,
    max_length=max_length,
    slots=0,
    cache='',
    stop_strings=(),
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    greedy=False,
    anchor=False,
    steps='',
    rewriter='',
    rewriter_tau=2.0,
    mixture=0.0,
    filter='',
    mask_truncated=False,
    pair='',
    margin=0.0,
    answer='',
    accuracy='',
    verdict=False,
    hints=0,
    hints_after=0.15,
    pool=0,
    pool_floor=0.02,
    pool_ema=0.3,
    replay=0,
    replay_size=0,
    ahead=False,
    tree=dict(share=()) | trees.Growth()._asdict(),
  )


def played(
  prompts: int, group: int, max_prompt: int, max_length: int, turns: int
) -> dict:
  """A source of fresh episodes (episodes.py): `max_length` is of all turns and replies.

  `turn_length` is of one turn, 0 what is left; `slots` are of rows.
  """
  source = sampled(prompts, group, max_prompt, max_length)
  return source | dict(name='episodes', turns=turns, turn_length=0)


def stored(prompts: int, max_prompt: int, max_length: int) -> dict:
  """A source of stored completions: examples a batch, and tokens they may have.

  `bucket` rounds widths and puts like lengths together (data/examples.py, order.py).
  """
  return dict(
    name='dataset',
    prompts=prompts,
    max_prompt=max_prompt,
    max_length=max_length,
    bucket=0,
    cache_reference=False,
  )


def pretraining(coef: float, max_prompt: int, max_length: int) -> dict:
  """config.pretrain: a table of demonstrations, learned beside what is sampled."""
  source = stored(0, max_prompt, max_length)
  return dict(coef=coef, source=source, data=files('demonstrations'))


# Which stored completions a method learns from; the others sample their own.
KINDS = {
  **dict.fromkeys(('sft', 'ift'), 'demonstrations'),
  **dict.fromkeys(('kto', 'bco', 'a_lol', 'r_lol', 'orm'), 'labels'),
  **dict.fromkeys((*PAIRED, 'infonca', 'nca'), 'pairs'),
  **dict.fromkeys(('plackett_luce', 'plackett_luce_dpo', 'pro'), 'rankings'),
  **dict.fromkeys(('regression', 'multitask_ratings', 'brme'), 'ratings'),
  'prm': 'steps',
  'rlbff': 'principles',
  **dict.fromkeys(('heron', 'armo'), 'rated_pairs'),
  'vpl': 'user_pairs',
  'mapl': 'prompt_pairs',
  't_reg': 'contrastive_pairs',
  'p_rlhf': 'personal_pairs',
}


def files(kind: str) -> config_dict.ConfigDict:
  """A table of this kind (data/files.py), with what is too long dropped or cut."""
  c = build.defaults('files', 'data')
  c.kind, c.long_prompt, c.long_completion = kind, 'drop', 'cut'
  return c


def adam(learning_rate: float) -> dict:
  """One role's optimizer: any optax name, its options, a schedule and clipping."""
  return dict(
    name='adamw',
    learning_rate=learning_rate,
    warmup_steps=0,
    decay='constant',
    final=0.0,
    clip=1.0,
    no_decay='norm|scores|bias',
    options=dict(b1=0.9, b2=0.95, weight_decay=0.0),
  )
