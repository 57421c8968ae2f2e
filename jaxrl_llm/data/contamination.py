"""Training prompts that share a run of words with held-out ones."""

import re
from collections.abc import Iterable

from jaxrl_llm.data.chat import Prompt


def words_of(prompt: Prompt) -> str:
  """A prompt's text: of messages, all contents."""
  if isinstance(prompt, str):
    return prompt
  return '\n'.join(str(m.get('content', '')) for m in prompt)


def grams(text: str, n: int) -> set[tuple[str, ...]]:
  """Every run of n words, in lower case and without punctuation; of a shorter text, all
  of it; of one without words, none.
  """
  words = re.findall(r'\w+', text.lower())
  starts = range(max(len(words) - n + 1, 1)) if words else ()
  return {tuple(words[i : i + n]) for i in starts}


def shared(train: Iterable[str], test: Iterable[str], n: int) -> Iterable[str]:
  """The training texts that have n words in a row in common with a test text."""
  seen: set[tuple[str, ...]] = set()
  for text in test:
    seen |= grams(text, n)
  return (text for text in train if grams(text, n) & seen)


def report(train: Iterable[str], test: Iterable[str], n: int) -> str:
  """One line: how many, and an example."""
  found, first = 0, ''
  for text in shared(train, test, n):
    found, first = found + 1, first or text
  line = f'{found} training prompts share {n} words in a row with a held-out prompt'
  return f'{line}, for example {first[:80]!r}.' if found else f'{line}.'
