"""Fresh pairs: of a group's completions two, the better one first.

A method of pairs on such a source is its online form: of dpo, iterative DPO (Xiong et
al., 2023, https://arxiv.org/abs/2312.11456; RLHF Workflow, 2024,
https://arxiv.org/abs/2405.07863). Labels by the higher reward are not drawn by
Bradley-Terry, so that a method's beta is no longer in units of the reward.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrl_llm import filtration
from jaxrl_llm.data.fitting import PAIRED
from jaxrl_llm.sources import Drawn, Source, host_rng
from jaxrl_llm.types import InputError, State

# Of the completions but the best, which is the worse one of the pair.
KINDS = ('best_worst', 'best_random')


def check(kind: str, margin: float, where: str) -> None:
  """Refuses what is no way to pair."""
  if kind not in KINDS or not margin >= 0:
    raise InputError(
      f'{where}: pair={kind!r}, margin={margin!r}; pair is one of {KINDS}, margin 0 or '
      'more.'
    )


def check_method(method: Mapping[str, Any], source: Mapping[str, Any]) -> None:
  """Refuses fresh completions in no order to a method that reads the better one first,
  and ordered ones to one that reads an opponent's second.

  Args:
    method, source: sections of a config.
  """
  name, pair = method['name'], source.get('pair', '')
  scored = name == 'exo' and method.get('temperature')
  if name in PAIRED and not pair and not scored:
    raise InputError(
      f'{name}: the first completion of a pair is the better one, and fresh ones come '
      "in no order. Set config.source.pair='best_worst', or give stored pairs."
    )
  if name == 'nash_md' and pair:
    raise InputError(
      f"nash_md: the second completion is the opponent's, and config.source.pair="
      f"{pair!r} puts the worse one there. Set pair=''."
    )


def two(reward, kind: str, margin: float, rng) -> tuple[int, int] | None:
  """Which completions make a pair, if the rewards [G] of any differ by more than
  `margin`.

  'best_worst' takes the ends; 'best_random' the best and one of all the others, which
  is best-of-n against the policy itself.
  """
  if len(reward) < 2:
    return None
  best = int(np.argmax(reward))
  others = [i for i in range(len(reward)) if i != best]
  worst = min(others, key=lambda i: reward[i])
  other = worst if kind == 'best_worst' else int(rng.choice(others))
  return (best, other) if reward[best] - reward[other] > margin else None


def paired(source: Source, kind: str, margin: float) -> Source:
  """The source with a pair in the place of each group.

  A group without one stays, and is not valid. The draw is a function of the state's key
  and the step. Metrics are those of all completions.
  """
  check(kind, margin, 'config.source')

  def drawn(state: State, step: int) -> Drawn:
    found, rng = source(state, step), host_rng(state, step)
    rows, there = [], []
    for reward, valid in zip(found.batch.reward, found.batch.valid):
      mine = np.flatnonzero(valid)
      pair = two(reward[mine], kind, margin, rng)
      there.append(pair is not None)
      rows.append(mine[list(pair)] if pair else (0, 0))
    batch = filtration.taken(found.batch, np.array(rows))
    keep = np.array(there, np.float32)
    # Pairs are data, of whatever sampler: the loss is of the whole distribution.
    batch = batch.replace(valid=batch.valid * keep[:, None], keep_within=None)
    return found._replace(batch=batch, metrics=found.metrics | {'paired': keep.mean()})

  return drawn
