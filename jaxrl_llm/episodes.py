"""Conversations with an environment as rows of a batch: turn by turn, in step.

A row is a first prompt and then turn 1, the reply, turn 2 and so on, as the ids that
were sampled and the ids of the replies. The mask is 1 on the policy's tokens, and
extra['turn'] [B, G, T] counts its turns from 1; replies are turn 0. A row ends with the
policy's own token.

Every row of a batch samples one turn at a time, its conversation so far its prompt. A
draw depends on (key, turn, row, position) alone.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_llm import sources, types
from jaxrl_llm.rewards.combine import Scorer
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.rollout import draw
from jaxrl_llm.sources import Drawn, Source, Text
from jaxrl_llm.tasks.records import Env, Record
from jaxrl_llm.types import Batch, InputError, State

# What the sampler says of each token, and what stands beside one that is only read.
DRAWN = {'logp': 0.0, 'kept': 1.0, 'within': np.inf}


class Row(NamedTuple):
  """An episode so far."""

  record: Record
  seed: int  # For the sampler: no two rows of a batch have the same.
  prompt: list[int]
  state: Any  # The environment's.
  room: int  # Tokens after the prompt, those of replies included.
  turns: int  # So many and no more.
  count: int = 0  # Turns taken.
  reply: str | None = None  # Said by the environment, not yet a part of the row.
  over: bool = False
  truncated: bool = False
  tokens: tuple[int, ...] = ()
  turn: tuple[int, ...] = ()
  logp: tuple[float, ...] = ()
  kept: tuple[float, ...] = ()
  within: tuple[float, ...] = ()
  before: 'Row | None' = None  # As it was when its last turn began.


class Partner(NamedTuple):
  """What rows are played with."""

  sample: Callable  # Of group 1 (rollout.sampler.make_sampler).
  text: Text
  env: Env
  between: Callable[[str, Sequence[int]], list[int]]  # chat.replier
  room: int  # Tokens of an episode after its first prompt.
  turns: int


def begin(partner: Partner, record: Record, seed: int) -> Row:
  """A row before its first turn."""
  messages, state = partner.env.start(record)
  prompt = partner.text.encode(messages, record.template)
  return Row(record, seed, prompt, state, partner.room, partner.turns)


def opened(partner: Partner, row: Row) -> Row:
  """The row with the reply in it, or over for want of room."""
  if row.over or row.reply is None:
    return row
  ids = partner.between(row.reply, row.tokens)
  if len(row.tokens) + len(ids) >= row.room:
    return row._replace(over=True, truncated=True)
  read = {name: (blank,) * len(ids) for name, blank in DRAWN.items()}
  return grown(row, ids, 0, read)._replace(reply=None)


def spoken(partner: Partner, row: Row, ids, drawn: dict, stopped: bool) -> Row:
  """The row with a turn of the policy's, and what the environment makes of it."""
  state, reply = partner.env.step(row.state, partner.text.decode(ids))
  found = grown(row, ids, row.count + 1, drawn)
  cut = not stopped and len(found.tokens) >= row.room
  ended = dict(over=reply is None or cut, truncated=cut, before=row)
  return found._replace(state=state, reply=reply, count=row.count + 1, **ended)


def grown(row: Row, ids, turn: int, drawn: dict) -> Row:
  """The row with more tokens, all of one turn, and what of DRAWN is said of them."""
  had = row._asdict()
  return row._replace(
    tokens=(*row.tokens, *map(int, ids)),
    turn=(*row.turn, *(turn,) * len(ids)),
    **{name: (*had[name], *map(float, x)) for name, x in drawn.items()},
  )


def play(partner: Partner, params, rows, options, key, version, step) -> list[Row]:
  """The rows to their ends, or through as many turns as they have.

  Args:
    options: of so many rows (rollout.draw.options); its max_length is of a turn.
    key: of this play; a turn's is folded in.
    step: for messages.
  """
  width = partner.text.max_prompt + partner.room
  ids = np.array([r.seed for r in rows], np.int32)
  for turn in range(partner.turns):
    rows = [opened(partner, r) if r.count < r.turns else r for r in rows]
    left = [0 if r.over or r.count >= r.turns else r.room - len(r.tokens) for r in rows]
    if not any(left):
      break
    tokens, length = sources.pad([(*r.prompt, *r.tokens) for r in rows], width)
    how = options(len(rows))
    how = how._replace(max_length=np.minimum(left, how.max_length).astype(np.int32))
    found = partner.sample(
      params, tokens, length, ids, how, jax.random.fold_in(key, turn), version
    )
    found = jax.device_get(found)
    sources.check_finite(found, step)
    rows = [heard(partner, r, found, i) if left[i] else r for i, r in enumerate(rows)]
  return rows


def heard(partner: Partner, row: Row, found: types.Rollout, i: int) -> Row:
  """Row i with what the sampler drew for it."""
  size = found.length[i, 0]
  drawn = dict(logp=found.behavior_logp, kept=found.kept_mass, within=found.keep_within)
  said = {k: x[i, 0, :size] for k, x in drawn.items()}
  stopped = bool(found.stop_reason[i, 0])
  return spoken(partner, row, found.tokens[i, 0, :size], said, stopped)


# ---- Sources -------------------------------------------------------------------------


def episodes(
  *,
  partner: Partner,
  record: Callable[[int], Record],
  reward: Scorer,
  prompts: int,
  group: int,
  options: Callable[[int], draw.Options],
  policy=lambda state: state.params['policy'],
) -> Source:
  """Fresh episodes of the current policy, scored. See sources.on_policy."""

  def source(state: State, step: int) -> Drawn:
    start = time.perf_counter()
    ids = range(step * prompts, (step + 1) * prompts)
    seeds = [(i, i * group + g) for i in ids for g in range(group)]
    rows = [begin(partner, record(i), seed) for i, seed in seeds]
    sources.pad([r.prompt for r in rows], partner.text.max_prompt)
    key = jax.random.fold_in(state.key, step)
    rows = play(partner, policy(state), rows, options, key, state.step, step)
    sampled = time.perf_counter()
    return scored(partner, rows, ids, options, reward, (start, sampled))

  return source


def episode_pairs(
  *,
  partner: Partner,
  record: Callable[[int], Record],
  reward: Scorer,
  prompts: int,
  group: int,
  options: Callable[[int], draw.Options],
  policy=lambda state: state.params['policy'],
) -> Source:
  """Groups of two episodes that part at a turn h, drawn from 1 to partner.turns.

  What was said before turn h, by the policy too, is the group's prompt; h is then turn
  1. An episode that is over before turn h parts at its last one.
  """
  if group != 2:
    raise InputError(
      f'config.source.group={group}: episode_pairs draws pairs. Set it to 2.'
    )

  def source(state: State, step: int) -> Drawn:
    start = time.perf_counter()
    ids = range(step * prompts, (step + 1) * prompts)
    key = jax.random.split(jax.random.fold_in(state.key, step))
    chosen = sources.host_rng(state, step).integers(1, partner.turns + 1, prompts)
    rows = [begin(partner, record(i), i) for i in ids]
    sources.pad([r.prompt for r in rows], partner.text.max_prompt)
    rows = [r._replace(turns=int(h) - 1) for r, h in zip(rows, chosen)]
    told = (options, key[0], state.step, step)
    rows = play(partner, policy(state), rows, *told)
    before = sum(np.count_nonzero(r.turn) for r in rows)
    rows = [forked(partner, r, g) for r in rows for g in range(2)]
    told = (options, key[1], state.step, step)
    rows = play(partner, policy(state), rows, *told)
    sampled = time.perf_counter()
    drawn = scored(partner, rows, ids, options, reward, (start, sampled))
    tokens = drawn.metrics['tokens'] + before
    return drawn._replace(metrics=drawn.metrics | {'tokens': float(tokens)})

  return source


def forked(partner: Partner, row: Row, member: int) -> Row:
  """Member 0 or 1 of a pair, which goes on from where `row` is, or was a turn ago."""
  row = opened(partner, row)
  row = row.before if row.over else row
  return Row(
    record=row.record,
    seed=2 * row.seed + member,
    prompt=[*row.prompt, *row.tokens],
    state=row.state,
    room=row.room - len(row.tokens),
    turns=partner.turns - row.count,
  )


SOURCES = {
  'episodes': episodes,
  'episode_pairs': episode_pairs,
}  # By config.source.name.


# ---- Rows to a batch -----------------------------------------------------------------


def scored(partner: Partner, rows, ids, options, reward: Scorer, clock) -> Drawn:
  """Finished rows as a batch of groups, and what they were worth."""
  seen = to_samples(partner, rows)
  total, parts = reward(seen)
  said = {k: np.array([s.parts[k] for s in seen], np.float32) for k in seen[0].parts}
  batch = to_batch(partner, rows, ids, options, total, said)
  first = rows[:: len(rows) // len(ids)]
  batch = sources.told_apart(batch, [r.record for r in first])
  metrics = sources.describe(batch, parts)
  metrics |= {f'episode/{k}': float(x.mean()) for k, x in said.items()}
  metrics |= {
    'turns': float(np.mean([r.count for r in rows])),
    **sources.seconds(*clock),
  }
  shown = sources.table(seen, total, parts)
  return Drawn(batch, metrics, shown)


def to_samples(partner: Partner, rows: Sequence[Row]) -> list[Sample]:
  """One `Sample` per episode; its completion has the replies in it."""
  score = [partner.env.score(r.state) for r in rows]
  return [
    Sample(
      prompt=r.record.messages[-1]['content'],
      completion=partner.text.decode(r.tokens),
      tokens=int(np.count_nonzero(r.turn)),
      truncated=r.truncated,
      record=r.record,
      score=value,
      parts=parts,
    )
    for r, (value, parts) in zip(rows, score)
  ]


def to_batch(partner: Partner, rows, ids, options, total, parts) -> Batch:
  """The ids themselves, never re-encoded text. `parts` of the scores go to extra."""
  groups, size = len(ids), len(rows) // len(ids)
  shape = (groups, size)
  wide = lambda name, dtype, blank: filled(rows, name, partner.room, dtype, blank)
  shaped = lambda x: x.reshape(*shape, *x.shape[1:])
  prompts, length = sources.pad(
    [r.prompt for r in rows[::size]], partner.text.max_prompt + partner.room
  )
  tokens, turn = shaped(wide('tokens', np.int32, 0)), shaped(wide('turn', np.int32, 0))
  sizes = shaped(np.array([len(r.tokens) for r in rows], np.int32))
  how = options(len(rows))
  said = {k: shaped(wide(k, np.float32, blank)) for k, blank in DRAWN.items()}
  cut = draw.truncates(how).any()
  return types.make_batch(prompts, length, tokens, sizes).replace(
    mask=(turn > 0).astype(np.float32),
    prompt_id=np.array(ids, np.int32),
    truncated=shaped(np.array([r.truncated for r in rows], np.float32)),
    temperature=shaped(how.temperature),
    behavior_logp=said['logp'],
    kept_mass=said['kept'] if cut else None,
    keep_within=said['within'] if cut else None,
    reward=shaped(total).astype(np.float32),
    extra={'turn': turn} | {k: shaped(x) for k, x in parts.items()},
  )


def filled(rows: Sequence[Row], name: str, width: int, dtype, blank) -> np.ndarray:
  """A field of the rows as [N, width], right-padded."""
  out = np.full((len(rows), width), blank, dtype)
  for i, row in enumerate(rows):
    values = row._asdict()[name]
    out[i, : len(values)] = values
  return out
