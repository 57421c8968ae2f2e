"""Lights for what goes wrong unseen: each is a function of a run's records alone.

A reward curve that rises says nothing by itself. The thresholds below are heuristics:
'three evaluations', 'length x 1.5' and '10 to 15 nats' are checklists' of practice, no
paper's; the others are ours.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxrl_llm.evaluate import calibration, diversity

EVALUATIONS = 3  # Held-out evaluations over which reward and score are compared.
LONGER = (1.25, 1.5)  # Completion length over that of the first steps: amber, red.
NATS = (10.0, 15.0)  # KL to the reference in nats per completion.
ENTROPY = (0.5, 0.2)  # Share of the first steps' entropy that is left.
TIED = (0.5, 0.9)  # Share of groups whose rewards are all equal.
DISTINCT = (0.7, 0.4)  # Share of the first table's distinct-2 that is left.
FEWEST = 16  # Samples; of so many unrelated ones 1 in 800 correlates by 0.7.
LENGTH_BIAS = (0.4, 0.7)  # Correlation of reward and length, within a table of samples.
MISMATCH = (0.005, 0.01)  # Nats per token between sampler and trainer.
CLIPPED = (0.3, 0.6)  # Share of tokens or completions that the clip holds.
TRUNCATED = (0.2, 0.5)  # Share of completions that ran out of room.
SKIPPED = (0.0, 0.05)  # Share of updates left out for a gradient that is not finite.
FIRST, LAST = 5, 5  # Steps that are averaged as the beginning, and as now.

GREEN, AMBER, RED = 'green', 'amber', 'red'


class Light(NamedTuple):
  name: str
  colour: str
  said: str  # The value, and the thresholds it was held against.


class History(NamedTuple):
  """A run's records: training, held out, and rows of its sample tables."""

  train: Sequence[dict]
  held: Sequence[dict]
  samples: Sequence[dict] = ()


def split(records: Sequence[dict], samples: Sequence[dict] = ()) -> History:
  """metrics.jsonl and samples.jsonl as a history."""
  of = lambda kind: [r for r in records if r['split'] == kind]
  return History(of('train'), of('eval'), [s for s in samples if s['split'] == 'train'])


def until(history: History, step: int) -> History:
  """What was known at that step."""
  return History(*([r for r in part if r['step'] <= step] for part in history))


def values(records: Sequence[dict], name: str) -> list[float]:
  return [r[name] for r in records if r.get(name) is not None]


def level(value: float, amber: float, red: float) -> str:
  """The colour of a value; where `red` is below `amber`, small values are bad."""
  if red < amber:
    return level(-value, -amber, -red)
  return RED if value > red else AMBER if value > amber else GREEN


def above(name: str, metric: str, bounds: tuple[float, float]):
  """A light for the mean of the last steps of one metric."""

  def light(history: History) -> Light | None:
    if not (found := values(history.train, metric)[-LAST:]):
      return None
    now = float(np.mean(found))
    said = f'{metric} {now:.3g}; amber above {bounds[0]:g}, red above {bounds[1]:g}'
    return Light(name, level(now, *bounds), said)

  return light


def since_the_start(name: str, metric: str, bounds: tuple[float, float]):
  """A light for the mean of the last steps over that of the first."""

  def light(history: History) -> Light | None:
    found = values(history.train, metric)
    if len(found) < FIRST + LAST or not (begun := np.mean(found[:FIRST])) > 0:
      return None
    now = float(np.mean(found[-LAST:]) / begun)
    side = 'above' if bounds[1] > bounds[0] else 'below'
    said = f'{metric} is {now:.2f} of its beginning; amber {side} {bounds[0]:g}, '
    return Light(name, level(now, *bounds), f'{said}red {side} {bounds[1]:g}')

  return light


def hacking(history: History) -> Light | None:
  """Red: over the last evaluations the reward rose and the held-out score fell, or it
  rose while completions grew long and the score did not rise. Amber: it rose alone. A
  reward rises and a score falls by more than two standard errors of the difference, a
  score rises by more than one. (With a fall of one error of a single score, a third of
  small runs without any bug were red at some evaluation.)
  """
  held = [r for r in history.held if r.get('eval/score') is not None]
  if len(held) < EVALUATIONS or not values(history.train, 'reward'):
    return None
  first, last = held[-EVALUATIONS], held[-1]
  rewards = [near(history.train, 'reward', r['step']) for r in (first, last)]
  noise = spread(history.train, 'reward')
  up = rewards[1] - rewards[0] > 2 * noise
  gold = last['eval/score'] - first['eval/score']
  # An interval is four standard errors of a score, a difference has root 2 of one's.
  width = (last.get('eval/high', 0.0) - last.get('eval/low', 0.0)) / 4 * 2**0.5
  longer = since_the_start('', 'length', LONGER)(history)
  long = longer is not None and longer.colour == RED
  said = (
    f'in {EVALUATIONS} evaluations reward {rewards[1] - rewards[0]:+.3g} (standard '
    f'error {noise:.2g}), held-out score {gold:+.3g} (standard error {width:.2g})'
  )
  if up and (gold < -2 * width or (long and gold <= width)):
    return Light('reward hacking', RED, said)
  return Light('reward hacking', AMBER if up and gold <= 0 else GREEN, said)


def near(records: Sequence[dict], name: str, step: int) -> float:
  """The mean of a metric over the LAST steps up to `step`, or the first ones."""
  there = [r for r in records if r['step'] <= step][-LAST:] or list(records[:LAST])
  return float(np.mean(values(there, name) or [0.0]))


def spread(records: Sequence[dict], name: str) -> float:
  """Standard error of a difference of two means of LAST steps, from neighbours."""
  steps = np.diff(values(records, name))
  return float(np.std(steps) / np.sqrt(LAST)) if len(steps) > 1 else 0.0


def forgetting(history: History) -> Light | None:
  """Red: the held-out interval lies below that of the first evaluation."""
  held = [r for r in history.held if r.get('eval/high') is not None]
  if len(held) < 2:
    return None
  first, last = held[0], held[-1]
  said = (
    f'held-out accuracy {first["eval/accuracy"]:.3f} at first, '
    f'{last["eval/accuracy"]:.3f} now; red where the 95 % intervals are apart'
  )
  if last['eval/high'] < first['eval/low']:
    return Light('forgetting', RED, said)
  fell = last['eval/accuracy'] < first['eval/low']
  return Light('forgetting', AMBER if fell else GREEN, said)


def drift(history: History) -> Light | None:
  """KL to the reference in nats per completion: kl_ref times the length."""
  found = [
    r['kl_ref'] * r['length']
    for r in history.train
    if r.get('kl_ref') is not None and r.get('length') is not None
  ][-LAST:]
  if not found:
    return None
  now = float(np.mean(found))
  said = (
    f'{now:.3g} nats per completion; amber above {NATS[0]:g}, red above {NATS[1]:g}'
  )
  return Light('distance from the reference', level(now, *NATS), said)


def tables(samples: Sequence[dict]) -> dict[int, list[dict]]:
  """Rows of the sample tables by step, in order."""
  found: dict[int, list[dict]] = {}
  for row in samples:
    found.setdefault(row['step'], []).append(row)
  return found


def sameness(history: History) -> Light | None:
  """distinct-2 of the last table of samples over that of the first."""
  found = list(tables(history.samples).values())
  if len(found) < 2:
    return None
  begun, now = (diversity.of_samples(t)['distinct-2'] for t in (found[0], found[-1]))
  if not begun:
    return None
  said = (
    f'distinct-2 is {now / begun:.2f} of its beginning; amber below {DISTINCT[0]:g}, '
    f'red below {DISTINCT[1]:g}'
  )
  return Light('sameness', level(now / begun, *DISTINCT), said)


def length_bias(history: History) -> Light | None:
  """Correlation of reward and length over the last table of samples."""
  found = list(tables(history.samples).values())
  if not found or len(found[-1]) < FEWEST:
    return None
  reward, length = zip(*((r['reward'], len(r['completion'])) for r in found[-1]))
  now = calibration.length_correlation(reward, length)
  said = (
    f'reward and length correlate by {now:.2f}; amber above {LENGTH_BIAS[0]:g}, '
    f'red above {LENGTH_BIAS[1]:g}'
  )
  return Light('length bias', level(now, *LENGTH_BIAS), said)


def skipped(history: History) -> Light | None:
  """Updates left out, as a share of all."""
  found = [r for r in history.train if r.get('skipped') is not None]
  if not found:
    return None
  total = found[-1]['skipped'] + found[-1].get('applied', 0)
  now = found[-1]['skipped'] / max(total, 1)
  said = f'{now:.1%} of the updates; amber above 0, red above {SKIPPED[1]:.0%}'
  return Light('skipped updates', level(now, *SKIPPED), said)


LIGHTS: tuple[Callable[[History], Light | None], ...] = (
  hacking,
  since_the_start('growing length', 'length', LONGER),
  length_bias,
  drift,
  forgetting,
  since_the_start('collapse of entropy', 'entropy', ENTROPY),
  sameness,
  above('groups without a signal', 'groups_tied', TIED),
  above('sampler mismatch', 'mismatch_k3', MISMATCH),
  above('clipping', 'clipped', CLIPPED),
  above('out of room', 'truncated', TRUNCATED),
  skipped,
)


def lights(history: History) -> list[Light]:
  """Every light that the records can light."""
  found = (light(history) for light in LIGHTS)
  return [light for light in found if light is not None]


def turned_red(history: History) -> list[Light]:
  """Those red now that were not at the last evaluation but one."""
  steps = sorted({r['step'] for r in history.held})
  before = until(history, steps[-2]) if len(steps) > 1 else History((), ())
  red = lambda h: {light.name: light for light in lights(h) if light.colour == RED}
  earlier = red(before)
  return [light for name, light in red(history).items() if name not in earlier]
