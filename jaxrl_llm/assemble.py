"""From a config to the parts of a run. Below this file nobody sees a config."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import (
  build,
  forward,
  initial,
  packing,
  reference,
  sections,
  sharding,
  sources,
  step,
  types,
)
from jaxrl_llm.data import chat, examples, order
from jaxrl_llm.evaluate import held_out, stored
from jaxrl_llm.models import pretrained
from jaxrl_llm.models.decoder import REMAT, Decoder
from jaxrl_llm.rewards import combine
from jaxrl_llm.rollout.sampler import make_sampler
from jaxrl_llm.types import InputError, Method, State

# Columns of the sample table, which a reward part cannot be called.
RESERVED = ('prompt', 'completion', 'reward', 'step', 'split')
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


class Run(NamedTuple):
  """The parts of a run, ready to loop."""

  state: State
  update: Callable[[State, Any], tuple[State, dict]]
  source: sources.Source
  evaluate: Callable[[State], held_out.Held]
  rates: dict[str, Callable]  # Role -> learning-rate schedule, for the log.
  mesh: jax.sharding.Mesh
  model: pretrained.Pretrained
  data: examples.Data  # Its digest and report; of a task nothing else.
  scores: reference.Scores | None  # To fill before the first batch.


def assemble(config) -> Run:
  """Every part of a run. Mistakes in the config are InputErrors."""
  sections.check(config)
  method = make_method(config)
  model = pretrained.load(config.model.name)
  dtype = choose(DTYPES, config.model.dtype, 'config.model.dtype')
  choose(REMAT, config.model.remat, 'config.model.remat')
  mesh = make_mesh(config)
  text = make_text(config, model)
  adapters = initial.lora(config.model)
  decoders = {
    role: Decoder(
      model.config,
      dtype,
      config.model.remat,
      scores=int(role in ('critic', 'reward')),
      spread=sharding.constrain(mesh),
      lora=None if role == 'ref' else adapters,
    )
    for role in ('policy', 'ref', 'critic', 'reward')
  }
  see = forward.make_forward(decoders)
  u = config.plan
  total = config.steps * u.epochs * u.minibatches
  tx, rates = make_optimizer(config, method, total)
  state = initial.state(
    model, roles(config, method), tx, mesh, lora=adapters, seed=config.seed
  )
  update_step = step.make_update_step(
    see,
    tx,
    method,
    epochs=u.epochs,
    minibatches=u.minibatches,
    microbatches=u.microbatches,
    constrain=sharding.constrain(mesh),
  )
  update = sharding.compile_step(update_step, state, mesh)
  data = make_data if 'data' in config else make_questions
  source, evaluate, found, scores = data(
    config, decoders, see, method, model, text, mesh
  )
  source = planned(source, u.epochs) if u.minibatches > 1 else source
  if u.get('pack'):
    source = rows_packed(source, packer(config, mesh))
  jax.eval_shape(update_step, state, specimen(config, source, state))
  return Run(state, update, source, evaluate, rates, mesh, model, found, scores)


def make_method(config) -> Method:
  """The method that config.method names."""
  options = config.method.to_dict()
  return build.method(options.pop('name'), **options)


def choose(table: dict, name: str, where: str):
  """table[name], or an InputError that lists the names."""
  if name not in table:
    raise InputError(f'{where}={name!r}. {build.near(name, table)}')
  return table[name]


def make_mesh(config) -> jax.sharding.Mesh:
  """The devices of a run, over which the prompts must divide."""
  axes, count = config.mesh.to_dict(), jax.device_count()
  try:
    mesh = sharding.make_mesh(**axes)
  except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
    raise InputError(
      f'config.mesh={axes} does not fit {count} devices. The product of the three is '
      'at most that; one may be -1 and takes what is left.'
    ) from error
  check_divides('config.source.prompts', config.source.prompts, mesh)
  return mesh


def check_divides(what: str, size: int, mesh) -> None:
  shards = sharding.shards(mesh)
  if size % shards:
    raise InputError(
      f'{what} are {size}, which do not divide over {shards} devices. Change that, or '
      'config.mesh.'
    )


def make_text(config, model) -> sources.Text:
  """The tokenizer as functions; prompt and completion must fit the model's window."""
  need = config.source.max_prompt + config.source.max_length
  if need > model.config.max_positions:
    raise InputError(
      f'config.source: max_prompt + max_length = {need} exceeds the window of '
      f'{config.model.name}, {model.config.max_positions} tokens.'
    )
  decode = lambda ids: model.tokenizer.decode(ids, skip_special_tokens=True)
  encode = lambda messages: pretrained.encode_chat(model.tokenizer, messages)
  return sources.Text(encode, decode, config.source.max_prompt)


# ---- The optimizer -------------------------------------------------------------------


def all_needs(method: Method) -> tuple[str, ...]:
  return (*method.needs, *method.prepare_needs, *method.measure_needs)


def roles(config, method: Method) -> dict[str, set[str]]:
  """The networks of a run: no reference where its log-probs are read from a file."""
  needs = all_needs(method)
  if not config.source.get('cache_reference'):
    return forward.roles(needs)
  if 'data' not in config or 'ref_logp' not in needs or 'aux/ref_logp' in needs:
    raise InputError(
      f'config.source.cache_reference: {config.method.name} has no reference whose '
      'log-probs of the stored completions are all it takes. Set it to False.'
    )
  return forward.roles(n for n in needs if n != 'ref_logp')


def make_optimizer(config, method: Method, total_updates: int):
  """An optimizer for every trained role; each needs its entry in config.optimizer."""
  trained = forward.roles(all_needs(method))['params']
  if missing := trained - set(config.optimizer):
    raise InputError(
      f'Method {config.method.name} trains {sorted(trained)}; config.optimizer lacks '
      f'{sorted(missing)}.'
    )
  chosen = {role: config.optimizer[role].to_dict() for role in sorted(trained)}
  return build.optimizer(chosen, total_updates)


# ---- Sources and evaluation ----------------------------------------------------------


def make_questions(config, decoders, see, method, model, text, mesh):
  """A source of sampled and scored completions, and greedy held-out accuracy."""
  del see, method
  task_options = config.task.to_dict()
  name = task_options.pop('name')
  task = build.call(
    build.find('jaxrl_llm.tasks', name, 'config.task.name'),
    task_options,
    f'config.task ({name})',
  )
  s = config.source
  stops = pretrained.stop_ids(model.tokenizer)
  sampler = lambda group: make_sampler(
    decoders['policy'], group=group, max_length=s.max_length, stop_ids=stops
  )
  rows = lambda arrays: sharding.put_batch(arrays, mesh)
  source = sources.on_policy(
    sample=sampler(s.group),
    policy=forward.policy,
    text=text,
    record=task.train,
    reward=make_reward(config, task),
    prompts=s.prompts,
    temperature=s.temperature,
    place=rows,
  )
  if s.name == 'until_mixed':
    source = sources.until_mixed(source, prompts=s.prompts, limit=s.limit)
  elif s.name != 'on_policy':
    raise InputError(
      f'config.source.name={s.name!r}. '
      + build.near(s.name, ('on_policy', 'until_mixed'))
    )
  batch = rounded(config.evaluation.batch, mesh)
  score = held_out.make_held_out(sampler(1), text, task, batch=batch, place=rows)
  found = examples.Data((), (), task.digest, task.report)
  return source, lambda state: score(forward.policy(state)), found, None


def make_reward(config, task):
  """config.rewards, part by part, as one weighted sum."""
  parts = {}
  for key, options in config.rewards.to_dict().items():
    where = f'config.rewards.{key}'
    if key in RESERVED:
      raise InputError(f'{where}: the sample table has a column {key!r}; rename it.')
    if not isinstance(options, dict) or 'name' not in options:
      raise InputError(f'{where}={options!r}; give name=..., weight=... and options.')
    factory = build.find('jaxrl_llm.rewards', options.pop('name'), where)
    weight = options.pop('weight', 1.0)
    if 'task' in build.signature(factory):
      options['task'] = task
    parts[key] = (weight, build.call(factory, options, where))
  return combine.weighted(parts)


def make_data(config, decoders, see, method, model, text, mesh):
  """A source of stored completions, and the method's metrics on held-out ones."""
  del decoders, text
  options = config.data.to_dict()
  name = options.pop('name')
  policies = {k: options.pop(k) for k in examples.POLICIES if k in options}
  load = build.find('jaxrl_llm.data', name, 'config.data.name')
  data = build.call(load, options, f'config.data ({name})')
  s = config.source
  coder = chat.coder(model.tokenizer, pretrained.stop_ids(model.tokenizer))
  data = data._replace(report=[*data.report, *examples.boundaries(coder, data.train)])
  encode = examples.Encoder(
    coder,
    max_prompt=s.max_prompt,
    max_length=s.max_length,
    bucket=s.get('bucket', 0),
    **policies,
  )
  parts = data.parts or [(len(data.train), 1.0)]
  index = order.shuffled(parts, s.prompts, config.seed)
  if encode.bucket:
    size = lambda i: encode.read(data.train[i]).size
    index = order.by_length(index, size, config.seed)
  source = sources.dataset(
    examples=data.train,
    encode=encode,
    prompts=s.prompts,
    index=index,
    share=sharding.host_rows(s.prompts, mesh),
    check=lambda batch: examples.check_kind(batch, config.method.name),
  )
  source, scores = sources.ahead(source), None
  packed = packer(config, mesh, whole=True) if config.plan.get('pack') else lambda b: b
  place = lambda batch: sharding.put_batch(packed(batch), mesh)
  batch = rounded(config.evaluation.batch, mesh)
  known = place
  if s.get('cache_reference'):
    scores = reference.Scores(see, data, encode, place, batch)
    source = reference.scored(source, scores)
    known = lambda batch: place(scores.into(batch, 'test'))
  measure = stored.make_stored(
    step.make_measure(see, method), data.test, encode, batch=batch, place=known
  )
  return source, measure, data, scores


def packer(config, mesh, whole: bool = False):
  """config.plan.pack as a function of a batch: in microbatches, or as a whole."""
  u = config.plan
  if u.minibatches > 1:
    raise InputError('config.plan: packing takes minibatches=1; set that, or pack=0.')
  pieces = 1 if whole else u.microbatches
  return lambda batch: packing.pack(
    batch, u.pack, microbatches=pieces, shards=sharding.shards(mesh)
  )


def rows_packed(source: sources.Source, packed) -> sources.Source:
  """Adds the layout of each batch."""

  def with_layout(state: State, step: int) -> sources.Drawn:
    drawn = source(state, step)
    return drawn._replace(batch=packed(drawn.batch))

  return with_layout


def rounded(batch: int, mesh) -> int:
  """Up to where it divides over the devices."""
  shards = sharding.shards(mesh)
  return -(-batch // shards) * shards


def specimen(config, source: sources.Source, state: State) -> types.Batch:
  """A batch of the shapes to come: a step is checked before any model runs."""
  s, u = config.source, config.plan
  if 'data' in config:
    return source(state, 0).batch
  shape = (s.prompts, s.group, s.max_length)
  zeros, full = np.zeros(shape, np.float32), np.full(shape[:2], s.max_length, np.int32)
  batch = types.make_batch(
    np.zeros((s.prompts, s.max_prompt), np.int32),
    np.full(s.prompts, s.max_prompt, np.int32),
    zeros.astype(np.int32),
    full,
  )
  order = np.zeros((s.prompts, u.epochs), np.int32) if u.minibatches > 1 else None
  return batch.replace(reward=zeros[..., 0], behavior_logp=zeros, order=order)


def planned(source: sources.Source, epochs: int) -> sources.Source:
  """Adds the host's order of prompts for each epoch, from (root key, step) alone."""

  def with_order(state: State, step: int) -> sources.Drawn:
    drawn = source(state, step)
    rng = np.random.default_rng([*np.asarray(jax.random.key_data(state.key)), step])
    n = drawn.batch.prompts.shape[0]
    order = np.stack([rng.permutation(n) for _ in range(epochs)], 1)
    return drawn._replace(batch=drawn.batch.replace(order=order.astype(np.int32)))

  return with_order
