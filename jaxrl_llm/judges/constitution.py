"""Pairs from a written constitution: an answer, a critique of it, and its revision.

After Constitutional AI (2022), https://arxiv.org/abs/2212.08073: its are the critique
by a principle drawn at random, and the revision. It imitates revisions, and labels
pairs of samples; revision against answer is a later variant. The words of the requests
are ours, and so is the judge who must prefer the revision in both orders.

  python experiments/reshape.py "jaxrl_llm.judges.constitution.revised(
    constitution='principles.txt', writer={...}, judge={...})" TABLE OUT
"""

import collections
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl_llm.data import kinds
from jaxrl_llm.data.reshape import digest
from jaxrl_llm.evaluate import accuracy
from jaxrl_llm.judges import asked, verdicts
from jaxrl_llm.types import InputError

CRITICISE = (
  'Say in which ways your last answer falls short of this principle, and nothing else:'
)
REVISE = (
  'Rewrite your answer so that it keeps the principle. Reply with the new answer alone.'
)
RUBRIC = 'The better answer is the one that keeps these principles:'


class Draft(NamedTuple):
  """A prompt on its way to a pair."""

  prompt: Any  # As the row has it.
  asked: verdicts.Messages
  first: str = ''
  last: str = ''  # The newest revision.
  principles: tuple[str, ...] = ()
  lost: str = ''  # Why there will be no pair.


def revised(
  rows: Iterable[dict],
  *,
  constitution: str,
  writer: dict,
  judge: dict,
  rounds: int = 1,
  votes: int = 1,
  least: float = 0.0,
  seed: int = 0,
) -> Iterator[dict]:
  """Rows of prompts as kind 'pairs': the revision chosen and the first answer rejected.

  A row has a prompt and, if it is not to be written here, a `completion`. A principle
  follows from seed, prompt and round alone. At the end it says how many pairs were
  lost, and to what.

  Args:
    constitution: a text file with a principle in each line; '#' begins a comment.
    writer, judge: as `by` of the reward `judge`; the name 'remembered' around either
      goes on where a run was cut off.
    rounds: critiques and revisions in turn; the paper has up to 4.
    votes: the judge's replies to each order; with a temperature of 0 they are the same.
    least: of the margin, the mean preference over votes and orders, up to 1. A pair
      with less is left out; where votes differ it is below 1.

  Raises:
    InputError: no principle, or a judge that keeps to no form (judges/asked.py).
  """
  principles, write, ask = read(constitution), asked.make(writer), asked.make(judge)
  drafts = answered(write, [begun(row) for row in rows])
  for turn in range(rounds):
    drafts = improved(write, drafts, principles, f'{seed}/{turn}')
  drafts = [lost(d, d.last == d.first, 'not changed') for d in drafts]
  judged = sum(not d.lost for d in drafts)
  both = compared(ask, drafts, votes)
  drafts = [verdict(d, *games, least) for d, games in zip(drafts, both)]
  report(drafts, judged)
  for draft, (first, second) in zip(drafts, both):
    if not draft.lost:
      yield {
        'prompt': draft.prompt,
        'chosen': draft.last,
        'rejected': draft.first,
        'margin': verdicts.both_orders(first, second, 'mean'),
        'principles': [*draft.principles],
      }


def read(path: str) -> list[str]:
  """The principles of a constitution."""
  if not Path(path).is_file():
    raise InputError(f'constitution={path!r}: there is no such file.')
  text = Path(path).read_text()
  lines = [line.partition('#')[0].strip() for line in text.splitlines()]
  if not any(lines):
    raise InputError(f'{path}: no line has a principle.')
  return [line for line in lines if line]


def begun(row: dict) -> Draft:
  prompt = kinds.prompt(row)
  answer = kinds.text(row, 'completion') if row.get('completion') is not None else ''
  return Draft(prompt, kinds.conversation(prompt), answer, answer)


def answered(write: verdicts.Ask, drafts: Sequence[Draft]) -> list[Draft]:
  """Drafts with first answers."""
  silent = [d for d in drafts if not d.first]
  said = iter(replies(write, silent, [d.asked for d in silent]))
  found = [d if d.first else d._replace(last=next(said)) for d in drafts]
  return [lost(d._replace(first=d.last), not d.last, 'no answer') for d in found]


def improved(
  write: verdicts.Ask, drafts: Sequence[Draft], principles: Sequence[str], key: str
) -> list[Draft]:
  """Drafts after one more critique and revision."""
  draw = lambda d: random.Random(f'{key}/{digest(d.prompt)}').choice(principles)
  drafts = [d._replace(principles=(*d.principles, draw(d))) for d in drafts]
  asking = [says(d, f'{CRITICISE}\n\n{d.principles[-1]}') for d in drafts]
  critiques = replies(write, drafts, asking)
  drafts = [lost(d, not c, 'no critique') for d, c in zip(drafts, critiques)]
  asking = [
    [*before, {'role': 'assistant', 'content': c}, {'role': 'user', 'content': REVISE}]
    for before, c in zip(asking, critiques)
  ]
  found = [d._replace(last=x) for d, x in zip(drafts, replies(write, drafts, asking))]
  return [lost(d, not d.last, 'no revision') for d in found]


def replies(
  write: verdicts.Ask, drafts: Sequence[Draft], asking: Sequence
) -> list[str]:
  """What the writer says in each conversation; nothing of drafts that are lost."""
  live = [words for d, words in zip(drafts, asking) if not d.lost]
  said = iter(write(live, 0) if live else [])
  return ['' if d.lost else next(said).strip() for d in drafts]


def says(draft: Draft, words: str) -> verdicts.Messages:
  """The conversation so far, and what the writer is asked to do next."""
  answer = {'role': 'assistant', 'content': draft.last}
  return [*draft.asked, answer, {'role': 'user', 'content': words}]


def lost(draft: Draft, bad: bool, why: str) -> Draft:
  """The draft, given up for `why` where it is `bad` and still there."""
  return draft._replace(lost=why) if bad and not draft.lost else draft


def compared(
  ask: verdicts.Ask, drafts: Sequence[Draft], votes: int
) -> list[tuple[float | None, float | None]]:
  """The judge's mean preference with the revision first, and with it second; None of
  what it cannot be read of, or is not asked.
  """
  live = [d for d in drafts if not d.lost]
  games = [game(d, d.last, d.first) for d in live]
  games += [game(d, d.first, d.last) for d in live]
  found = asked.means(ask, games, verdicts.preference, votes) if live else []
  both = iter(zip(found[: len(live)], found[len(live) :]))
  return [(None, None) if d.lost else next(both) for d in drafts]


def game(draft: Draft, one: str, other: str) -> verdicts.Question:
  """Which of two is better, to a judge who knows the principles."""
  several = len(draft.asked) > 1
  words = [f'{m["role"]}: ' * several + str(m['content']) for m in draft.asked]
  rubric = ' '.join([RUBRIC, *draft.principles])
  return verdicts.compared('\n\n'.join(words), one, other, rubric=rubric)


def verdict(
  draft: Draft, first: float | None, second: float | None, least: float
) -> Draft:
  """The draft, given up where the judge does not prefer its revision."""
  if draft.lost or first is None or second is None:
    return lost(draft, True, 'no verdict')
  draft = lost(draft, first <= 0 <= second, 'not preferred')
  draft = lost(draft, not first > 0 > second, 'the orders disagree')
  margin = verdicts.both_orders(first, second, 'mean')
  return lost(draft, margin < least, 'not sure')


def report(drafts: Sequence[Draft], judged: int) -> None:
  """Says how many pairs there are, and what became of the others."""
  kept = sum(not d.lost for d in drafts)
  low, high = accuracy.wilson(kept, judged) if judged else (0.0, 1.0)
  print(
    f'{kept} of {len(drafts)} prompts have a pair. Of {judged} revisions judged '
    f'{kept / max(judged, 1):.0%} are kept, 95 % interval {low:.0%} to {high:.0%}.'
  )
  for why, count in collections.Counter(d.lost for d in drafts if d.lost).items():
    print(f'Lost, {why}: {count}.')
