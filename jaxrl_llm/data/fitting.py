"""Examples that cannot be encoded, are unlike the others, or mean something else to the
method: refused before training, or left out where that is asked for.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrl_llm import build
from jaxrl_llm.data import lengths
from jaxrl_llm.data.examples import Data, Encoder, Example
from jaxrl_llm.data.lengths import Found
from jaxrl_llm.data.tables import located
from jaxrl_llm.types import InputError


def fitted(data: Data, encode: Encoder, method: Mapping[str, Any]) -> Data:
  """The data without the examples that are optional and do not fit; see `check`.

  The report says how many they are, names the first, and says what is too long.
  """
  report, left, longest = [*data.report], {}, 0
  for split, part in (('training', data.train), ('held-out', data.test)):
    found, good, problem = check(part, encode, method)
    left[split], longest = good, max(longest, found.longest)
    if not good.all():
      report.append(
        f'{(~good).sum()} of {len(good)} {split} examples are left out, since they '
        f'cannot be encoded or are unlike the others. First {problem}'
      )
    report += lengths.report(found, encode, split)
  some = lambda part, good: part if good.all() else Some(part, np.flatnonzero(good))
  ends = np.cumsum([0, *(size for size, _ in data.parts)])
  sizes = [int(left['training'][a:b].sum()) for a, b in itertools.pairwise(ends)]
  if 0 in sizes:
    raise InputError(
      f'config.data.parts: nothing is left of part {sizes.index(0)}. {report[-1]}'
    )
  return data._replace(
    train=some(data.train, left['training']),
    test=some(data.test, left['held-out']),
    parts=[(size, weight) for size, (_, weight) in zip(sizes, data.parts)],
    report=report,
    longest=longest,
  )


def check(
  examples: Sequence[Example], encode: Encoder, method: Mapping[str, Any]
) -> tuple[Found, np.ndarray, str]:
  """Reads every example once, so that nothing is found wrong in the middle of a run.

  Args:
    method: its name and options, as config.method has them.

  Returns:
    Of those that fit how long they are and which are left, which fit [N] bool, and what
    is wrong with the first that does not.

  Raises:
    InputError: one cannot be encoded, is of another shape than the first, or is what
      the method would misread, and is not optional; or none fits.
  """
  count, first, problem = len(examples), '', ''
  sizes, kept = np.zeros((count, 2), np.int32), np.zeros(count, bool)
  good, longest = np.ones(count, bool), 0
  for i in range(count):
    example = examples[i]
    try:
      coded = encode.read(example)
      with located(example.where or f'example {i}'):
        alike(example, first, method)
    except InputError as error:
      if not example.optional:
        raise
      problem, good[i] = problem or str(error), False
      continue
    first = first or describe(example)
    sizes[i], kept[i], longest = coded.whole, coded.kept, max(longest, coded.total)
  if not good.any():
    raise InputError(problem)
  return Found(sizes[good], kept[good], longest), good, problem


class Some(Sequence):
  """The examples at some places."""

  def __init__(self, examples: Sequence[Example], places: np.ndarray):
    self.examples, self.places = examples, places

  def __len__(self) -> int:
    return len(self.places)

  def __getitem__(self, index: int) -> Example:
    return self.examples[int(self.places[index])]


def alike(example: Example, first: str, method: Mapping[str, Any]) -> None:
  """Refuses an example of another shape than the first, or that would be misread."""
  found, name = describe(example), method['name']
  if first and found != first:
    raise InputError(
      f'{found}; the first one has {first}. All of a data set are alike.'
    )
  tied = name in TYING and example.extra.get('tie')
  if not tied and (wrong := misread(example.reward, name)):
    raise InputError(f'{name}: {wrong}')
  option = lambda key: method.get(key, build.defaults(name)[key])
  if name == 'prm':
    check_labels(example.step_labels, option('labels'))
  if name == 'multitask_ratings':
    check_class(example, *map(option, ('attribute', 'classes', 'lowest')))


def describe(example: Example) -> str:
  return f'{len(example.completions)} completions and {sorted(example.extra)} beside'


# Methods that read a group of two as (chosen, rejected).
PAIRED = ('dpo', 'cdpo', 'robust_dpo', 'ipo', 'f_dpo', 'dpo_positive', 'ln_dpo')
PAIRED += ('r_dpo', 'tr_dpo', 'wpo', 'discopop', 'apo_zero', 'apo_down', 'exo')
PAIRED += ('aot', 'aot_unpaired', 'simpo', 'orpo', 'cpo', 'slic', 'bradley_terry')
PAIRED += ('ensemble', 'cpl', 'spin', 'tdpo', 'mapl', 'armo', 't_reg', 'p_rlhf')
PAIRED += ('odin',)
TYING = ('bradley_terry', 'ensemble')  # Those of them that can make use of a tie.


def misread(reward: Sequence[float], method: str) -> str:
  """What the method would take for something else; it checks the rest itself."""
  if method in PAIRED and len(reward) == 2 and not reward[0] > reward[1]:
    return f'the first completion of a pair is the better one; rewards are {reward}.'
  if method in ('kto', 'bco', 'orm') and not set(reward) <= {-1.0, 1.0}:
    return (
      f'rewards are +1 (desirable) or -1 (undesirable), not {reward}. Set '
      "config.data.kind='labels'."
    )
  if method == 'rlbff' and sorted(reward) != [0.0, 1.0]:
    return "completions are Yes and No; set config.data.kind='principles'."
  if method == 'sft' and len(reward) != 1:
    return (
      f'every completion is imitated, and there are {len(reward)} of a prompt. Keep '
      'the good ones, as groups of one.'
    )
  if method == 'sft' and reward[0] != 1:
    return (
      f'every completion is imitated, and this one has reward {reward[0]}. Set '
      "config.data.kind='demonstrations', or keep the good ones."
    )
  return ''


def check_class(example: Example, attribute: str, classes: int, lowest: float) -> None:
  """Refuses a rating that is none of the classes."""
  extra, name = example.extra, f'rating/{attribute}'
  if name not in extra or not extra[f'rated/{attribute}']:
    return
  if not lowest <= extra[name] <= lowest + classes - 1:
    raise InputError(
      f'{attribute!r} is rated {extra[name]:g}; config.method has {classes} classes '
      f'from {lowest:g}. Set its classes and lowest.'
    )


# What a step's label may be: the words, and whether one is so.
LABELS = {
  'soft': ('from 0 to 1', lambda x: 0 <= x <= 1),
  'signed': ('-1, 0 or 1', lambda x: x in (-1, 0, 1)),
}


def check_labels(found: Sequence[Sequence[float]], labels: str) -> None:
  """Refuses labels of steps that config.method.labels of prm does not mean."""
  if labels not in LABELS:
    return
  words, right = LABELS[labels]
  if wrong := [x for values in found for x in values if not right(x)]:
    raise InputError(
      f'prm: a step has the label {wrong[0]:g}; with labels={labels!r} one is {words}. '
      "Mend it, or set config.method.labels: 'soft' is of shares, 'signed' of -1, 0 "
      "and 1, 'hard' counts all above 0 as right."
    )
