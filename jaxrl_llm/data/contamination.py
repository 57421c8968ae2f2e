"""Training examples that share a run of words with held-out ones."""

import re
from collections.abc import Iterable, Sequence

from jaxrl_llm.data.chat import Prompt
from jaxrl_llm.data.examples import Example

# A word, or a character of a script that puts no spaces between words: Thai to Khmer,
# kana, Han.
UNSPACED = '\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff'
WORD = re.compile(rf'[{UNSPACED}]|[^\W{UNSPACED}]+')


def words_of(prompt: Prompt) -> str:
  """A prompt's text: of messages, all contents."""
  if isinstance(prompt, str):
    return prompt
  return '\n'.join(str(m.get('content', '')) for m in prompt)


def given(example: Example) -> list[str]:
  """The texts that an example is given: prompts, without a system message, which many
  share, and in completions the turns of others than an assistant. Of plain text without
  a prompt it is the completion.
  """
  others = example.aux.prompts if example.aux else ()
  talks = [c for c in example.completions if isinstance(c, list)]
  turns = [[m] for talk in talks for m in talk if m['role'] != 'assistant']
  told = (example.prompt, *example.prompts, *others, *turns)
  texts = (words_of(asked(x)) for x in told)
  return [*dict.fromkeys(filter(None, texts))] or [str(example.completions[0])]


def asked(prompt: Prompt) -> Prompt:
  """A prompt without its system messages."""
  if isinstance(prompt, str):
    return prompt
  return [m for m in prompt if m['role'] != 'system']


def grams(text: str, n: int) -> set[tuple[str, ...]]:
  """Every run of n words, in lower case and without punctuation; of a shorter text, all
  of it; of one without words, none.
  """
  words = WORD.findall(text.lower())
  starts = range(max(len(words) - n + 1, 1)) if words else ()
  return {tuple(words[i : i + n]) for i in starts}


def shared(
  train: Iterable[Sequence[str]], test: Iterable[Sequence[str]], n: int
) -> Iterable[str]:
  """Of each training example that has n words in a row in common with a test example
  the text that has them. Examples are their texts.
  """
  seen = {g for texts in test for text in texts for g in grams(text, n)}
  for texts in train:
    yield from [text for text in texts if grams(text, n) & seen][:1]


def report(
  train: Iterable[Sequence[str]], test: Iterable[Sequence[str]], n: int
) -> str:
  """One line: how many, and an example."""
  found, first = 0, ''
  for text in shared(train, test, n):
    found, first = found + 1, first or text
  line = f'{found} training prompts share {n} words in a row with a held-out prompt'
  return f'{line}, for example {first[:80]!r}.' if found else f'{line}.'


def told(train: Iterable[Example], test: Iterable[Example], n: int) -> str:
  """`report` of examples."""
  return report(map(given, train), map(given, test), n)
