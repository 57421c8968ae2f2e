"""Training prompts that share a run of words with held-out ones."""

import re
from collections.abc import Iterable, Sequence

from jaxrl_llm.data.chat import Prompt


def words_of(prompt: Prompt) -> str:
  """A prompt's text: of messages, all contents."""
  if isinstance(prompt, str):
    return prompt
  return '\n'.join(str(m.get('content', '')) for m in prompt)


def grams(text: str, n: int) -> set[tuple[str, ...]]:
  """Every run of n words, in lower case and without punctuation; of a shorter text, all
  of it.
  """
  words = re.findall(r'\w+', text.lower())
  return {tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))}


def shared(train: Sequence[str], test: Iterable[str], n: int) -> list[int]:
  """Indices of the training texts that share n words in a row with a test text."""
  seen: set[tuple[str, ...]] = set()
  for text in test:
    seen |= grams(text, n)
  return [i for i, text in enumerate(train) if grams(text, n) & seen]


def report(train: Sequence[str], test: Iterable[str], n: int) -> str:
  """One line: how many, and an example."""
  found = shared(train, test, n)
  line = (
    f'{len(found)} of {len(train)} training prompts share {n} words in a row with a '
    'held-out prompt'
  )
  return f'{line}, for example {train[found[0]][:80]!r}.' if found else f'{line}.'
