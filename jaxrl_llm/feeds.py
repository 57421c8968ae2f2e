"""What a run learns from and is measured on; asking.py makes that of fresh answers."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import config_dict

from jaxrl_llm import (
  ahead,
  build,
  packing,
  reference,
  sharding,
  sources,
  step,
)
from jaxrl_llm.data import chat, examples, fitting, order
from jaxrl_llm.evaluate import held_out, stored
from jaxrl_llm.models import pretrained
from jaxrl_llm.types import Batch, InputError, State


class Feed(NamedTuple):
  """Batches to learn from, and what is held out."""

  source: sources.Source
  evaluate: Callable[[State], held_out.Held]
  data: examples.Data  # Its digest and report; of a task nothing else.
  scores: reference.Scores | None = None  # To fill before the first batch.
  extra: dict[str, np.ndarray] = {}  # Of every batch, as zeros.
  aux: sources.Source | None = None  # A second stream, already in the source's batches.
  safety: Callable[[State], dict[str, float]] | None = None  # Of the last policy.


def completions(config, see, method, model, mesh) -> Feed:
  """Stored completions, and the method's metrics on held-out ones."""
  data, encode = load_data(config, model)
  source, index = stored_rows(config, data, encode, mesh)
  pack = config.plan.get('pack')
  packed = packer(config, mesh, data.longest) if pack else lambda b: b
  place = lambda batch: sharding.put_batch(packed(batch), mesh)
  shards, known, scores = sharding.shards(mesh), place, None
  batch = -(-config.evaluation.batch // shards) * shards
  if config.source.get('cache_reference'):
    drawn = {i for step in range(config.steps) for i in index(step)}
    scores = reference.Scores(see, data, encode, place, batch, drawn)
    source = sources.changed(source, lambda b, *_: scores.into(b, 'train'))
    known = lambda batch: place(scores.into(batch, 'test'))
  measure = stored.make_stored(
    step.make_measure(see, method),
    functools.partial(step.weigh, method=method),
    data.test,
    encode,
    batch=batch,
    place=known,
  )
  return Feed(source, measure, data, scores)


def pretraining(config, model, mesh) -> sources.Source:
  """config.pretrain: a demonstration for every prompt of a batch."""
  p = config.pretrain.to_dict()
  own = dict(data=p['data'], source=p['source'] | {'prompts': config.source.prompts})
  own |= dict(seed=config.seed, method={'name': 'sft'})
  own = config_dict.ConfigDict(own)
  return stored_rows(own, *load_data(own, model), mesh)[0]


def stored_rows(config, data, encode, mesh) -> tuple[sources.Source, order.Index]:
  """This process's rows of the training examples of each step, and which they are."""
  index, read = drawing(config, data, encode)
  source = sources.dataset(
    size=len(data.train),
    read=read,
    encode=encode,
    prompts=config.source.prompts,
    index=index,
    share=sharding.host_rows(config.source.prompts, mesh),
  )
  return sources.prefetched(source), index


def load_data(config, model) -> tuple[examples.Data, examples.Encoder]:
  """The data set that config.data names, and how it becomes batches."""
  options = config.data.to_dict()
  policies = {k: options.pop(k) for k in examples.POLICIES if k in options}
  data = build.made('jaxrl_llm.data', options, 'config.data')
  coder = chat.coder(model.tokenizer, pretrained.stop_ids(model.tokenizer))
  s = config.source
  encode = examples.Encoder(
    coder,
    max_prompt=s.max_prompt,
    max_length=s.max_length,
    bucket=s.get('bucket', 0),
    **policies,
  )
  data = fitting.fitted(data, encode, config.method)
  report = [*data.report, *examples.boundaries(coder, data.train)]
  return data._replace(report=report), encode


def drawing(config, data, encode) -> tuple[order.Index, Callable]:
  """A step's training examples, by config.seed, and how one of them is read."""
  s = config.source
  parts = data.parts or [(len(data.train), 1.0)]
  index = order.shuffled(parts, s.prompts, config.seed)
  read = lambda i: encode.read(data.train[i])
  if encode.bucket:  # A window is read for its lengths, and again for its batches.
    read = functools.lru_cache(maxsize=2 * order.WINDOW * s.prompts)(read)
    index = order.by_length(index, lambda i: read(i).size, config.seed)
  return index, read


# ---- Batches of older parameters -----------------------------------------------------


OLDER = 'older parameters sample what it learns from'


def refuse_uncorrected(config, which: str, why: str = OLDER) -> None:
  """Refuses what others than the trainer's parameters sampled, `why`, where the step
  does not make up for it: plan.trust_sampler does by the ratio of the method's loss.
  """
  u, method = config.plan, config.method.to_dict()
  ratio = 'old_logp' in build.method(**method).needs
  if u.get('importance') or (u.get('trust_sampler') and ratio):
    return
  other = 'or config.plan.trust_sampler'
  if not ratio:
    other = f"and not plan.trust_sampler: {method['name']}'s loss has no ratio"
  raise InputError(
    f"config.source.{which}: {why}. Set config.plan.importance='token', or another, "
    f'{other}.'
  )


def overlapped(feed: Feed, config, mesh) -> Feed:
  """The feed, drawn ahead in a thread if config.source.ahead says so (ahead.py)."""
  s = config.source
  if not s.get('ahead'):
    return feed
  refuse_uncorrected(config, 'ahead')
  reads = [k for k in ('replay', 'pool', 'mixture') if s.get(k)]
  reads += [s.name] if s.name == 'rationed' else []
  if reads:
    raise InputError(
      f'config.source.ahead keeps the policy that sampled; {reads} reads more of the '
      'state than that. Unset it, or set ahead=False.'
    )
  if mesh.size > 1 or jax.process_count() > 1:
    raise InputError(
      f'config.source.ahead runs programs from two threads, which {mesh.size} devices '
      'may meet in different orders. Set ahead=False, or config.mesh.fsdp=1.'
    )
  both = ahead.overlapped(feed.source, feed.evaluate, last=config.steps)
  return feed._replace(source=both[0], evaluate=both[1])


# ---- The plan of a batch -------------------------------------------------------------


def laid_out(source: sources.Source, config, mesh, longest: int = 0) -> sources.Source:
  """What config.plan asks for beside the rows: their order, or their packing.

  Args:
    longest: tokens of the longest group, where that is known.
  """
  u = config.plan
  source = planned(source, u.epochs) if u.minibatches > 1 else source
  if u.get('padding_free'):
    return unpadded(source, u, mesh)
  if not u.get('pack'):
    return source
  packed = packer(config, mesh, longest)
  return sources.changed(source, lambda batch, *_: packed(batch))


def unpadded(source: sources.Source, plan, mesh) -> sources.Source:
  """Its batches, to be computed without their padding."""
  if plan.get('pack'):
    raise InputError('config.plan: padding_free leaves nothing to pack; set pack=0.')
  if jax.process_count() > 1:
    raise InputError('config.plan: padding_free takes one process; unset it.')
  parts = {k: plan[k] for k in ('minibatches', 'microbatches')}
  room = functools.partial(packing.room, **parts, rows=sharding.shards(mesh))
  return sources.changed(source, lambda batch, *_: batch.replace(room=room(batch)))


def packer(config, mesh, longest: int):
  """config.plan.pack, most slots of a row, as a function of a batch. Where the longest
  group is known rows are no wider than it needs, in steps of 64: attention pays for it.
  """
  u, shards = config.plan, sharding.shards(mesh)
  if u.minibatches > 1:
    raise InputError('config.plan: packing takes minibatches=1; set that, or pack=0.')
  if jax.process_count() > 1:
    raise InputError('config.plan: packing takes one process; set pack=0.')
  rows = -(-u.get('pack_rows', 1) // shards) * shards
  packing.check(longest, u.pack)
  width = min(u.pack, -(-longest // 64) * 64) if longest else u.pack
  return functools.partial(packing.pack, width=width, rows=rows)


def planned(source: sources.Source, epochs: int) -> sources.Source:
  """Adds the host's order of prompts for each epoch, from (root key, step) alone."""

  def with_order(batch: Batch, state: State, step: int) -> Batch:
    rng = sources.host_rng(state, step)
    n = batch.prompts.shape[0]
    order = np.stack([rng.permutation(n) for _ in range(epochs)], 1)
    return batch.replace(order=order.astype(np.int32))

  return sources.changed(source, with_order)
