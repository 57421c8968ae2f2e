"""Conversations as token ids, with the tokens that an assistant chose marked.

Prompt and completion meet between two ids, never inside one: text up to a boundary is
encoded apart from the text after it, as a sampler would have met it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxrl_llm.models.pretrained import encode_chat, render
from jaxrl_llm.types import InputError

Messages = list[dict[str, Any]]  # role and content, as chat templates take them.
Prompt = Messages | str  # A string is plain text: no template is applied.


class Ids(NamedTuple):
  """Token ids, and for each whether it is trained."""

  tokens: list[int]
  mask: list[int]


class Coder(NamedTuple):
  """A tokenizer as functions."""

  prompt: Callable[[Prompt], list[int]]
  completion: Callable[[Prompt, Messages | str], Ids]
  decode: Callable[[Sequence[int]], str]


def coder(tokenizer, stop_ids: Sequence[int]) -> Coder:
  """A Hugging Face tokenizer as a `Coder`.

  Args:
    tokenizer: of transformers.
    stop_ids: tokens that end a turn; the first ends one that the template leaves open.
  """
  encode = lambda text: tokenizer.encode(text, add_special_tokens=False)

  def prompt(x: Prompt) -> list[int]:
    return plain(tokenizer, x) if isinstance(x, str) else encode_chat(tokenizer, x)

  def completion(before: Prompt, after: Messages | str) -> Ids:
    if not isinstance(before, str):
      said = lambda messages, ask: render(tokenizer, messages, ask)
      return turns(said, encode, before, as_messages(after), stop_ids)
    if not isinstance(after, str):
      raise InputError('the prompt is a string and the completion a list of messages.')
    tokens = encode(after)
    if not tokens:
      raise InputError('the completion is empty.')
    return Ids([*tokens, stop_ids[0]], [1] * (len(tokens) + 1))

  decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
  return Coder(prompt, completion, decode)


def as_messages(completion: Messages | str) -> Messages:
  """A string is what the assistant says."""
  if isinstance(completion, str):
    return [{'role': 'assistant', 'content': completion}]
  return completion


def plain(tokenizer, text: str) -> list[int]:
  """Text with the tokenizer's own beginning, BOS once even where the text has it."""
  tokens = tokenizer.encode(text)
  bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
  if bos is not None and tokens[:2] == [bos, bos]:
    tokens = tokens[1:]
  if len(tokens) > 1 and tokens[-1] == eos:
    tokens = tokens[:-1]
  # Text that begins from nothing begins after an end.
  return tokens or [eos if bos is None else bos]


def turns(render, encode, before: Messages, after: Messages, stop_ids) -> Ids:
  """What follows a prompt: assistants' words trained, up to their stop token.

  Ends with the last trained token. Other turns, and what the template puts between,
  are there but not trained.

  Raises:
    InputError: the last turn is not an assistant's; an assistant says nothing; the
      template rewrites earlier turns, so that no boundary exists.
  """
  if not after or after[-1].get('role') != 'assistant':
    raise InputError('the completion does not end with an assistant message.')
  done = render(before, True)
  tokens, mask = [], []
  for i, message in enumerate(after):
    if message.get('role') != 'assistant':
      continue
    if not (message.get('content') or message.get('tool_calls')):
      raise InputError('an assistant message is empty.')
    head = rest(done, render([*before, *after[:i]], True), i)
    words = rest(done + head, render([*before, *after[: i + 1]], False), i)
    body = encode(words)
    done += head
    between = encode(head)
    stops = [at for at, token in enumerate(body) if token in stop_ids]
    if not stops:  # The template leaves turns open: they end with the last word.
      body = encode(words.rstrip())
      stops = [len(body)]
      body += [stop_ids[0], *encode(words[len(words.rstrip()) :])]
    tokens += [*between, *body]
    chosen = stops[-1] + 1
    mask += [0] * len(between) + [1] * chosen + [0] * (len(body) - chosen)
    done = render([*before, *after[: i + 1]], False)
  end = len(mask) - mask[::-1].index(1)
  return Ids(tokens[:end], mask[:end])


def rest(start: str, whole: str, turn: int) -> str:
  """What `whole` has after `start`."""
  if not whole.startswith(start):
    raise InputError(
      f'the chat template rewrites what came before message {turn} of the completion, '
      'so its tokens have no place of their own. Put all but the last assistant '
      'message into the prompt.'
    )
  return whole[len(start) :]
