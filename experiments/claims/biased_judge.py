"""A judge of two answers whose biases are known: judges/ asks it as it asks any other.

An answer is a text that names its worth, 'worth 0.31', and may be padded. The judge
says A with the chance

  sigmoid(2 (worth_A - worth_B) + place + length log(words_A / words_B))

and each vote is a draw of its own.
"""

import hashlib
import math
import re

from jaxrl_llm.judges import verdicts


def answer(worth: float, words: int) -> str:
  """An answer's text."""
  return f'worth {worth:.6f}' + ' so' * (words - 2)


def biased_judge(*, place: float, length: float, seed: int) -> verdicts.Ask:
  """Conversations to replies.

  Args:
    place: log odds of A where nothing else speaks for either.
    length: log odds of the longer for each factor of e.
  """

  def one(messages: verdicts.Messages, vote: int) -> str:
    text = messages[-1]['content']
    tag = re.findall(r'VERDICT-([0-9a-f]+):', text)[-1]
    seen = re.findall(rf'(?s)\[answer [AB] {tag}\]\n(.*?)\n\[end {tag}\]', text)
    worth = [float(x.split()[1]) for x in seen]
    longer = math.log(len(seen[0].split()) / len(seen[1].split()))
    odds = 2 * (worth[0] - worth[1]) + place + length * longer
    said = 'A' if uniform(seed, tag, vote) < 1 / (1 + math.exp(-odds)) else 'B'
    return f'VERDICT-{tag}: {said}'

  return lambda conversations, vote=0: [one(m, vote) for m in conversations]


def uniform(*what) -> float:
  """A number from 0 to 1 that follows from what it is drawn for."""
  found = hashlib.blake2b(repr(what).encode(), digest_size=8).digest()
  return int.from_bytes(found, 'big') / 2**64
