"""One table of judgements for two reward models: pairs for bradley_terry, and the same
judgements one by one for rlbff. For experiments/reshape.py.
"""

import itertools
import random
from collections.abc import Iterable, Iterator

from jaxrl_llm.data import kinds
from jaxrl_llm.data.kinds import VERDICTS
from jaxrl_llm.data.reshape import SIDES, Row, digest
from jaxrl_llm.types import InputError


def pairs(rows: Iterable[Row], *, each: int = 1, seed: int = 0) -> Iterator[Row]:
  """Kind 'pairs' of kind 'principles', with the principle that tells the two apart.

  Of each prompt and principle `each` pairs of an answer that keeps it and one that does
  not, drawn from `seed`; 0 is all. score_benchmark.py reads them too (principles).
  """
  if each < 0:
    raise InputError(f'pairs: each={each!r}; give an integer from 0.')
  found: dict[tuple[str, str], tuple[Row, list, list]] = {}
  for row in rows:
    kinds.principles(row)  # Says what a row lacks.
    name = digest(kinds.prompt(row)), row['principle']
    _, kept, broken = found.setdefault(name, (row, [], []))
    said = kept if row['fulfilment'].lower() == VERDICTS[0].lower() else broken
    said.append(kinds.text(row, kinds.named(row, 'completion', 'response')))
  for (prompt, principle), (row, kept, broken) in found.items():
    both = list(itertools.product(kept, broken))
    random.Random(f'{seed}/{prompt}/{principle}').shuffle(both)
    for chosen, rejected in both[: each or None]:
      pair = {'prompt': kinds.prompt(row), 'chosen': chosen, 'rejected': rejected}
      yield pair | {'principle': principle}


def judgements(rows: Iterable[Row]) -> Iterator[Row]:
  """Kind 'principles' of such pairs: of each two rows, Yes and No."""
  for row in rows:
    for side, word in zip(SIDES, VERDICTS):
      said = {'prompt': kinds.prompt(row), 'completion': kinds.said(row, side)}
      told = {'principle': kinds.text(row, 'principle'), 'fulfilment': word}
      yield said | told
