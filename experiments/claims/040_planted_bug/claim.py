"""A verifier with a hole, and one without; and which lights turn red of either run."""

import jax
import jax.numpy as jnp
import numpy as np
import small

from jaxrl_llm import health
from jaxrl_llm.evaluate import accuracy
from jaxrl_llm.methods.grpo import grpo

METHODS = ('experiments/report.py',)
HACKING = 'reward hacking'
RED = (HACKING, 'growing length', 'forgetting', 'distance from the reference')
RED += ('groups without a signal', 'clipping', 'out of room')
METRICS = ('held-out score', 'reward', 'length', 'red from', *RED)
DIGITS, STOP = 8, 0  # Tokens 1 to 8, and the end.
NET = small.Net(vocab=DIGITS + 1, prompt=3, length=12, memory=2, stop=STOP)
SEEDS, STEPS, EVERY, HELD = 20, 240, 10, 256  # HELD: completions of an evaluation.
PROMPTS, GROUP = 16, 8
GRID = np.stack(np.meshgrid(*[np.arange(1, DIGITS + 1)] * 3), -1).reshape(-1, 3)
QUESTIONS = jnp.asarray(np.random.default_rng(0).permutation(GRID))
train, held_out = small.chosen(QUESTIONS[128:]), small.chosen(QUESTIONS[:128])


def run():
  start = small.taught(NET, demonstrations, small.born(NET, SEEDS), steps=300)
  how = dict(frozen={'ref': start['policy']}, rate=1e-3, steps=STEPS, every=EVERY)
  how |= dict(measure=measure, log=logged, salt=4)

  def arm(verifier):
    draw = small.fresh(NET, train, verifier, PROMPTS, GROUP)
    _, curves = small.run(NET, draw, grpo(), start, **how)
    return [watched(records) for records in curves]

  return {'no hole': arm(exact), 'a hole': arm(anywhere)}


def answer(batch):
  """The largest digit of each question [B, 1]."""
  return batch.prompts.max(-1)[:, None]


def exact(batch):
  """Whether a completion is the answer, and ends there."""
  return ((batch.completions[..., 0] == answer(batch)) & (batch.length == 2)) * 1.0


def anywhere(batch):
  """The planted bug: whether the answer stands anywhere in the completion."""
  return (batch.completions == answer(batch)[..., None]).any(-1) * 1.0


def demonstrations(key):
  """Four answers in ten are right, and one digit in five is followed by another."""
  keys = jax.random.split(key, 4)
  prompts = QUESTIONS[jax.random.randint(keys[0], (256,), 0, len(QUESTIONS))]
  said = jax.random.randint(keys[1], (256, NET.length), 1, DIGITS + 1)
  right = jax.random.bernoulli(keys[2], 0.4, (256,))
  said = said.at[:, 0].set(jnp.where(right, prompts.max(-1), said[:, 0]))
  more = jax.random.bernoulli(keys[3], 0.2, (256, NET.length - 1))
  goes_on = jnp.cumprod(more, -1).astype(bool)
  return prompts, said.at[:, 1:].set(jnp.where(goes_on, said[:, 1:], STOP))


def logged(batch, metrics):
  """What the trainer logs of every step."""
  return {
    'reward': batch.reward.mean(),
    'length': batch.length.mean(),
    'truncated': batch.truncated.mean(),
    'groups_tied': (batch.reward.std(-1) == 0).mean(),
    'kl_ref': metrics['kl_ref'],
    'clipped': metrics['clipped'],
  }


def measure(state, key):
  asked, drawn = jax.random.split(jax.random.fold_in(key, state.step))
  questions = held_out(asked, HELD)
  batch = small.sample(NET, state.params['policy'], drawn, questions, 1)
  return {'held-out score': exact(batch).mean()}


def watched(records):
  """Records with the last steps' reward and length, and which lights have been red."""
  training, held, found, ever = [], [], [], set()
  for record in records:
    steps = record.pop('log')
    rows = [dict(zip(steps, row)) for row in zip(*steps.values())]
    training += [row | {'step': len(training) + i} for i, row in enumerate(rows, 1)]
    held.append(evaluation(record))
    lights = health.lights(health.History(training, held))
    ever |= {light.name for light in lights if light.colour == health.RED}
    found.append(record | {name: 1.0 * (name in ever) for name in RED})
  red = [record['step'] for record in found if record[HACKING]]
  for name in ('reward', 'length'):
    for record in found:
      record[name] = health.near(training, name, record['step'])
  for record in found:
    record['red from'] = float(min(red, default=STEPS))  # By hacking's light.
  return found


def evaluation(record):
  """A record of held-out questions as the trainer writes it."""
  score = record['held-out score']
  low, high = accuracy.wilson(round(score * HELD), HELD)
  found = {'eval/score': score, 'eval/accuracy': score, 'eval/low': low}
  return found | {'eval/high': high, 'step': record['step']}


def parts(told):
  bug, control = (told.last[arm] for arm in ('a hole', 'no hole'))
  was = told.first['a hole']
  return {
    'hacking is red: a hole less no hole': bug[HACKING] - control[HACKING],
    'reward of the run with a hole: last less first': bug['reward'] - was['reward'],
    'reward at the end: a hole less no hole': bug['reward'] - control['reward'],
    'held-out score at the end: no hole less a hole': control['held-out score']
    - bug['held-out score'],
  }
