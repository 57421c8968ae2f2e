"""How near principles must be, and how true evidence, for what annotators agree on."""

import functools
import random

import numpy as np

from jaxrl_llm.embeddings.embedder import Embedder
from jaxrl_llm.embeddings.minilm import minilm
from jaxrl_llm.principles import extraction, fuzzy, grammar, table
from jaxrl_llm.principles.extraction import Claim

METHODS = ('experiments/principles.py',)
METRICS = ('f1', 'precision', 'recall', 'rows')
SEEDS, SIZES = 6, (20, 40, 80)  # Responses, each set the beginning of the next.
NEAR, LEAST = 0.4, extraction.LEAST
MISQUOTED, CHANGED, INVENTED = 0.3, 0.25, 0.5
ARMS = {
  'cosine 0.4, evidence 60': (NEAR, LEAST),
  **{f'cosine {x}': (x, LEAST) for x in (0.2, 0.3, 0.5, 0.6, 0.8)},
  **{f'evidence {x}': (NEAR, float(x)) for x in (0, 40, 80, 95)},
}


def run():
  fuzzy.partial_ratio = functools.cache(fuzzy.partial_ratio)  # Of all arms the same.
  names = [*grammar.WHO]
  known = dict(zip(names, minilm().vectors(names)))
  embed = Embedder(lambda words: np.stack([known[word] for word in words]), NEAR)
  found = {arm: [] for arm in ARMS}
  for seed in range(SEEDS):
    rows = list(grammar.feedback(size=SIZES[-1], seed=seed))
    rng = random.Random(f'{seed}/read')
    read = [said(row, rng) for row in rows]
    for arm, at in ARMS.items():
      found[arm].append([recorded(rows, read, n, embed, *at) for n in SIZES])
  return found


def said(row, rng):
  """What a reader finds in a feedback: all that is there, some of it misquoted, and
  some of what the annotator did not speak of, with evidence of its own making.
  """
  there = grammar.claims(row['feedback'])
  told = [Claim(name, yes, quoted(words, rng)) for words, yes, name in there]
  for rule in sorted(grammar.RULES.keys() - row['said'].keys()):
    if rng.random() < INVENTED:
      told.append(invented(rule, rng))
  return told


def quoted(sentence, rng):
  """As it stands, or with words of other sentences in the place of some."""
  if rng.random() >= MISQUOTED:
    return sentence
  words = grammar.PADDING.split()
  return ' '.join(
    rng.choice(words) if rng.random() < CHANGED else word for word in sentence.split()
  )


def invented(rule, rng):
  """A sentence that could have been said of this principle, and was not."""
  name, yes = rng.choice(grammar.RULES[rule].names), rng.choice(('Yes', 'No'))
  return Claim(name, yes, rng.choice(grammar.SAID[yes]).format(name))


def recorded(rows, read, size, embed, near, least):
  """One record, of the first `size` responses."""
  count = size * len({row['annotator'] for row in rows})
  rows, read = rows[:count], read[:count]
  feedback = [table.feedback(row) for row in rows]
  records, _ = table.records(feedback, read, embed, near, least=least)
  told = grammar.scored(rows, records)
  both = told['precision'] + told['recall']
  f1 = 2 * told['precision'] * told['recall'] / max(both, 1e-9)
  told = {'f1': f1, **told, 'rows': float(len(records))}
  return {'step': size, 'rollouts': 0.0, 'tokens': 0.0} | told


def parts(told):
  f1 = {arm: found['f1'] for arm, found in told.last.items()}
  best = f1['cosine 0.4, evidence 60']
  return {
    'F1: cosine 0.4 less 0.2': best - f1['cosine 0.2'],
    'F1: cosine 0.4 less 0.8': best - f1['cosine 0.8'],
    'F1: evidence above 60 less any': best - f1['evidence 0'],
    'F1: evidence above 60 less above 95': best - f1['evidence 95'],
  }
