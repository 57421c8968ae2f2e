"""What a run asks of its policy: questions or episodes, rewarded and held out."""

import functools

import numpy as np

from jaxrl_llm import (
  answers,
  beside,
  build,
  curriculum,
  episodes,
  filtration,
  forward,
  rationing,
  scaffold,
  sharding,
  sources,
)
from jaxrl_llm.data import chat, examples
from jaxrl_llm.evaluate import held_out
from jaxrl_llm.feeds import Feed, pretraining
from jaxrl_llm.models import pretrained
from jaxrl_llm.rewards import combine
from jaxrl_llm.rollout import draw, mixture
from jaxrl_llm.rollout.sampler import make_sampler
from jaxrl_llm.rollout.stops import stop_strings
from jaxrl_llm.types import InputError, State

# Columns of the sample table, which a reward part cannot be called.
RESERVED = ('prompt', 'completion', 'reward', 'cost', 'step', 'split')
EPISODES = {
  'episodes': episodes.episodes,
  'episode_pairs': episodes.episode_pairs,
}
NAMES = ('on_policy', 'until_mixed', 'rationed', *EPISODES)


def questions(config, decoder, model, text, mesh) -> Feed:
  """Completions sampled and scored, and greedy held-out accuracy."""
  task = build.made('jaxrl_llm.tasks', config.task.to_dict(), 'config.task')
  s = config.source
  sampler, warm, cold = sampling(config, decoder, model, text, mesh, s.max_length)
  ask = sources.Ask(
    sample=sampler(1, s.get('slots', 0) * s.group),
    policy=forward.policy,
    text=text,
    record=task.train,
    reward=make_reward(config, task),
    accuracy=part_name(config, 'accuracy'),
    options=warm,
  )
  source = fresh(config, ask, make_tell(config, task), sampler, decoder)
  source = shaped(source, config, ask)
  score = held_out.make_held_out(
    sampler(1, config.evaluation.batch), text, task, options=cold
  )
  found = examples.Data((), (), task.digest, task.report)
  evaluate = lambda state: score(forward.policy(state))
  feed = Feed(source, evaluate, found, extra=told(config))
  return beside_demonstrations(feed, config, model, mesh)


def beside_demonstrations(feed: Feed, config, model, mesh) -> Feed:
  """The feed with those of config.pretrain as a second stream, if there are any."""
  if 'pretrain' not in config:
    return feed
  aux = pretraining(config, model, mesh)
  second = lambda batch, *at: batch.replace(aux=aux(*at).batch)
  return feed._replace(source=sources.changed(feed.source, second), aux=aux)


def told(config) -> dict[str, np.ndarray]:
  """What a source of questions says beside the reward, as zeros."""
  s = config.source
  b, g, t = s.prompts, s.group, s.max_length
  found = told_of_completions(config) | {
    'accuracy': (s.get('accuracy'), (b, g)),
    'answer': (s.get('answer'), (b, g, t)),
    'step_end': (s.get('steps'), (b, g, t)),
    'step_reward': (s.get('steps'), (b, g, t)),
  }
  zeros = {
    k: np.zeros(shape, np.float32) for k, (there, shape) in found.items() if there
  }
  return zeros | {'question': np.zeros(b, np.int32)}


def told_of_completions(config) -> dict:
  """What may be said beside the reward: whether config asks for it, and its shape."""
  s = config.source
  b, g = s.prompts, s.group
  return {
    'greedy_reward': (s.get('greedy'), (b,)),
    'anchor_reward': (s.get('anchor'), (b,)),
    'cost': (config.get('costs'), (b, g)),
    'feasible': (config.get('costs'), (b, g)),
    'duel': (config.get('judge'), (b, g, g)),
  }


def refuse_told(config, by: str) -> None:
  """Refuses what a source that is not on_policy's own would not fill in."""
  there = sorted(k for k, (asked, _) in told_of_completions(config).items() if asked)
  if there:
    raise InputError(
      f'config.source: {by} does not say {there}; unset config.costs, config.judge, '
      'source.anchor and source.greedy.'
    )


def fresh(config, ask: sources.Ask, tell: beside.Tell, sampler, decoder):
  """The source that config.source.name draws from. `sampler` takes (group, slots)."""
  s = config.source
  if s.name not in NAMES:
    raise InputError(f'config.source.name={s.name!r}. {build.near(s.name, NAMES)}')
  if s.get('pool') and s.name != 'on_policy':
    raise InputError(f"config.source.pool takes name='on_policy', not {s.name!r}.")
  if s.name == 'rationed':
    refuse_told(config, "name='rationed'")
    if extra := [k for k in ('filter', 'steps', 'mixture') if s.get(k)]:
      raise InputError(f"config.source: 'rationed' takes no {extra}.")
    return rationing.rationed(ask, prompts=s.prompts, group=s.group)
  index = curriculum.by_rate(s.prompts, s.pool_floor) if s.get('pool') else None
  slots = s.get('slots', 0)
  ask = ask._replace(sample=sampler(s.group, slots))
  source = sources.on_policy(
    against(ask, decoder, s) if s.get('mixture') else ask,
    tell=tell,
    prompts=s.prompts,
    greedy=sampler(1, slots) if s.get('greedy') else None,
    steps=s.get('steps', ''),
    index=index,
  )
  if s.name == 'until_mixed':
    source = sources.until_mixed(source, prompts=s.prompts, limit=s.limit)
  return source


def against(ask: sources.Ask, decoder, s) -> sources.Ask:
  """`ask` with the mixture for an opponent, and the parameters of both."""
  alone = s.get('greedy') or s.get('stop_strings') or s.get('hints')
  if s.group != 2 or not 0 < s.mixture <= 1 or alone:
    raise InputError(
      f'config.source.mixture={s.mixture!r} takes a share up to 1, source.group=2, and '
      'neither stop_strings, greedy nor hints.'
    )
  opponent = mixture.make_opponent(decoder, share=s.mixture, max_length=s.max_length)

  def both(state: State):
    tree = forward.whole({'frozen': state.frozen}, 'frozen', 'ref')
    if not tree:
      raise InputError(
        'config.source.mixture mixes with a reference, and this method has none.'
      )
    return forward.policy(state), tree

  return ask._replace(sample=mixture.opposed(ask.sample, opponent), policy=both)


def shaped(source: sources.Source, config, ask: sources.Ask) -> sources.Source:
  """What config.source does with the groups that were drawn."""
  s = config.source
  if s.get('hints'):
    refuse_told(config, 'hints')
    if not any(ask.record(i).hints for i in range(16)):
      raise InputError(
        f'config.source.hints={s.hints}: task {config.task.name} has no hints.'
      )
    first = round(s.hints_after * config.steps)
    source = scaffold.scaffolded(source, ask, levels=s.hints, first=first)
  if s.get('filter'):
    source = filtration.filtered(source, s.filter)
  source = sources.changed(source, lambda rows, *_: sources.trimmed(rows))
  if s.get('answer'):
    source = answers.answered(source, s.answer, ask.text.decode)
  return source


def part_name(config, option: str) -> str:
  """config.source's option that names a part of the reward, if it is set."""
  name = config.source.get(option, '')
  if name and name not in config.rewards:
    where = f'config.source.{option}={name!r}'
    raise InputError(f'{where}. {build.near(name, config.rewards)}')
  return name


def conversations(config, decoder, model, text, mesh) -> Feed:
  """Episodes with the task's environment, and greedy held-out ones."""
  task, s = checked_task(config), config.source
  size = min(s.turn_length or s.max_length, s.max_length)
  sampler, warm, cold = sampling(config, decoder, model, text, mesh, size)
  between = chat.replier(model.tokenizer, pretrained.stop_ids(model.tokenizer))
  partner = lambda slots: episodes.Partner(
    sampler(1, slots), text, task.env, between, s.max_length, s.turns
  )
  source = EPISODES[s.name](
    partner=partner(s.get('slots', 0)),
    record=task.train,
    reward=make_reward(config, task),
    prompts=s.prompts,
    group=s.group,
    options=warm,
    policy=forward.policy,
  )
  if s.get('filter'):
    source = filtration.filtered(source, s.filter)
  source = sources.changed(source, lambda rows, *_: sources.trimmed(rows))
  score = held_out.make_episodes(partner(config.evaluation.batch), task, options=cold)
  parts = task.env.score(task.env.start(task.test[0])[1])[1]
  shape = (s.prompts, s.group)
  extra = {k: np.zeros(shape, np.float32) for k in parts}
  extra['turn'] = np.ones((*shape, s.max_length), np.int32)
  found = examples.Data((), (), task.digest, task.report)
  evaluate = lambda state: score(forward.policy(state))
  feed = Feed(source, evaluate, found, extra=extra)
  return beside_demonstrations(feed, config, model, mesh)


def checked_task(config):
  """The task of a source of episodes, where all that it takes is there."""
  task = build.made('jaxrl_llm.tasks', config.task.to_dict(), 'config.task')
  s = config.source
  if task.env is None:
    raise InputError(
      f'config.task: {task.name} is answered in one turn and config.source.name='
      f"{s.name!r} plays several. Set it to 'on_policy', or choose a task with an "
      'environment, such as two_attempts.'
    )
  refuse_told(config, f'name={s.name!r}')
  return task


def sampling(config, decoder, model, text, mesh, max_length: int):
  """`sampler(group, slots)`, and options of so many prompts: to learn, and greedy."""
  s, stops = config.source, pretrained.stop_ids(model.tokenizer)
  strings = tuple(s.get('stop_strings', ()))
  sampler = lambda group, slots: make_sampler(
    decoder,
    group=group,
    max_length=max_length,
    slots=slots,
    cut=stop_strings(text.decode, strings) if strings else None,
    unit=sharding.shards(mesh),
    place=lambda arrays: sharding.put_batch(arrays, mesh),
  )
  options = functools.partial(draw.options, max_length=max_length, stop_ids=stops)
  warm = functools.partial(options, temperature=s.temperature, **draw.truncation(s))
  return sampler, warm, functools.partial(options, temperature=0.0)


def make_reward(config, task, section: str = 'rewards'):
  """config.rewards, or config.costs, part by part, as one weighted sum."""
  parts = {}
  for key, options in config[section].to_dict().items():
    where = f'config.{section}.{key}'
    if key in RESERVED:
      raise InputError(f'{where}: the sample table has a column {key!r}; rename it.')
    if not isinstance(options, dict) or 'name' not in options:
      raise InputError(f'{where}={options!r}; give name=..., weight=... and options.')
    weight = options.pop('weight', 1.0)
    parts[key] = (weight, judging(options, task, where))
  return combine.weighted(parts)


def judging(options: dict, task, where: str):
  """{name: of a reward, its options} as a function; it gets the task if it asks."""
  options = dict(options)
  factory = build.find('jaxrl_llm.rewards', options.pop('name'), where)
  if 'task' in build.signature(factory):
    options['task'] = task
  return build.call(factory, options, where)


def make_tell(config, task) -> beside.Tell:
  """What config.costs, config.judge and config.source.anchor say beside the reward."""
  told = []
  if config.get('costs'):
    told.append(beside.costs(make_reward(config, task, 'costs')))
  if config.source.get('anchor'):
    told.append(beside.anchor(make_reward(config, task)))
  if judge := config.get('judge'):
    options = judge.to_dict()
    both = options.pop('both_orders', False)
    told.append(beside.duels(judging(options, task, 'config.judge'), both=both))
  return beside.together(told)
