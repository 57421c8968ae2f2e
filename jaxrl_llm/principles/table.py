"""A table of feedback as records of kind 'principles', with counts of what is lost."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.data import kinds, reshape
from jaxrl_llm.embeddings.embedder import Embedder
from jaxrl_llm.principles import consensus, extraction
from jaxrl_llm.principles.extraction import Claim

Row = dict[str, Any]


class Feedback(NamedTuple):
  """A row {prompt or messages, completion, annotator, feedback}."""

  prompt: Any
  completion: str
  annotator: str
  feedback: str


def feedback(row: Row) -> Feedback:
  """The row with its fields checked; kinds.py says what they may be."""
  said = [kinds.text(row, key) for key in ('completion', 'annotator', 'feedback')]
  return Feedback(kinds.prompt(row), *said)


def records(
  rows: Sequence[Feedback],
  said: Sequence[Sequence[Claim] | None],
  embedder: Embedder,
  threshold: float,
  *,
  least: float = extraction.LEAST,
) -> tuple[list[Row], Counter]:
  """Rows {prompt, completion, principle, fulfilment, evidence}, and what was counted.

  Args:
    rows, said: feedback, and what was read in it (extraction.extract).
    threshold: cosines above it say that two principles are one.
    least: what evidence must exceed (extraction.LEAST).

  Returns:
    Of the counts, 'claims' are all that were read: those in rows ('agreed'), and those
    dropped for a reason.
  """
  counts: Counter = Counter(feedback=len(rows), unreadable=sum(x is None for x in said))
  responses, found = defaultdict(list), []
  for row, claims in zip(rows, said, strict=True):
    good, lost = extraction.kept(claims or [], row.feedback, least)
    counts += lost + Counter(claims=len(claims or []))
    responses[reshape.digest([row.prompt, row.completion])].append((row, good))
  words = sorted({x.principle for g in responses.values() for _, c in g for x in c})
  vectors = dict(zip(words, embedder.vectors(words))) if words else {}
  for group in responses.values():
    new, lost = of_response(group, vectors, threshold)
    counts += lost
    found += new
  return found, counts + Counter(r['fulfilment'] for r in found)


def of_response(group, vectors: dict, threshold: float) -> tuple[list[Row], Counter]:
  """The rows of one response, and what became of its claims."""
  claims = [(row.annotator, x) for row, good in group for x in good]
  annotator = [who for who, _ in claims]
  if len({row.annotator for row, _ in group}) < 2:
    return [], Counter({'of one annotator alone': len(claims)})
  if set(annotator) != {row.annotator for row, _ in group}:
    return [], Counter({'not agreed on': len(claims)})
  points = np.stack([vectors[x.principle] for _, x in claims])
  rows, size = consensus.agreed([x for _, x in claims], annotator, points, threshold)
  first = group[0][0]
  asked = {'prompt': first.prompt, 'completion': first.completion}
  lost = Counter({'agreed': size, 'not agreed on': len(claims) - size})
  return [asked | row for row in rows], lost
