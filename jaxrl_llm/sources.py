"""Where batches come from: (state, step) -> Drawn.

A source is a function of the state and the step alone. It keeps nothing between calls,
so a resumed run sees what an uninterrupted one would have seen.
"""

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_llm import beside, process, types
from jaxrl_llm.data.examples import Coded, Encoder, collate
from jaxrl_llm.ops import extras
from jaxrl_llm.rewards.combine import Scorer
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.rollout import draw
from jaxrl_llm.tasks.records import Record
from jaxrl_llm.types import Batch, InputError, Rollout, State


class Drawn(NamedTuple):
  """A batch, what it cost, and what it looks like to a person."""

  batch: Batch
  metrics: dict[str, float]
  samples: list[dict]  # Rows of log.sample_table.


Source = Callable[[State, int], Drawn]


class Text(NamedTuple):
  """Between text and token ids."""

  encode: Callable[..., list[int]]  # Messages, and what else the template reads.
  decode: Callable[[Sequence[int]], str]
  max_prompt: int  # Tokens; a longer prompt is an error, never cut.


class Ask(NamedTuple):
  """What turns questions into scored completions."""

  sample: Callable  # See rollout.sampler.make_sampler.
  text: Text
  record: Callable[[int], Record]  # Of a Batch.prompt_id.
  reward: Scorer  # See rewards.combine.weighted.
  # Of so many prompts (rollout.draw.options); the temperature is the trained policy's.
  options: Callable[[int], draw.Options]
  policy: Callable[[State], Any]  # The parameters to sample with (forward.policy).
  accuracy: str = ''  # The part of the reward that says what is right; all of it.


def on_policy(
  ask: Ask,
  *,
  prompts: int,
  greedy=None,
  tell: beside.Tell = beside.nothing,
  steps: str = '',
  index: Callable[[State, int], Sequence[int]] | None = None,
) -> Source:
  """Fresh completions of the current policy, scored. Step i asks i * prompts and on.

  Args:
    ask: with a sampler of the group's size.
    prompts: groups per batch.
    greedy: a `sample` of one completion a prompt. Its likeliest completions are scored
      too: extra['greedy_reward'] [B] of the batch, for remax.
    tell: what else is said of the completions (beside.py).
    steps: what a step ends with; each has a reward then (process.py), for grpo_process.
    index: the records of a step, each once; the next `prompts` if None.
  """
  text, reward = ask.text, ask.reward

  def source(state: State, step: int) -> Drawn:
    start = time.perf_counter()
    following = range(step * prompts, (step + 1) * prompts)
    ids = np.array(index(state, step) if index else following, np.int32)
    records = [ask.record(int(i)) for i in ids]
    key, how = jax.random.fold_in(state.key, step), ask.options(prompts)
    asked = (records, text, ask.policy(state), ids)
    tokens, length, rollout = completed(ask.sample, *asked, how, key, state.step)
    check_finite(rollout, step)
    sampled = time.perf_counter()
    rows = to_samples(rollout, records, text)
    total, parts = reward(rows)
    more = tell(rows, rollout.length.shape)
    cut = draw.truncates(how).any()
    batch = to_batch(tokens, length, rollout, total, truncated=cut)
    batch = told_apart(batch, records, parts.get(ask.accuracy))
    batch = batch.replace(extra=batch.extra | more.extra)
    metrics = describe(batch, parts) | more.metrics
    if greedy:
      cold = how._replace(temperature=np.zeros_like(how.temperature))
      alone = completed(greedy, *asked, cold, key, state.step)[2]
      likeliest = reward(to_samples(alone, records, text))[0]
      batch, metrics = with_baseline(batch, metrics, alone, likeliest)
    if steps:
      batch = process.with_steps(batch, rows, text.decode, reward, steps)
    shown = table(rows, total, parts | more.columns)
    return Drawn(batch, metrics | seconds(start, sampled), shown)

  return source


def until_mixed(source: Source, *, prompts: int, limit: int) -> Source:
  """DAPO's dynamic sampling: draws until `prompts` groups have mixed rewards.

  Groups whose rewards are all equal teach nothing and are thrown away, or of which all
  or none are right where extra['accuracy'] says that; what they cost is in 'rollouts'.
  After `limit` draws the batch is filled up with tied groups, which have zero
  advantage. Draw a of step s is step s * limit + a of `source`.
  """

  def mixed(state: State, step: int) -> Drawn:
    kept, spare, drawn = [], [], []
    while len(kept) < prompts and len(drawn) < limit:
      drawn.append(source(state, step * limit + len(drawn)))
      b = drawn[-1].batch
      worth = b.extra.get('accuracy', b.reward)
      for i, tie in enumerate(np.ptp(worth, axis=1) == 0):
        (spare if tie else kept).append((len(drawn) - 1, i))
    chosen = (kept + spare)[:prompts]
    batch = jax.tree.map(
      lambda *xs: np.stack([xs[d][i] for d, i in chosen]), *[d.batch for d in drawn]
    )
    total = lambda name: sum(d.metrics[name] for d in drawn)
    metrics = {k: total(k) / len(drawn) for k in drawn[0].metrics} | {
      k: total(k) for k in ('rollouts', 'tokens', 'seconds/rollout', 'seconds/reward')
    }
    return Drawn(batch, metrics, drawn[-1].samples)

  return mixed


def dataset(
  *,
  size: int,
  read: Callable[[int], Coded],
  encode: Encoder,
  prompts: int,
  index: Callable[[int], Sequence[int]],
  share: slice = slice(None),
) -> Source:
  """Batches of stored examples. The state is not looked at.

  Args:
    size: examples of the data set.
    read: one of them as token ids (Encoder.read), when its turn comes.
    encode: says how wide a batch is.
    prompts: examples per batch.
    index: step to the examples of its batch (data/order.py).
    share: the rows of a batch that this process reads (sharding.host_rows).
  """

  def source(state: State, step: int) -> Drawn:
    del state
    everyone = index(step)
    mine = everyone[share]
    # All processes must agree on how wide a batch is.
    coded = {i: read(i) for i in (everyone if encode.bucket else mine)}
    widths = encode.widths(list(coded.values()))
    batch, dropped, cut = collate([coded[i] for i in mine], *widths)
    batch = batch.replace(prompt_id=np.array(mine, np.int32))
    metrics = {
      'tokens': float(batch.mask.sum()),
      'filled': float(batch.mask.mean()),
      'epoch': step * prompts / size,
      'dropped': float(dropped),
      'cut': float(cut),
    }
    return Drawn(batch, metrics, [])

  return source


def prefetched(source: Source, depth: int = 2) -> Source:
  """The same batches, drawn in a thread while the devices work on earlier ones.

  For a source that does not look at the state. An error comes when its batch is due.
  """
  pool, coming = concurrent.futures.ThreadPoolExecutor(1), {}

  def drawn(state: State, step: int) -> Drawn:
    del state
    wanted = range(step, step + depth + 1)
    for other in [s for s in coming if s not in wanted]:
      coming.pop(other).cancel()
    for s in wanted:
      if s not in coming:
        coming[s] = pool.submit(source, None, s)
    return coming.pop(step).result()

  return drawn


def changed(source: Source, change: Callable[[Batch, State, int], Batch]) -> Source:
  """The same source with `change(batch, state, step)` in place of its batches."""

  def drawn(state: State, step: int) -> Drawn:
    found = source(state, step)
    return found._replace(batch=change(found.batch, state, step))

  return drawn


def host_rng(state: State, step: int) -> np.random.Generator:
  """The host's draws of a step, from (root key, step) alone."""
  return np.random.default_rng([*np.asarray(jax.random.key_data(state.key)), step])


def completed(sample, records, text: Text, params, ids, how, key, version):
  """The prompts of records [N, P], their lengths, and the `Rollout` of `sample`."""
  asked = [text.encode(r.messages, r.template) for r in records]
  tokens, length = pad(asked, text.max_prompt)
  rollout = sample(params, tokens, length, ids, how, key, version)
  return tokens, length, jax.device_get(rollout)


def pad(rows: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
  """Token lists to ([N, width] int32 right-padded with 0, lengths [N])."""
  length = np.array([len(r) for r in rows], np.int32)
  if (long := int(length.max())) > width:
    raise InputError(
      f'A prompt of {long} tokens does not fit in {width}. Raise '
      f'config.source.max_prompt to {long} or shorten the prompts.'
    )
  if not length.all():
    raise InputError(f'Prompt {int(np.argmin(length))} of the batch has no tokens.')
  tokens = np.zeros((len(rows), width), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
  return tokens, length


def trimmed(batch: Batch) -> Batch:
  """A sampled batch without the columns that no row needs, in few widths."""
  p = types.bucket(batch.prompt_length.max(), batch.prompts.shape[-1])
  t = types.bucket(batch.length.max(), batch.completions.shape[-1])
  sampled = ('completions', 'mask', 'behavior_logp', 'kept_mass', 'keep_within')
  cut = {k: x[..., :t] for k in sampled if (x := vars(batch)[k]) is not None}
  if batch.row_prompt is not None:
    own = types.bucket(batch.row_prompt_length.max(), batch.row_prompt.shape[-1])
    cut['row_prompt'] = batch.row_prompt[..., :own]
  extra = {
    k: x[..., :t] if x.ndim == 3 and k != 'duel' else x for k, x in batch.extra.items()
  }
  return batch.replace(prompts=batch.prompts[:, :p], extra=extra, **cut)


def check_finite(rollout: Rollout, step: int) -> None:
  """Refuses samples whose log-probs are NaN or infinite."""
  if bad := int((~np.isfinite(rollout.behavior_logp)).any(-1).sum()):
    raise InputError(
      f'Step {step + 1}: the sampler reports log-probs that are not finite in {bad} of '
      f'{rollout.length.size} completions. The parameters have diverged: go back to an '
      'earlier checkpoint, and lower the learning rate.'
    )


def to_samples(rollout: Rollout, records: Sequence[Record], text: Text) -> list[Sample]:
  """One `Sample` per completion, prompt by prompt."""
  return [
    Sample(
      prompt=record.messages[-1]['content'],
      completion=text.decode(rollout.tokens[b, g, : rollout.length[b, g]]),
      tokens=int(rollout.length[b, g]),
      truncated=not rollout.stop_reason[b, g],
      record=record,
    )
    for b, record in enumerate(records)
    for g in range(rollout.tokens.shape[1])
  ]


def to_batch(
  prompts, prompt_length, rollout: Rollout, reward: np.ndarray, *, truncated: bool
) -> Batch:
  """The sampled ids themselves, never re-encoded text, as a batch."""
  batch = types.make_batch(prompts, prompt_length, rollout.tokens, rollout.length)
  return batch.replace(
    prompt_id=rollout.prompt_id,
    truncated=(rollout.stop_reason == 0).astype(np.float32),
    temperature=rollout.temperature,
    behavior_logp=rollout.behavior_logp,
    kept_mass=rollout.kept_mass if truncated else None,
    keep_within=rollout.keep_within if truncated else None,
    reward=reward.reshape(rollout.length.shape).astype(np.float32),
  )


def told_apart(batch: Batch, records: Sequence[Record], accuracy=None) -> Batch:
  """The batch with extra['question'] [B], the same whenever a question comes again,
  extra['solved'] [B], its share of right completions (extras.visits), and, if there is
  one, extra['accuracy'] [B, G].
  """
  ids = np.array([r.id for r in records], np.int32)
  batch = batch.replace(extra=batch.extra | {'question': ids})
  if accuracy is not None:
    batch = with_extra(batch, 'accuracy', accuracy.reshape(batch.length.shape))
  return with_extra(batch, 'solved', extras.visits(batch)[0])


def with_extra(batch: Batch, name: str, x: np.ndarray) -> Batch:
  """The batch with `x` as one more of `extra`."""
  return batch.replace(extra=batch.extra | {name: np.float32(x)})


def with_baseline(batch: Batch, metrics, greedy: Rollout, reward: np.ndarray):
  """The batch with the rewards [B] of greedy completions, and what these cost."""
  return with_extra(batch, 'greedy_reward', reward), metrics | {
    'reward_greedy': float(reward.mean()),
    'tokens': metrics['tokens'] + float(greedy.length.sum()),
    'rollouts': metrics['rollouts'] + len(reward),
  }


def seconds(start: float, sampled: float) -> dict[str, float]:
  """The time of sampling, which has ended at `sampled`, and of scoring, which ends."""
  now = time.perf_counter()
  return {'seconds/rollout': sampled - start, 'seconds/reward': now - sampled}


def describe(batch: Batch, parts: dict[str, np.ndarray]) -> dict[str, float]:
  """What a scored batch says of itself."""
  there = batch.valid > 0
  groups = [r[v] for r, v in zip(batch.reward, there)]
  means = {f'reward/{name}': float(x.mean()) for name, x in parts.items()}
  if batch.kept_mass is not None:
    means['kept_mass'] = float((batch.mask * batch.kept_mass).sum() / batch.mask.sum())
  return means | {
    'reward': float(batch.reward[there].mean()),
    'reward_std': float(np.mean([r.std() for r in groups])),
    'groups_tied': float(np.mean([np.ptp(r) == 0 for r in groups])),
    'length': float(batch.mask.sum(-1)[there].mean()),
    'truncated': float(batch.truncated[there].mean()),
    'tokens': float(batch.mask.sum()),
    'rollouts': float(there.sum()),
  }


def table(rows: Sequence[Sample], reward: np.ndarray, columns) -> list[dict]:
  """The rows of log.sample_table."""
  return [
    {'prompt': row.prompt, 'completion': row.completion, 'reward': float(reward[i])}
    | {name: float(x[i]) for name, x in columns.items()}
    for i, row in enumerate(rows)
  ]
