"""How different completions are. Plain Python; a text without spaces is its letters.

Expectation-adjusted distinct (Liu et al., 2022, as used by Kirk et al., 2023,
https://arxiv.org/abs/2310.06452) and self-BLEU (Zhu et al., 2018,
https://arxiv.org/abs/1802.01886).
"""

import collections
import math
from collections.abc import Sequence

MOST = 24  # Texts that self_bleu compares; it takes their square.


def units(text: str) -> list[str]:
  return text.split() if ' ' in text.strip() else list(text.strip())


def grams(text: str, n: int) -> list[tuple[str, ...]]:
  found = units(text)
  return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def distinct(texts: Sequence[str], n: int) -> float:
  """Different n-grams of the texts as a share of all; 0 where there are none."""
  found = [gram for text in texts for gram in grams(text, n)]
  return len(set(found)) / len(found) if found else 0.0


def adjusted_distinct(different: int, total: int, vocabulary: int) -> float:
  """N / (V (1 - ((V - 1) / V)^C)): N of C n-grams differ, against what an even draw
  from V would have. Unlike N / C it does not fall with length.
  """
  due = vocabulary * (1 - ((vocabulary - 1) / vocabulary) ** total)
  return different / due if total else 0.0


def self_bleu(texts: Sequence[str], order: int = 4) -> float:
  """Mean BLEU of each text against the others: 1 where all are the same.

  The geometric mean of clipped n-gram precisions up to `order` or the text's own
  length, times the brevity penalty; a precision of 0 counts as half an n-gram.
  """
  texts = [text for text in texts if units(text)][:MOST]
  if len(texts) < 2:
    return 0.0
  others = lambda i: texts[:i] + texts[i + 1 :]
  return sum(bleu(text, others(i), order) for i, text in enumerate(texts)) / len(texts)


def bleu(text: str, references: Sequence[str], order: int) -> float:
  size, logs = len(units(text)), []
  for n in range(1, min(order, size) + 1):
    own, most = collections.Counter(grams(text, n)), collections.Counter()
    for reference in references:
      most |= collections.Counter(grams(reference, n))
    total = size - n + 1
    logs.append(math.log(max((own & most).total(), 0.5) / total))
  nearest = min((len(units(r)) for r in references), key=lambda x: (abs(x - size), x))
  brevity = min(0.0, 1 - nearest / size)
  return math.exp(sum(logs) / len(logs) + brevity)


def of_samples(rows: Sequence[dict]) -> dict[str, float]:
  """distinct-1, distinct-2 and self-BLEU of rows of a sample table.

  Completions of one prompt are compared with each other, and the mean over prompts is
  taken; where no prompt has two, all of them are compared.
  """
  groups = collections.defaultdict(list)
  for row in rows:
    groups[row['prompt']].append(row['completion'])
  several = [g for g in groups.values() if len(g) > 1]
  several = several or [[row['completion'] for row in rows]]
  mean = lambda measure: sum(map(measure, several)) / len(several)
  return {
    'distinct-1': mean(lambda g: distinct(g, 1)),
    'distinct-2': mean(lambda g: distinct(g, 2)),
    'self-BLEU': mean(self_bleu),
  }
