"""Text to token ids: whole characters, and tokens that have an embedding."""

import functools
from collections.abc import Callable

from jaxrl_llm.models.endings import stop_ids
from jaxrl_llm.types import InputError

LACKING = 'without_embedding'  # An attribute of ours: {id: token}.


def ids(tokenizer, text: str, *, begun: bool = False) -> list[int]:
  """A text's ids; `begun` with what the tokenizer puts around a text, such as BOS.

  Raises:
    InputError: the text has half a character, or a token without an embedding.
  """
  whole(text)
  found = tokenizer.encode(text, add_special_tokens=begun)
  lacking = vars(tokenizer).get(LACKING, {})
  if there := lacking and lacking.keys() & set(found):
    raise InputError(
      f'the text contains {lacking[min(there)]!r}, a token of the tokenizer of which '
      'the model has no embedding. Take it out of the text.'
    )
  return found


def follower(tokenizer) -> Callable[[str, str], list[int]]:
  """A function from a text and what follows it to the ids of the latter.

  They are those of one encoding of both, but where a token would lie across their
  boundary. SentencePiece puts a space before what it takes for the beginning of a text;
  there a newline goes before what follows, whose ids are then cut off.
  """
  encode = functools.partial(ids, tokenizer)
  line = encode('\n')
  # Tokens such as Phi-3's <|end|> take the space behind them for their own.
  takes = any(t.lstrip or t.rstrip for t in tokenizer.added_tokens_decoder.values())
  if encode('\na') == line + encode('a') and not takes:
    return lambda before, text: encode(text)

  def follow(before: str, text: str) -> list[int]:
    start, both = encode(before), encode(before + text)
    if both[: len(start)] == start:
      return both[len(start) :]
    found = encode('\n' + text)
    return found[len(line) :] if found[: len(line)] == line else encode(text)

  return follow


def whole(text: str) -> None:
  """Refuses text that is not Unicode."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise InputError(f'half a character (a lone surrogate): {error}.') from error


def check_rows(tokenizer, rows: int, name: str) -> None:
  """Refuses a vocabulary larger than an embedding of so many rows.

  Special tokens may lie beyond it that no text needs, as Gemma 3's of images do in its
  models of text alone: `ids` then refuses a text that has one.
  """
  if len(tokenizer) <= rows:
    return
  beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= rows}
  special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
  used = {tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id}
  used |= {*stop_ids(tokenizer)}
  template = str(tokenizer.chat_template)
  used |= {i for i, token in beyond.items() if token in template}
  if beyond.keys() - special or beyond.keys() & used:
    raise InputError(
      f'{name}: the tokenizer has {len(tokenizer)} tokens, the embedding only '
      f'{rows} rows. Use the tokenizer the model was trained with.'
    )
  vars(tokenizer)[LACKING] = beyond
