"""Rows of preferences as rows of another kind, thinned out, split, or made worse.

Each function maps rows to rows, which the kinds of kinds.py read. A row with several
scored completions is {prompt, completions, scores}, or with ranks, 0 the best, in the
place of scores. Prompts are strings or messages. experiments/reshape.py runs these
functions on tables.
"""

import hashlib
import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from jaxrl_llm.data import kinds, tables
from jaxrl_llm.evaluate import accuracy
from jaxrl_llm.judges import verdicts
from jaxrl_llm.types import InputError

Row = dict[str, Any]
SIDES = ('chosen', 'rejected')
REWRITE = 'Write the answer again, with what is wrong in it put right.'


# ---- From scores to pairs, rankings and labels ---------------------------------------


def pairs(rows: Iterable[Row], *, margin: float = 0.0, ends: bool = False):
  """Kind 'pairs': all two whose scores differ by more than `margin`, with the margin.

  Args:
    ends: only the best and the worst of each row.
  """
  for row in rows:
    ordered = scored(row)
    found = itertools.combinations(ordered, 2)
    for (one, best), (other, worst) in [(ordered[0], ordered[-1])] if ends else found:
      if best - worst > margin and one != other:
        both = {'chosen': one, 'rejected': other, 'margin': best - worst}
        yield {'prompt': kinds.prompt(row), **both}


def rankings(rows: Iterable[Row], *, size: int = 0) -> Iterator[Row]:
  """Kind 'rankings': completions with the best first, equal scores on one rank.

  Args:
    size: a table of rankings has lists of one length, so only the best so many, and
      rows that have fewer are left out; 0 keeps each as long as it is.
  """
  for row in rows:
    ordered = scored(row)
    if len(ordered) < max(size, 2):
      continue
    ordered = ordered[: size or None]
    steps = sorted({-score for _, score in ordered})
    ranks = [steps.index(-score) for _, score in ordered]
    yield {
      'prompt': kinds.prompt(row),
      'completions': [text for text, _ in ordered],
      'ranks': ranks,
    }


def transcripts(rows: Iterable[Row]) -> Iterator[Row]:
  """Kind 'pairs', as messages, of hh-rlhf's transcripts (kind 'hh')."""
  for row in rows:
    asked, (chosen, rejected), *_ = kinds.hh(row)
    yield {'prompt': asked, 'chosen': chosen, 'rejected': rejected}


def labels(rows: Iterable[Row], *, threshold: float | None = None) -> Iterator[Row]:
  """Kind 'labels', for KTO: of pairs the chosen one is desirable and the rejected one
  is not, and a tie is left out; of scored completions those above `threshold` are.
  """
  for row in rows:
    if 'chosen' not in row:
      found = [(text, score > above(row, threshold)) for text, score in scored(row)]
    elif row.get('tie'):
      continue
    else:
      found = [(kinds.said(row, side), side == 'chosen') for side in SIDES]
    for text, label in found:
      yield {'prompt': kinds.prompt(row), 'completion': text, 'label': label}


def above(row: Row, threshold: float | None) -> float:
  """The score above which a completion is desirable."""
  if 'ranks' in row:
    raise InputError(
      "labels: 'ranks' say which completion is better and not which is good. Make "
      'pairs of them first, or give scores.'
    )
  if threshold is None:
    raise InputError(
      'labels: say above which score a completion is desirable, labels(threshold=...).'
    )
  return threshold


def scored(row: Row) -> list[tuple[Any, float]]:
  """A row's completions and scores, the best first; equal ones stay in order."""
  texts, by = kinds.listed(row, 'completions'), 'ranks' if 'ranks' in row else 'scores'
  given = kinds.listed(row, by)
  if len(texts) != len(given):
    raise InputError(
      f'{len(texts)} completions and {len(given)} {by}; as many are due.'
    )
  sign = -1.0 if by == 'ranks' else 1.0
  values = [sign * kinds.number({by: x}, by) for x in given]
  kinds.prompt(row)
  return sorted(zip(texts, values), key=lambda pair: -pair[1])


# ---- Thinned out and split -----------------------------------------------------------


def deduplicated(rows: Iterable[Row]) -> Iterator[Row]:
  """Each row once: the first of those that are equal in all fields."""
  seen = set()
  for row in rows:
    if (key := digest(row)) not in seen:
      seen.add(key)
      yield row


def consistent(rows: Iterable[Row]) -> Iterator[Row]:
  """Pairs without those that also come the other way round."""
  found = [(row, digest(told(row)), digest(told(row, turned=True))) for row in rows]
  there = {mine for _, mine, _ in found}
  yield from (row for row, _, turned in found if turned not in there)


def easy(rows: Iterable[Row], *, margin: float = -1.0) -> Iterator[Row]:
  """Pairs that a reward model sets apart by more than `margin`; see `hard`."""
  rows, gaps, limit = apart(rows, margin)
  yield from (row for row, gap in zip(rows, gaps) if gap > limit)


def hard(rows: Iterable[Row], *, margin: float = -1.0) -> Iterator[Row]:
  """The other pairs. MPO (2024), https://arxiv.org/abs/2403.19443, learns the easy ones
  by DPO, and then the hard ones' prompts by PPO, from that policy and against it.

  Args:
    margin: of the rows' field of that name (rewards/margins.py), whatever its sign.
      Below 0 is their median, which is ours: the paper's threshold was not found.
      Experimental.
  """
  rows, gaps, limit = apart(rows, margin)
  yield from (row for row, gap in zip(rows, gaps) if gap <= limit)


def apart(rows: Iterable[Row], margin: float) -> tuple[list[Row], list[float], float]:
  """Rows, their margins, and the one to split at."""
  found = [(row, abs(kinds.number(row, 'margin'))) for row in rows]
  gaps = [gap for _, gap in found]
  limit = margin if margin >= 0 or not gaps else float(np.median(gaps))
  return [row for row, _ in found], gaps, limit


# ---- With more prompts ---------------------------------------------------------------


def contrasted(rows: Iterable[Row], *, better: str, worse: str) -> Iterator[Row]:
  """Kind 'contrastive_pairs' of pairs, for t_reg: each of two requests is added to the
  end of the prompt.
  """
  for row in rows:
    asked = kinds.prompt(row)
    yield row | {'prompts': [requested(asked, words) for words in (better, worse)]}


def rewrites(rows: Iterable[Row]) -> Iterator[Row]:
  """Kind 'demonstrations' of pairs, for the model of rewriting.py: asked to write an
  answer again, of the rejected one it writes the chosen, of the chosen one the same.

  The words of the request are ours.
  """
  for row in rows:
    chosen, asked = kinds.text(row, 'chosen'), kinds.prompt(row)
    for answer in (kinds.text(row, 'rejected'), chosen):
      yield {'prompt': kinds.judged(asked, answer, REWRITE), 'completion': chosen}


def grades(rows: Iterable[Row], *, low: int = 0, high: int = 5) -> Iterator[Row]:
  """Kind 'demonstrations' of labels or scored completions: what rewards/judge.py asks
  of an answer, and the verdict: its score, rounded, or for a label `high` or `low`.

  So fine-tuning teaches a model to grade, as in self-rewarding (2024),
  https://arxiv.org/abs/2401.10020, whose verdicts have reasons too.
  """
  for row in rows:
    if 'label' in row:
      score = high if kinds.truth(row, 'label') else low
      found = [(kinds.said(row, 'completion'), score)]
    else:
      found = scored(row)
    for said, score in found:
      if not low <= (grade := round(score)) <= high:
        raise InputError(f'a score of {score:g}; grades are from {low} to {high}.')
      asked = spoken(kinds.prompt(row)), spoken(said)
      question = verdicts.graded(*asked, low=low, high=high)
      yield {'prompt': question.messages, 'completion': f'{question.mark} {grade}'}


def requested(prompt: Any, words: str) -> Any:
  if isinstance(prompt, str):
    return f'{prompt}\n\n{words}'
  last = prompt[-1]
  return [*prompt[:-1], last | {'content': f'{last["content"]}\n\n{words}'}]


# ---- Made worse ----------------------------------------------------------------------


def flipped(rows: Iterable[Row], *, share: float, seed: int = 0) -> Iterator[Row]:
  """Pairs, `share` of them turned round, and labels said wrongly: noise that is known.

  Which rows depends on `seed` and their place alone. They say so: 'flipped' is true.
  """
  check_share(share)
  for i, row in enumerate(rows):
    turn = random.Random(f'{seed}/{i}').random() < share
    if 'label' in row:
      new = {'label': row['label'] != turn}
    else:
      first, second = SIDES[::-1] if turn else SIDES
      new = {'chosen': kinds.said(row, first), 'rejected': kinds.said(row, second)}
    yield row | new | {'flipped': turn}


def corrupted(
  rows: Iterable[Row], *, share: float = 0.2, how: str = 'swap', seed: int = 0
) -> Iterator[Row]:
  """Kind 'pairs' of demonstrations or pairs: the rejected one is the good one, worse.

  After POVID (2024), https://arxiv.org/abs/2402.11411, whose rejected answers are a
  model's hallucinations and those of a noised image; both are out of reach here, and
  these corruptions of the text are ours.

  Args:
    how: 'swap' puts words of other rows in the place of some, 'drop' leaves them out,
      'digits' changes digits.
    share: of the words, or digits; at least one changes, or the row is left out.
  """
  check_share(share)
  if how not in CORRUPTIONS:
    raise InputError(f'corrupted: how={how!r}; there are {sorted(CORRUPTIONS)}.')
  rows = [(kinds.prompt(row), good(row)) for row in rows]
  words = sorted({w for _, said in rows for w in spoken(said).split()})
  for i, (prompt, said) in enumerate(rows):
    rng, text = random.Random(f'{seed}/{i}'), spoken(said)
    worse = CORRUPTIONS[how](text, share, rng, words)
    if worse.strip() and worse != text:
      other = (
        worse if isinstance(said, str) else [*said[:-1], said[-1] | {'content': worse}]
      )
      yield {'prompt': prompt, 'chosen': said, 'rejected': other}


def good(row: Row) -> Any:
  return kinds.said(row, 'chosen' if 'chosen' in row else 'completion')


def spoken(said: Any) -> str:
  """The text of a completion; of messages that of the last one."""
  return said if isinstance(said, str) else str(said[-1]['content'])


def swap(text: str, share: float, rng: random.Random, words: list[str]) -> str:
  return changed(r'\S+', text, share, rng, lambda _: rng.choice(words))


def drop(text: str, share: float, rng: random.Random, words: list[str]) -> str:
  del words
  return ' '.join(changed(r'\S+', text, share, rng, lambda _: '').split())


def digits(text: str, share: float, rng: random.Random, words: list[str]) -> str:
  del words
  other = lambda m: rng.choice([d for d in '0123456789' if d != m.group()])
  return changed('[0-9]', text, share, rng, other)


CORRUPTIONS = {f.__name__: f for f in (swap, drop, digits)}


def changed(
  pattern: str, text: str, share: float, rng: random.Random, put: Callable
) -> str:
  """The text with `put` in the place of a share of the pattern's matches."""
  count = len(re.findall(pattern, text))
  some = {*rng.sample(range(count), min(max(round(share * count), 1), count))}
  number = itertools.count()
  return re.sub(pattern, lambda m: put(m) if next(number) in some else m.group(), text)


def check_share(share: float) -> None:
  if not 0 <= share <= 1:
    raise InputError(f'share={share!r}; give a number from 0 to 1.')


# ---- What a table says of itself -----------------------------------------------------


def agreement(
  rows: Iterable[Row], *, others: str | Iterable[Row]
) -> Iterator[dict[str, float]]:
  """One row: how often two tables prefer the same of the same two, with a 95 % Wilson
  interval. Pairs that only one of the tables has do not count.

  Args:
    others: the second table, or its path.
  """
  others = tables.open_table(others) if isinstance(others, str) else others
  first, second = (
    {digest(told(row)): row for row in table} for table in (rows, others)
  )
  same = sum(key in second for key in first)
  turned = sum(digest(told(row, turned=True)) in second for row in first.values())
  if not (count := same + turned):
    raise InputError('agreement: the two tables compare no two completions in common.')
  low, high = accuracy.wilson(same, count)
  yield {'pairs': count, 'agreement': same / count, 'low': low, 'high': high}


def flip_rate(rows: Iterable[Row]) -> Iterator[dict[str, float]]:
  """One row: the share of pairs that stand in the table the other way round too."""
  rows = list(rows)
  kept = len(list(consistent(rows)))
  yield {'pairs': len(rows), 'flip_rate': 1 - kept / max(len(rows), 1)}


def told(row: Row, *, turned: bool = False) -> list:
  """A pair without what stands beside it, or the same two the other way round."""
  first, second = SIDES[::-1] if turned else SIDES
  asked = row.get(kinds.asked_in(row))
  return [asked, kinds.said(row, first), kinds.said(row, second)]


def digest(value: Any) -> str:
  """A short name for a value that JSON can hold."""
  text = json.dumps(value, sort_keys=True, default=str)
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
