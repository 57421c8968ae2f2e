"""Which principles all annotators of a response name (RLBFF, 2025).

https://arxiv.org/abs/2509.21319: a principle stays if each of the other annotators has
one whose embedding has a cosine above the threshold. We require the same fulfilment
too, which the paper does not say. What stays is merged where annotators are linked: a
connected component is one row, in the words nearest to all of it.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csgraph

from jaxrl_llm.principles.extraction import Claim


def agreed(
  claims: Sequence[Claim], annotator: Sequence, vectors: np.ndarray, threshold: float
) -> tuple[list[dict], int]:
  """Rows {principle, fulfilment, evidence: of each claim} of one response.

  Args:
    claims, annotator: [N], what was said and who said it. The order does not matter.
    vectors: [N, D] of length 1, of the principles.

  Returns:
    The rows, and how many claims are in them.
  """
  linked = links(claims, annotator, vectors, threshold)
  people = np.array([[x == y for y in annotator] for x in dict.fromkeys(annotator)])
  # For every claim and person: a link to one of theirs, or the claim is their own.
  backed = (linked[:, None] & people).any(-1) | people.T
  stay = np.flatnonzero(backed.all(-1)) if len(people) > 1 else np.array([], int)
  if not len(stay):
    return [], 0
  count, part = csgraph.connected_components(linked[np.ix_(stay, stay)], directed=False)
  rows = [merged(claims, vectors, stay[part == k]) for k in range(count)]
  return sorted(rows, key=lambda r: (r['principle'], r['fulfilment'])), len(stay)


def links(claims, annotator, vectors, threshold: float) -> np.ndarray:
  """[N, N] bool: near enough, of the same fulfilment, of two annotators."""
  said = np.array([x.fulfilment for x in claims])
  apart = np.array([[x != y for y in annotator] for x in annotator])
  return (vectors @ vectors.T > threshold) & (said[:, None] == said) & apart


def merged(claims: Sequence[Claim], vectors: np.ndarray, which: np.ndarray) -> dict:
  """Claims as one row: the medoid's words, the first by letters of those that tie."""
  near = (vectors[which] @ vectors[which].T).sum(-1).round(6)
  said = [claims[i] for i in which]
  _, word = min((-x, claim.principle) for x, claim in zip(near, said))
  evidence = sorted(claim.evidence for claim in said)
  return {'principle': word, 'fulfilment': said[0].fulfilment, 'evidence': evidence}
