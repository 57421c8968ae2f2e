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
  pairing,
  rationing,
  replay,
  rewriting,
  scaffold,
  shapes,
  sharding,
  sources,
  spoken,
)
from jaxrl_llm.data import chat, examples
from jaxrl_llm.evaluate import held_out
from jaxrl_llm.feeds import Feed, pretraining, refuse_uncorrected
from jaxrl_llm.models import caching, pretrained
from jaxrl_llm.rewards import combine, shaping
from jaxrl_llm.rollout import draw, mixture, trees
from jaxrl_llm.rollout.sampler import make_sampler
from jaxrl_llm.rollout.stops import parted, stop_strings
from jaxrl_llm.tasks import fitting
from jaxrl_llm.types import Batch, InputError, State

# Columns of the sample table, which a reward part cannot be called.
RESERVED = ('prompt', 'completion', 'reward', 'cost', 'step', 'split')
NAMES = ('on_policy', 'until_mixed', 'rationed', *episodes.SOURCES)
# What a source says of completions where asked, and episodes do not.
TOLD = ('steps', 'rewriter', 'mixture', 'answer', 'verdict', 'accuracy')


def questions(config, decoder, model, text, mesh) -> Feed:
  """Completions sampled and scored, and greedy held-out accuracy."""
  task, s = make_task(config, text), config.source
  sampler, warm, cold = sampling(config, decoder, model, text, mesh, s.max_length)
  ask = sources.Ask(
    sample=sampler(1, s.get('slots', 0) * s.group),
    policy=forward.policy,
    text=text,
    record=task.train,
    reward=(reward := make_reward(config, task)),
    accuracy=part_name(config, 'accuracy'),
    options=warm,
  )
  place = functools.partial(sharding.put_batch, mesh=mesh)
  source = fresh(config, ask, make_tell(config, task, reward), sampler, decoder, place)
  source = shaped(source, config, ask)
  if s.get('verdict'):
    source = spoken.judged(source, model.tokenizer, task.train)
  alone, priced = sampler(1, config.evaluation.batch), make_priced(config, task)
  task, apart = set_apart(task, config.get('safety', {}).get('size', 0))
  known = dict(options=cold, priced=priced, reward=reward)
  score = held_out.make_held_out(alone, text, task, **known)
  feed = fed(config, model, mesh, task, source, score, shapes.told(config))
  if not apart:
    return feed
  bound = {k: config.safety[k] for k in ('threshold', 'delta')}
  how = dict(options=warm, priced=priced) | bound
  test = held_out.make_safety(alone, text, apart, **how)
  return feed._replace(safety=lambda state: test(forward.policy(state), state.key))


def make_task(config, text):
  """config.task; of a table every question can be asked."""
  task = build.made('jaxrl_llm.tasks', config.task.to_dict(), 'config.task')
  return fitting.fitted(task, text.encode, config.source.max_prompt)


def set_apart(task, count: int):
  """The task, and the last `count` of its held-out questions, which it then lacks."""
  if count and not 2 <= count < len(task.test):
    raise InputError(
      f'config.safety.size={count} keeps so many of {len(task.test)} held-out '
      'questions for itself: give at least 2 and leave some, or raise task.test_size.'
    )
  kept = len(task.test) - count
  return task._replace(test=task.test[:kept]), task.test[kept:]


def fed(config, model, mesh, task, source, score, extra) -> Feed:
  """Source and held-out score of a policy as a feed, with the demonstrations of
  config.pretrain as a second stream, if there are any.
  """
  pairing.check_method(config.method, config.source)
  found = examples.Data((), (), task.digest, task.report)
  evaluate = lambda state: score(forward.policy(state))
  feed = Feed(source, evaluate, found, extra=extra)
  if 'pretrain' not in config:
    return feed
  aux = pretraining(config, model, mesh)
  second = lambda batch, *at: batch.replace(aux=aux(*at).batch)
  return feed._replace(source=sources.changed(feed.source, second), aux=aux)


def refuse_told(config, by: str) -> None:
  """Refuses what a source that is not on_policy's own would not fill in."""
  if config.source.get('tree', {}).get('share'):
    raise InputError(f'config.source: {by} grows no trees; set tree.share=().')
  there = sorted(
    k for k, (asked, _) in shapes.told_of_completions(config).items() if asked
  )
  if there:
    raise InputError(
      f'config.source: {by} does not say {there}; unset config.costs, config.judge, '
      'source.anchor and source.greedy.'
    )


def fresh(config, ask: sources.Ask, tell: beside.Tell, sampler, decoder, place):
  """The source that config.source.name draws from. `sampler` takes (group, slots)."""
  s = config.source
  if s.name not in NAMES:
    raise InputError(f'config.source.name={s.name!r}. {build.near(s.name, NAMES)}')
  if s.get('pool') and s.name != 'on_policy':
    raise InputError(f"config.source.pool takes name='on_policy', not {s.name!r}.")
  if s.name == 'rationed':
    refuse_told(config, "name='rationed'")
    if extra := [k for k in ('filter', 'steps', 'rewriter', 'mixture') if s.get(k)]:
      raise InputError(f"config.source: 'rationed' takes no {extra}.")
    return rationing.rationed(ask, prompts=s.prompts, group=s.group)
  index = curriculum.by_rate(s.prompts, s.pool_floor) if s.get('pool') else None
  slots = s.get('slots', 0)
  sample = sampler(s.group, slots)
  if s.get('tree', {}).get('share'):
    sample = grown(s, decoder, sampler, place)
  ask = ask._replace(sample=sample)
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


def grown(s, decoder, sampler, place):
  """A `sample` that grows config.source.tree.share of each group (rollout/trees.py)."""
  options = s.tree.to_dict()
  share = sorted(options.pop('share'))
  other = [k for k in ('slots', 'stop_strings', 'mixture', 'cache') if s.get(k)]
  if other or draw.cuts(s) or any(not 0 <= x <= 1 for _, x in share):
    raise InputError(
      f'config.source.tree takes shares from 0 to 1, not {share}, the whole '
      f'distribution (top_k=0, top_p=1, min_p=0), and no {other or "slots"}.'
    )
  return trees.make_trees(
    decoder,
    sampler(1, 0),
    group=s.group,
    max_length=s.max_length,
    growth=trees.Growth(**options),
    share=functools.partial(trees.share_at, share),
    place=place,
  )


def against(ask: sources.Ask, decoder, s) -> sources.Ask:
  """`ask` with the mixture for an opponent, and the parameters of both."""
  alone = ('stop_strings', 'greedy', 'hints', 'pair', 'filter')
  if s.group != 2 or not 0 < s.mixture <= 1 or any(s.get(k) for k in alone):
    raise InputError(
      f'config.source.mixture={s.mixture!r} takes a share up to 1, source.group=2, and '
      f'none of {alone}.'
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
  if s.get('rewriter'):
    if s.get('steps'):
      raise InputError('config.source: set one of rewriter and steps, not both.')
    source = rewriting.rewarded(source, ask, s.rewriter, tau=s.rewriter_tau)
  source = picked(source, s)
  if s.get('answer'):
    source = answers.answered(source, s.answer, ask.text.decode)
  return source


def picked(source: sources.Source, s) -> sources.Source:
  """The source's completions filtered, paired and others replayed, where config.source
  says so, and trimmed.
  """
  if s.get('filter'):
    source = filtration.filtered(source, s.filter)
  if s.get('pair'):
    source = pairing.paired(source, s.pair, s.get('margin', 0.0))
  if s.get('mask_truncated'):
    source = sources.changed(source, lambda batch, *_: ended(batch))
  if s.get('replay'):
    source = replay.replayed(source, groups=s.replay)
  return sources.changed(source, lambda rows, *_: sources.trimmed(rows))


def ended(batch: Batch) -> Batch:
  """The batch, of which nothing is learned from a completion that ran out of room; its
  reward counts in its group (overlong filtering, https://arxiv.org/abs/2503.14476).
  """
  return batch.replace(mask=batch.mask * (1 - batch.truncated)[..., None])


def part_name(config, option: str) -> str:
  """config.source's option that names a part of the reward, if it is set."""
  name = config.source.get(option, '')
  if name and name not in config.rewards:
    where = f'config.source.{option}={name!r}'
    raise InputError(f'{where}. {build.near(name, config.rewards)}')
  return name


def conversations(config, decoder, model, text, mesh) -> Feed:
  """Episodes with the task's environment, and greedy held-out ones."""
  task, s = checked_task(config, text), config.source
  room = min(s.turn_length or s.max_length, s.max_length)
  sampler, warm, cold = sampling(config, decoder, model, text, mesh, room)
  between = chat.replier(model.tokenizer, pretrained.stop_ids(model.tokenizer))
  partner = lambda slots: episodes.Partner(
    sampler(1, slots), text, task.env, between, s.max_length, s.turns
  )
  source = episodes.SOURCES[s.name](
    partner=partner(s.get('slots', 0)),
    record=task.train,
    reward=make_reward(config, task),
    prompts=s.prompts,
    group=s.group,
    options=warm,
    policy=forward.policy,
  )
  source = picked(source, s)
  score = held_out.make_episodes(partner(config.evaluation.batch), task, options=cold)
  parts = task.env.score(task.env.start(task.test[0])[1])[1]
  shape = (s.prompts, shapes.size(s))
  extra = {k: np.zeros(shape, np.float32) for k in parts}
  extra['turn'] = np.ones((*shape, s.max_length), np.int32)
  return fed(config, model, mesh, task, source, score, extra)


def checked_task(config, text):
  """The task of a source of episodes, where all that it takes is there."""
  task, s = make_task(config, text), config.source
  if task.env is None:
    raise InputError(
      f'config.task: {task.name} is answered in one turn and config.source.name='
      f"{s.name!r} plays several. Set it to 'on_policy', or choose a task with an "
      'environment, such as two_attempts.'
    )
  refuse_told(config, f'name={s.name!r}')
  if unused := [k for k in ('pool', 'hints', *TOLD) if s.get(k)]:
    raise InputError(f'config.source: name={s.name!r} takes no {unused}; unset them.')
  return task


def sampling(config, decoder, model, text, mesh, max_length: int):
  """`sampler(group, slots)`, and options of so many prompts: to learn, and greedy."""
  s, cache = config.source, cache_dtype(config)
  strings, ends = parted(tuple(s.get('stop_strings', ())), model.tokenizer)
  stops = (*pretrained.stop_ids(model.tokenizer), *ends)
  sampler = lambda group, slots: make_sampler(
    decoder,
    group=group,
    max_length=max_length,
    slots=slots,
    cut=stop_strings(text.decode, strings) if strings else None,
    unit=sharding.shards(mesh),
    place=lambda arrays: sharding.put_batch(arrays, mesh),
    cache=cache,
  )
  options = functools.partial(draw.options, max_length=max_length, stop_ids=stops)
  warm = functools.partial(options, temperature=s.temperature, **draw.truncation(s))
  return sampler, warm, functools.partial(options, temperature=0.0)


def cache_dtype(config):
  """config.source.cache as a dtype, or None for the network's own."""
  name = config.source.get('cache', '')
  if name not in caching.DTYPES:
    where = f'config.source.cache={name!r}'
    raise InputError(f'{where}. {build.near(name, caching.DTYPES)}')
  if name not in ('', config.model.dtype):
    why = "what is sampled is then another distribution than the trainer's"
    refuse_uncorrected(config, f'cache={name!r}', why)
  return caching.DTYPES[name]


def make_reward(config, task, section: str = 'rewards'):
  """config.rewards, or config.costs, part by part, as one weighted sum."""
  parts = {}
  for key, options in config[section].to_dict().items():
    where = f'config.{section}.{key}'
    if key in RESERVED:
      raise InputError(f'{where}: the sample table has a column {key!r}; rename it.')
    if not isinstance(options, dict) or 'name' not in options:
      raise InputError(f'{where}={options!r}; give name=..., weight=... and options.')
    weight, shape = options.pop('weight', 1.0), options.pop('shape', '')
    part = judging(options, task, where)
    parts[key] = (weight, shaping.shaped(part, shape, where) if shape else part)
  return combine.weighted(parts)


def judging(options: dict, task, where: str):
  """{name: of a reward, its options} as a function; it gets the task if it asks."""
  options = dict(options)
  factory = build.find('jaxrl_llm.rewards', options.pop('name'), where)
  if 'task' in build.signature(factory):
    options['task'] = task
  return build.call(factory, options, where)


def make_priced(config, task) -> beside.Tell:
  """What config.costs says of completions, if it is there."""
  if not config.get('costs'):
    return beside.nothing
  return beside.costs(make_reward(config, task, 'costs'))


def make_tell(config, task, reward: combine.Scorer) -> beside.Tell:
  """What config.costs, config.judge and config.source.anchor say beside the reward."""
  told = [make_priced(config, task)]
  if config.source.get('anchor'):
    told.append(beside.anchor(reward))
  if judge := config.get('judge'):
    options = judge.to_dict()
    both = options.pop('both_orders', False)
    told.append(beside.duels(judging(options, task, 'config.judge'), both=both))
  return beside.together(told)
