"""A reward model's score, from the folder of the run that trained it.

A thought is left out of what is scored by after='</think>', as in RLMT (2025),
https://arxiv.org/abs/2509.20357.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import build, forward, restored
from jaxrl_llm.data import chat, kinds, tables
from jaxrl_llm.data.examples import Encoder, Example, in_turns
from jaxrl_llm.ops import ratings, sequences
from jaxrl_llm.rewards import coding, extract
from jaxrl_llm.rewards.sample import Batched, Sample
from jaxrl_llm.types import InputError, Method


class Reading(NamedTuple):
  """How a kind of reward model is asked, and what its answer is worth."""

  role: str
  needs: tuple[str, ...]  # Sensors.
  example: Callable[[Sample, str], Example]  # Of what is scored of a sample.
  value: Callable  # (Outputs, batch) to [N], or to what `whole` reads.
  whole: Callable = lambda found: found  # Of all samples at once, to [N].


def learned(
  *,
  run: str,
  after: str = '',
  missing: float = -1.0,
  batch: int = 16,
  weights: str = '',
  principle: str = '',
  steps: str = '',
  members: str = '',
  user: str = '',
) -> Batched:
  """The score of prompt and completion in that run's own encoding.

  What is too long for the reward model is cut, as in its training.

  Args:
    run: the folder of a run that trained a reward model.
    after: only what follows this string is scored; '' is all of the completion.
    missing: the score of a completion that ran out of room, or has nothing after
      `after`, or that the chat template refuses. A reward model has seen none of these
      and may pay them well; choose what is low on its scale.
    batch: completions at once.
    weights: of a run of `regression`, 'helpfulness=0.7,verbosity=-0.1'.
    principle: of a run of `rlbff`; '@name' is the record's extra['name'], which the
      policy does not see.
    steps: of a run of `prm`, a function of ops/step_scores.py. Lines are steps.
    members: of a run of `ensemble`, a function of ops/ensembles.py, '' is mean; of
      `brme` one of ops/robust.py, '' is nominal, and 'robust(alpha=0.4)' is of all
      completions that are scored at once: a step's, when it rewards a policy.
    user: of a run of `vpl`, a table of pairs that one user has chosen between, as many
      as its training had in a row; of `p_rlhf` a user's number, '' is anybody.

  Raises:
    InputError: the folder holds no reward model, or one that has no use for an option.
  """
  reading = make_reading(run, weights, principle, steps, members, user)
  model = restored.network(run, reading.role)
  source = model.config.source
  encode = coding.encoder(
    model.tokenizer, max_prompt=source.max_prompt, max_length=source.max_length
  )
  soft = model.method.soft
  see = forward.make_forward({reading.role: model.decoder}, soft)

  params = {reading.role: model.params}
  if 'own' in reading.needs or soft:
    params['own'] = restored.own(run, model)

  @jax.jit
  def say(params, rows):
    return reading.value(see(params, {}, rows, reading.needs), rows)

  def score(samples) -> np.ndarray:
    said = [readable(encode, reading, s, after) for s in samples]
    known = [i for i, example in enumerate(said) if example is not None]
    found = np.full(len(samples), missing, np.float64)
    turns = [
      (turn, np.asarray(say(params, rows))[: len(turn)])
      for turn, rows in in_turns(encode, said, known, batch)
    ]
    if turns:
      order, values = map(np.concatenate, zip(*turns))
      found[order] = reading.whole(values)
    return found

  return Batched(score)


def readable(encode: Encoder, reading: Reading, sample: Sample, after: str):
  """What is scored of a sample as an Example, or None."""
  text = extract.following(sample.completion, after)
  if sample.truncated or not text.strip():
    return None
  example = reading.example(sample, text.strip() if after else text)
  try:
    encode.read(example)
  except InputError:
    return None
  return example


# ---- Kinds of reward models ----------------------------------------------------------


def make_reading(
  run: str, weights: str, principle: str, steps: str, members: str, user: str
) -> Reading:
  """The Reading of a run, from what its method reads and what is asked for."""
  given = dict(weights=weights, principle=principle, steps=steps)
  given |= dict(members=members, user=user)
  if principle:
    check_read(run, given, 'principle')
    return judged(principle)
  config, method = restored.trained(run)
  kind = config.get('data', {}).get('kind', '')
  check_read(run, given, read_by(method, kind))
  needs = method.needs
  if method.gaussians:
    return spread(method, members)
  if method.serve:
    return served(method, user)
  if method.soft:
    return personal(user)
  if 'attributes' in needs:
    return rated(config.method.attributes, weights)
  if 'members' in needs:
    at = 'learned: members'
    join = build.function('jaxrl_llm.ops.ensembles', members or 'mean', at)
    value = lambda out, rows: join(out.members[:, 0])
    return Reading('ensemble', ('members',), plain, value)
  if kind.startswith('steps') and not steps:
    raise InputError(
      "learned: this run scored steps; give steps='least', or another function of "
      'ops/step_scores.py.'
    )
  if steps:
    join = build.function('jaxrl_llm.ops.step_scores', steps, 'learned: steps')
    value = lambda out, rows: join(out.token_score, rows.mask)[:, 0]
    return Reading('reward', ('token_score',), stepped, value)
  return Reading('reward', ('score',), plain, lambda out, rows: out.score[:, 0])


def read_by(method: Method, kind: str) -> str:
  """Which option of `learned` a reward model has a use for, by its method and kind of
  data, or ''.
  """
  if method.gaussians or 'members' in method.needs:
    return 'members'
  if method.soft or kind == 'user_pairs':
    return 'user'
  if method.serve:
    return ''
  uses = {'attributes': 'weights', 'token_score': 'steps'}
  return next((uses[need] for need in method.needs if need in uses), '')


def check_read(run: str, given: dict[str, str], read: str) -> None:
  """Refuses options that would change nothing."""
  if unread := [name for name, value in given.items() if value and name != read]:
    known = f'{read!r} alone' if read else 'none of these options'
    raise InputError(
      f'learned: {unread[0]}={given[unread[0]]!r} has no meaning for {run}, which '
      f'reads {known}; leave it out, or name another run.'
    )


def served(method: Method, user: str) -> Reading:
  """What a method itself says of a completion, to a user if one is asked for."""
  value = lambda out, rows: method.serve(out)[:, 0]
  if not user:
    return Reading('reward', method.needs, plain, value)
  known = [kinds.pairs(row) for row in tables.open_table(user)]

  def example(sample: Sample, text: str) -> Example:
    context = [(e.prompt, c) for e in known for c in e.completions]
    rows = [(sample.record.messages, text)] * 2 + context
    prompts, said = zip(*rows)
    return Example(prompts[0], said, (0.0,) * len(said), prompts=prompts)

  return Reading('reward', method.needs, example, value)


def spread(method: Method, members: str) -> Reading:
  """Several Gaussians as one number, by a function of all samples at once."""
  join = build.function(
    'jaxrl_llm.ops.robust', members or 'nominal', 'learned: members'
  )
  value = lambda out, rows: jnp.stack(method.gaussians(out), -1)[:, 0]
  whole = lambda found: np.asarray(join(found[..., 0], found[..., 1]))
  return Reading('reward', method.needs, plain, value, whole)


def personal(user: str) -> Reading:
  """The score to a user by number."""
  if user and not user.isdecimal():
    raise InputError(f'learned: user={user!r}; this run numbers its users.')
  extra = {'user': float(user or 0)}
  example = lambda sample, text: plain(sample, text)._replace(extra=extra)
  return Reading('reward', ('score',), example, lambda out, rows: out.score[:, 0])


def plain(sample: Sample, text: str) -> Example:
  """The answer as it is."""
  return Example(sample.record.messages, (text,), (0.0,))


def stepped(sample: Sample, text: str) -> Example:
  """The answer's lines as steps."""
  lines = [line for line in text.splitlines() if line.strip()]
  return Example(sample.record.messages, (chat.Steps(lines),), (0.0,))


def judged(principle: str) -> Reading:
  """The log odds of Yes, asked whether the answer keeps the principle."""

  def example(sample: Sample, text: str) -> Example:
    whole = kinds.judged(sample.record.messages, text, named(principle, sample))
    return Example(whole, kinds.VERDICTS, (1.0, 0.0))

  value = lambda out, rows: sequences.margin(sequences.words(out.logp, rows.mask))
  return Reading('policy', ('logp',), example, value)


def named(principle: str, sample: Sample) -> str:
  """The principle that a sample is asked about; '@name' is its record's."""
  own = sample.record.extra
  said = own.get(principle[1:]) if principle.startswith('@') else principle
  if not said:
    raise InputError(
      f'principle={principle!r}, and record {sample.record.id} has {sorted(own)} in '
      'its extra.'
    )
  return said


def rated(attributes: str, weights: str) -> Reading:
  """The weighted sum of the attributes."""
  w = ratings.weights(ratings.named(attributes), weights, 'learned: weights')
  value = lambda out, rows: out.attributes[:, 0] @ w
  return Reading('reward', ('attributes',), plain, value)
