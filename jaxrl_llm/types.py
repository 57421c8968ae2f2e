"""The few types every file shares.

Axes, everywhere: B prompts, G completions per prompt, P prompt positions, T completion
positions, V vocabulary. A rollout group is `[B, G]`; a preference pair is a group of
two (0 chosen, 1 rejected); a demonstration is a group of one; unpaired labels are
groups of one, or of all that a prompt has.

Four log-probabilities, four names, never mixed: `logp` (now, differentiable),
`old_logp` (at the start of the update), `behavior_logp` (as the sampler reported it),
`ref_logp` (frozen reference).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax
import jax
import numpy as np

Array = jax.Array
BGT = BG = Array  # An alias names the shape it stands for.
Params = dict[str, Any]  # One subtree per role: 'policy', 'critic', 'reward', 'ref'.
Metrics = dict[str, Any]  # name -> (sum, weight); 'max/name' -> value, reduced by max.


class InputError(Exception):
  """A user's mistake. The message names the thing, its place and the remedy."""


@flax.struct.dataclass
class Layout:
  """How the tokens of a batch lie in rows (packing.py).

  M pieces, of which `count` are in use, of R rows of S slots. A group lies in one row.
  """

  source: Array  # [M, R, S] int32, into all prompts and then all completions, flat.
  position: Array  # [M, R, S] int32, within its prompt and completion.
  group: Array  # [M, R, S] int32, from 1; 0 is padding.
  branch: Array  # [M, R, S] int32, 0 in the prompt and 1 + g in completion g.
  # A row's completion tokens in order, first in S places; behind them nothing is said.
  said: Array  # [M, R, S] int32, the slot of a completion's token; -1 behind the last.
  before: Array  # [M, R, S] int32, the slot of the token before it.
  back: Array  # [B, G, T] int32, into R * S such places of the group's piece.
  piece: Array  # [B] int32, the piece of each group.
  count: Array  # [1] int32.


class Room(NamedTuple):
  """How many slots the tokens of a batch get where they lie without padding.

  Of any part of the batch that is computed at once, in `rows` rows of whole groups, at
  most so many eighths of a row's prompt and completion slots hold tokens.
  """

  rows: int
  prompts: int
  completions: int


@flax.struct.dataclass
class Batch:
  """What an update sees. Arrays only; `None` where a method has no use for one.

  Prompts and completions are right-padded; attention derives from the lengths, the
  loss from `mask`. No mask is ever derived from token ids: pad may equal EOS.
  """

  prompts: Array  # [B, P] int32.
  prompt_length: Array  # [B] int32, at least 1.
  completions: BGT  # [B, G, T] int32.
  length: BG  # int32 tokens, the stop token included.
  mask: BGT  # float32, 1 where the policy chose the token (the stop token included).
  prompt_id: Array  # [B] int32.
  valid: BG  # float32, 1 where the row takes part (not filtered, not failed).
  truncated: BG  # float32, 1 where the row ended for want of room.
  temperature: BG  # float32, divides the logits; 1 for data.
  reward: BG | None = None  # Score, label or rank of each completion.
  behavior_logp: BGT | None = None  # As reported by the sampler.
  kept_mass: BGT | None = None  # Where sampling is truncated; see Rollout.
  # Where policies are truncated as the sampler was: log-prob and entropy are then of
  # what was drawn from, and a reference is cut by the same mark. See Rollout.
  keep_within: BGT | None = None
  row_prompt: Array | None = None  # [B, G, P], where a row's prompt is not its group's.
  row_prompt_length: BG | None = None
  order: Array | None = None  # [B, epochs] int32: the host's order of prompts.
  layout: Layout | None = None  # The host's packing; without one, rows are padded.
  # Padded rows, computed without their padding. Static: each value is a program.
  room: Room | None = flax.struct.field(pytree_node=False, default=None)
  # Filled in by the step, once per batch, without gradient:
  old_logp: BGT | None = None
  ref_logp: BGT | None = None
  dpo_logp: BGT | None = None  # Of the frozen policy that rto takes rewards from.
  teacher_logp: BGT | None = None  # Of the frozen policy that distillation imitates.
  old_prm_logp: BGT | None = None  # Of the reward model that prime trains.
  ema_logp: BGT | None = None  # Of the average of past policies (controllers.follow).
  old_value: BGT | None = None
  old_cost_value: BGT | None = None  # Of the critic of costs (safe_rlhf).
  old_twin_value: BGT | None = None  # Of a second critic of rewards (safe).
  old_entropy: BGT | None = None
  old_odds: BGT | None = None  # Of the two words of a verdict (rlbff_generative).
  # Filled in by a method's `prepare`:
  advantage: Array | None = None  # [B, G, T], [B, G, 1] or [B, G].
  target: BGT | None = None  # Value target.
  # Filled in by the step, once per minibatch (see ops/weights.py):
  weight: BGT | None = None  # Token weights; a loss is a weighted *sum*.
  seq_weight: BG | None = None
  prompt_weight: Array | None = None  # [B]
  extra: dict[str, Array] = flax.struct.field(default_factory=dict)  # Leading axis B.
  aux: 'Batch | None' = None  # A second stream: mismatched rows, pretraining text.


@flax.struct.dataclass
class Outputs:
  """What the networks say about a batch: one field per sensor of forward.py."""

  logp: BGT | None = None
  mixed_logp: BGT | None = None  # After a past blended with the likeliest tokens.
  entropy: BGT | None = None
  collision: BGT | None = None  # log of the sum of squared probabilities.
  odds: BGT | None = None  # Log odds of two tokens, before token t is seen.
  value: BGT | None = None  # Before token t is seen.
  cost_value: BGT | None = None  # As value, of what is to be paid.
  twin_value: BGT | None = None  # As value, of another critic.
  score: BG | None = None  # At the last token of the completion.
  token_score: BGT | None = None  # At each token, which is seen.
  attributes: Array | None = None  # [B, G, A], at the last token of the completion.
  asked: Array | None = None  # [B, G, D], the state at the prompt's last token.
  embedding: Array | None = None  # [B, G, D], at the last token of the completion.
  members: Array | None = None  # [B, G, K], score of each model of an ensemble.
  own: Params | None = None  # The method's own arrays, as they are.
  ref_logp: BGT | None = None
  dpo_logp: BGT | None = None
  prm_logp: BGT | None = None
  ema_logp: BGT | None = None
  teacher_logp: BGT | None = None
  divergence: BGT | None = None  # From the teacher, of the distribution at each token.
  ref_divergence: BGT | None = None  # As divergence, from the reference.
  aux: 'Outputs | None' = None


@flax.struct.dataclass
class State:
  """Everything that changes during training, and nothing that does not.

  Arrays only: it checkpoints, shards, donates and vmaps as it is. `step` counts calls;
  `applied` and `skipped` count optimizer updates, so a skipped update never reuses its
  randomness, which is `fold_in(key, step)`. No array may stand in two places: the step
  donates each once.
  """

  step: Array
  applied: Array
  skipped: Array
  params: Params
  opt_state: Any
  frozen: Params  # Reference policy, reward model: moved by no gradient.
  extra: dict[str, Array]  # A method's own controllers, e.g. an adaptive beta.
  key: Array


@flax.struct.dataclass
class Rollout:
  """What every sampler returns, ours or an external one. Axes as in `Batch`."""

  tokens: BGT  # int32, right-padded.
  length: BG  # int32, the stop token included.
  prompt_id: Array  # [B]
  behavior_logp: BGT  # Under the distribution drawn from: tempered and truncated.
  temperature: BG
  kept_mass: BGT  # Share of the whole distribution that truncated sampling kept.
  stop_reason: BG  # 1 stop token, 0 out of room.
  version: Array  # Step of the parameters that sampled.
  # In truncated sampling the words kept were those whose - log p is at most so many
  # nats, p of the whole distribution at its temperature; infinite where all were.
  keep_within: BGT | None = None


class Method(NamedTuple):
  """One paper: what it minimises, and what it must be shown to do so.

  `needs`, `prepare_needs` and `measure_needs` name the sensors (fields of `Outputs`)
  and the once-per-batch fields of `Batch` that the function beside them reads;
  'aux/logp' reads a sensor on `batch.aux`.
  """

  loss: Callable[[Outputs, Batch], tuple[Array, Metrics]]
  needs: tuple[str, ...]
  # Sees the whole batch once: rewards to advantages, running statistics.
  prepare: Callable[[State, Batch], tuple[State, Batch]] = lambda state, batch: (
    state,
    batch,
  )
  prepare_needs: tuple[str, ...] = ()
  # Statistics that couple rows, over the whole minibatch, without gradient.
  measure: Callable[[Outputs, Batch], Batch] | None = None
  measure_needs: tuple[str, ...] = ()
  # What any of them reads of Batch.extra that a source says where asked (unread.py).
  reads: tuple[str, ...] = ()
  aggregate: Callable[[BGT], BGT] | None = None  # ops.weights.seq_mean if None.
  # Its loss fits log(pi / ref): of whole distributions, however completions were drawn.
  whole: bool = False
  # The method's own controllers in `state.extra`: where they start, and how they move.
  extra: dict[str, Any] = {}  # Numbers or arrays.
  after: Callable[[State, Batch, Metrics], State] = lambda state, batch, metrics: state
  heads: dict[str, int] = {}  # How many numbers a role's scores are; 1 if not named.
  members: int = 0  # Models of the role ensemble, in a leading axis of its tree.
  # Rewards [B, G] of completions, where no sensor says them (rewards/learned.py).
  serve: Callable[[Outputs], BG] | None = None
  # Of a reward model of several Gaussians: mu and sigma, [B, G, K] (ops/robust.py).
  gaussians: Callable[[Outputs], tuple[Array, Array]] | None = None
  # Arrays that the loss trains beside the networks, from (key, width of the model).
  own: Callable[[Array, int], Params] | None = None
  # Of own arrays and a batch: embeddings [B, S, D] that the trained networks read
  # before each prompt of the batch.
  soft: Callable[[Params, Batch], Array] | None = None


def bucket(size: int, limit: int) -> int:
  """`size` rounded up to a quarter of `limit`, so that few shapes are compiled."""
  quarter = -(-limit // 4)
  return min(-(-int(size) // quarter) * quarter, limit)


def make_batch(prompts, prompt_length, completions, length) -> Batch:
  """A `Batch` from token arrays and lengths, every row valid and at temperature 1.

  Args:
    prompts: [B, P] int32, right-padded; prompt_length: [B] int32.
    completions: [B, G, T] int32, right-padded.
    length: [B, G] int32, the stop token included.
  """
  b, g, t = completions.shape
  ones = np.ones((b, g), np.float32)
  return Batch(
    prompts=prompts,
    prompt_length=prompt_length,
    completions=completions,
    length=length,
    mask=(np.arange(t) < np.asarray(length)[..., None]).astype(np.float32),
    prompt_id=np.arange(b, dtype=np.int32),
    valid=ones,
    truncated=np.zeros_like(ones),
    temperature=ones,
  )


# Fields [B, G, T] of a batch that mean something only where its mask is 1.
PER_TOKEN = (
  'behavior_logp',
  'kept_mass',
  'keep_within',
  'old_logp',
  'old_odds',
  'ref_logp',
  'dpo_logp',
  'teacher_logp',
  'old_prm_logp',
  'ema_logp',
  'old_value',
  'old_cost_value',
  'old_twin_value',
  'old_entropy',
)


def check(batch: Batch) -> None:
  """Asserts that a batch has the shapes it claims: at the door, and once prepared."""
  b, g, t = batch.completions.shape
  chex.assert_shape(batch.prompts, (b, None))
  shapes = {
    (b,): ('prompt_length', 'prompt_id'),
    (b, g): (
      *('length', 'valid', 'truncated', 'temperature', 'reward'),
      'row_prompt_length',
    ),
    (b, g, t): ('mask', *PER_TOKEN),
  }
  for shape, names in shapes.items():
    for name in names:
      if (x := getattr(batch, name)) is not None and x.shape != shape:
        raise ValueError(wrong(name, x, shape, batch))
  if batch.row_prompt is not None:
    chex.assert_shape(batch.row_prompt, (b, g, None))
  x = batch.advantage
  if x is not None and x.shape not in ((b, g), (b, g, 1), (b, g, t)):
    due = f'{(b, g, t)}, {(b, g, 1)} or {(b, g)}'
    raise InputError(wrong('advantage', x, due, batch))
  if batch.aux is not None:
    check(batch.aux)


def wrong(name: str, x: Array, due, batch: Batch) -> str:
  """What to say of a field whose shape is not the one due."""
  return (
    f'Batch.{name} has shape {x.shape}; {due} is due, for completions '
    f'{batch.completions.shape} (prompts, completions per prompt, positions).'
  )
