"""A world of feedback whose truth is known, to test how principles are found in it.

Answers to small sums keep eight principles or not: a function of the text decides.
Three annotators each speak of most of them, in sentences of their own choice, and are
sometimes wrong; a reader by rules stands for the language model, and sometimes makes
something up. Sentences, words and rates are ours.
"""

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxrl_llm.judges import verdicts

Row = dict[str, Any]


class Fact(NamedTuple):
  """What is asked for: a + b of some things."""

  a: int
  b: int
  unit: str


class Rule(NamedTuple):
  """A principle: how it is called, and whether an answer keeps it."""

  names: tuple[str, ...]
  keeps: Callable[[Fact, str], bool]


def sentences(text: str) -> list[str]:
  return [x.strip() for x in re.split(r'[.!]', text) if x.strip()]


RULES = {
  'short': Rule(
    ('brevity', 'short length of the answer', 'brief length', 'short answer'),
    lambda fact, text: len(text.split()) <= 12,
  ),
  'greeting': Rule(
    ('greeting', 'friendly greeting', 'greeting of the user', 'opening greeting'),
    lambda fact, text: text.lower().startswith('hello'),
  ),
  'once': Rule(
    ('lack of repetition', 'no repetition', 'absence of repetition', 'saying it once'),
    lambda fact, text: len({*sentences(text.lower())}) == len(sentences(text)),
  ),
  'sum': Rule(
    ('correct sum', 'correctness of the sum', 'right sum', 'accuracy of the sum'),
    lambda fact, text: re.findall(r'[0-9]+', text)[-1:] == [str(fact.a + fact.b)],
  ),
  'unit': Rule(
    ('naming the unit', 'unit of the result', 'mention of the unit', 'stated unit'),
    lambda fact, text: fact.unit in text.lower(),
  ),
  'lowercase': Rule(
    ('lowercase', 'lowercase writing', 'use of lowercase letters', 'no capitals'),
    lambda fact, text: text == text.lower(),
  ),
  'working': Rule(
    ('shown working', 'showing the working', 'working of the steps', 'steps shown'),
    lambda fact, text: f'{fact.a} + {fact.b} =' in text,
  ),
  'stop': Rule(
    ('final full stop', 'full stop at the end', 'closing full stop', 'end punctuation'),
    lambda fact, text: text.endswith('.'),
  ),
}
WHO = {name: rule for rule, told in RULES.items() for name in told.names}
SAID = {
  'Yes': ('The {} is good.', 'I like the {}.', 'It does well on the {}.'),
  'No': ('It fails on the {}.', 'I miss the {}.', 'The {} is not there.'),
  'Partially': ('The {} is there in part.',),
}
PADDING = 'Counting such things is a pleasure that grows with each day of practice.'


# ---- Answers -------------------------------------------------------------------------


def fact(rng: random.Random) -> Fact:
  units = ('apples', 'pears', 'coins', 'miles')
  return Fact(rng.randrange(1, 20), rng.randrange(1, 20), rng.choice(units))


def question(asked: Fact) -> str:
  return f'What is {asked.a} and {asked.b} {asked.unit}?'


def answer(asked: Fact, rng: random.Random) -> str:
  """A text that tosses a coin for each principle."""
  coin = lambda: rng.random() < 0.5
  total = asked.a + asked.b + (0 if coin() else rng.choice((-1, 1, 10)))
  result = f'It is {total}{" " + asked.unit if coin() else ""}'
  parts = ['Hello!'] * coin() + [PADDING] * coin()
  parts += [f'{asked.a} + {asked.b} = {total}.'] * coin() + [f'{result}.'] * coin()
  text = ' '.join([*parts, result + '.' * coin()])
  return text.lower() if coin() else text


def kept(asked: Fact, text: str) -> dict[str, bool]:
  """Which principles an answer keeps."""
  return {name: bool(rule.keeps(asked, text)) for name, rule in RULES.items()}


# ---- Feedback ------------------------------------------------------------------------


def feedback(
  *,
  size: int,
  answers: int = 1,
  annotators: int = 3,
  mention: float = 0.85,
  noise: float = 0.05,
  seed: int = 0,
) -> Iterator[Row]:
  """Rows {prompt, completion, annotator, feedback, said, kept}, one an annotator.

  Args:
    size, answers: of questions, and of answers to each.
    mention: how likely an annotator speaks of a principle.
    noise: how likely what they say of it is wrong.

  Returns:
    `said` is what the feedback says, {principle: 'Yes' or 'No'}; `kept` what is true.
    Both are by the names in RULES and beside what principles/table.py reads.
  """
  rng = random.Random(f'{seed}/feedback')
  for asked in (x for _ in range(size) for x in [fact(rng)] * answers):
    text = answer(asked, rng)
    true = kept(asked, text)
    for who in range(annotators):
      named = [x for x in true if rng.random() < mention]
      rng.shuffle(named)
      said = {x: 'Yes' if true[x] != (rng.random() < noise) else 'No' for x in named}
      told = ' '.join(spoken(said, rng))
      same = {'prompt': question(asked), 'completion': text, 'kept': true}
      yield same | {'annotator': f'annotator {who}', 'feedback': told, 'said': said}


def spoken(said: dict[str, str], rng: random.Random) -> Iterator[str]:
  """A sentence of each principle, one of helpfulness, and one that is half a praise."""
  yield rng.choice(SAID['Yes']).format('helpfulness')
  for rule, fulfilment in said.items():
    name = rng.choice(RULES[rule].names)
    yield rng.choice(SAID[fulfilment]).format(name)
  others = [rule for rule in RULES if rule not in said]
  if others:
    name = rng.choice(RULES[rng.choice(others)].names)
    yield rng.choice(SAID['Partially']).format(name)


def reader(*, invent: float = 0.1, seed: int = 0) -> verdicts.Ask:
  """Reads feedback by rules, in the place of a language model.

  Args:
    invent: how likely it adds a principle whose evidence is not in the feedback.
  """

  def reply(text: str) -> str:
    tag = re.findall(r'VERDICT-([0-9a-f]+):', text)[-1]
    told = re.search(rf'(?s)\[feedback {tag}\]\n(.*?)\n\[end {tag}\]', text)[1]
    found = list(claims(told))
    if random.Random(f'{seed}/{told}').random() < invent:
      made_up = ('Vivid imagery with bold metaphors', 'Yes', 'creativity')
      found.append(made_up)
    keys = ('evidence', 'fulfilment', 'principle')
    return f'VERDICT-{tag}: {json.dumps([dict(zip(keys, x)) for x in found])}'

  def ask(conversations, vote: int = 0) -> list[str]:
    return [reply(messages[-1]['content']) for messages in conversations]

  return ask


def claims(told: str) -> Iterator[tuple[str, str, str]]:
  """Sentences of SAID as (sentence, fulfilment, principle)."""
  for sentence in re.findall(r'[^.]+\.', told):
    for fulfilment, forms in SAID.items():
      for form in forms:
        start, end = form.split('{}')
        found = re.fullmatch(
          f'{re.escape(start)}(.+){re.escape(end)}', sentence.strip()
        )
        if found:
          yield sentence.strip(), fulfilment, found[1]


def table() -> Iterator[Row]:
  """For 'python:jaxrl_llm.principles.grammar.table'."""
  return feedback(size=100)


# ---- How well the principles were found ----------------------------------------------


def scored(rows: Sequence[Row], records: Sequence[Row]) -> dict[str, float]:
  """Records against what all annotators of a response said of a principle alike.

  `precision` is the share of records that they said so, `recall` the share of what they
  said so that is a record, `true` the share of records that are true of the response.
  """
  said, truth = {}, {}
  for row in rows:
    at = (row['prompt'], row['completion'])
    mine = {*row['said'].items()}
    said[at] = said.get(at, mine) & mine
    truth[at] = row['kept']
  due = {(at, *x) for at, told in said.items() for x in told}
  at = lambda r: (r['prompt'], r['completion'])
  found = [(at(r), WHO[r['principle']], r['fulfilment']) for r in records]
  right = [x in due for x in found]
  true = [truth[at][rule] == (word == 'Yes') for at, rule, word in found]
  share = lambda x, of: sum(x) / max(len(of), 1)
  met = [x in {*found} for x in due]
  return dict(
    precision=share(right, right), recall=share(met, met), true=share(true, true)
  )


def separation(vectors, threshold: float) -> dict[str, float]:
  """How a threshold tells names of one principle from those of two: the F1 of pairs."""
  names = [*WHO]
  points = vectors(names)
  near = points @ points.T > threshold
  pairs = [(i, j) for i in range(len(names)) for j in range(i)]
  same = [WHO[names[i]] == WHO[names[j]] for i, j in pairs]
  both = sum(bool(near[i, j]) and x for (i, j), x in zip(pairs, same))
  called = sum(bool(near[i, j]) for i, j in pairs)
  return dict(
    precision=both / max(called, 1),
    recall=both / sum(same),
    f1=2 * both / (called + sum(same)),
  )


# ---- Pairs ---------------------------------------------------------------------------


def pairs(*, size: int, seed: int = 0) -> Iterator[Row]:
  """Rows {prompt, chosen, rejected, principle, rule}, of which `chosen` keeps it."""
  rng = random.Random(f'{seed}/pairs')
  names = [*RULES]
  for i in range(size):
    rule, asked, both = names[i % len(names)], fact(rng), {}
    while len(both) < 2:
      text = answer(asked, rng)
      both.setdefault(kept(asked, text)[rule], text)
    named = rng.choice(RULES[rule].names)
    told = {'prompt': question(asked), 'chosen': both[True], 'rejected': both[False]}
    yield told | {'principle': named, 'rule': rule}
