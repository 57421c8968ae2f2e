"""Conversations as token ids, with the tokens that an assistant chose marked.

Prompt and completion meet between two ids, never inside one: text up to a boundary is
encoded apart from the text after it, as a sampler would have met it.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxrl_llm.models import encoding
from jaxrl_llm.models.pretrained import render
from jaxrl_llm.types import InputError

Messages = list[dict[str, Any]]  # role and content, as chat templates take them.
Prompt = Messages | str  # A string is plain text: no template is applied.


class Steps(NamedTuple):
  """A solution step by step. Only the last token of each step is marked."""

  texts: Sequence[str]


Completion = Messages | str | Steps


class Ids(NamedTuple):
  """Token ids, and for each whether it is trained."""

  tokens: list[int]
  mask: list[int]


class Coder(NamedTuple):
  """A tokenizer as functions. Their last argument may be what the chat template reads
  beside the messages: tools, or switches of its own.
  """

  prompt: Callable[..., list[int]]  # Of a Prompt.
  completion: Callable[..., Ids]  # Of a Prompt and a Completion.
  merges: Callable[..., bool]  # Whether the two share a token.
  decode: Callable[[Sequence[int]], str]
  bos: int | None = None  # Where the tokenizer begins every text with one.


def coder(tokenizer, stop_ids: Sequence[int]) -> Coder:
  """A Hugging Face tokenizer as a `Coder`.

  Args:
    tokenizer: of transformers.
    stop_ids: tokens that end a turn; the first ends one that the template leaves open.
  """
  follow = encoding.follower(tokenizer)
  stops = {i: tokenizer.convert_ids_to_tokens(i) for i in stop_ids}

  prompt = functools.partial(prompt_ids, tokenizer)

  def completion(before: Prompt, after: Completion, options: Mapping = {}) -> Ids:
    said = lambda messages, ask: render(tokenizer, messages, ask, options)
    if isinstance(after, Steps):
      words = before if isinstance(before, str) else said(before, True)
      return step_ends(follow, words, after.texts)
    if not isinstance(before, str):
      return turns(said, follow, before, as_messages(after), stops)
    if not isinstance(after, str):
      raise InputError('the prompt is a string and the completion a list of messages.')
    tokens = follow(before, after)
    if before == '' and tokens[:1] == prompt(''):  # The text's own, said already.
      tokens = tokens[1:]
    if not tokens or tokens[-1] not in stop_ids:
      tokens = [*tokens, stop_ids[0]]
    if len(tokens) == 1:
      raise InputError('the completion is empty.')
    if inside := [stops[i] for i in tokens[:-1] if i in stops]:
      raise InputError(
        f'the completion contains the stop token {inside[0]!r}, where it would end. '
        'Take it out of the text.'
      )
    return Ids(tokens, [1] * len(tokens))

  def joined(before: Prompt, after: Completion, options: Mapping = {}) -> bool:
    if isinstance(after, Steps):
      after = after.texts[0]
    if not isinstance(before, str):
      asked = render(tokenizer, before, True, options)
      told = render(tokenizer, [*before, *as_messages(after)[:1]], False, options)
      before, after = asked, rest(asked, told, 0)
    return merges(tokenizer, before, after)

  decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
  return Coder(prompt, completion, joined, decode, bos_of(tokenizer))


def prompt_ids(tokenizer, prompt: Prompt, options: Mapping = {}) -> list[int]:
  """Text as it is; messages in the template's words, the assistant's turn opened."""
  if isinstance(prompt, str):
    return plain(tokenizer, prompt)
  if prompt[-1].get('role') == 'assistant':
    raise InputError(
      'the prompt ends with an assistant message, and a completion begins a turn of '
      'its own. Put the message into the completion, or leave it out.'
    )
  words = render(tokenizer, prompt, True, options)
  check_tools(words, options.get('tools', ()))
  return encoding.ids(tokenizer, words)


def bos_of(tokenizer) -> int | None:
  """The token with which the tokenizer begins every text, if there is one."""
  begins = tokenizer.encode('')[:1] == [tokenizer.bos_token_id]
  return tokenizer.bos_token_id if begins else None


def as_messages(completion: Messages | str) -> Messages:
  """A string is what the assistant says."""
  if isinstance(completion, str):
    return [{'role': 'assistant', 'content': completion}]
  return completion


def plain(tokenizer, text: str) -> list[int]:
  """Text with the tokenizer's own beginning, BOS once even where the text has it."""
  tokens = encoding.ids(tokenizer, text, begun=True)
  bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
  if bos is not None and tokens[:2] == [bos, bos]:
    tokens = tokens[1:]
  if len(tokens) > 1 and tokens[-1] == eos:
    tokens = tokens[:-1]
  # Text that begins from nothing begins after an end.
  return tokens or [eos if bos is None else bos]


def merges(tokenizer, prompt: str, completion: str) -> bool:
  """Whether one encoding of both texts would put a token across their boundary.

  So where a prompt ends in a space or within a word. Its ids are those that it has
  alone, as at sampling, and the completion begins with tokens that are rare there.
  """
  encode = functools.partial(encoding.ids, tokenizer)
  apart = encode(prompt) + encoding.follower(tokenizer)(prompt, completion)
  return encode(prompt + completion) != apart


def step_ends(follow, done: str, texts: Sequence[str]) -> Ids:
  """Steps after `done`, each followed by a newline, whose last token is marked."""
  tokens, mask = [], []
  for text in texts:
    step = [*follow(done, text), *follow(done + text, '\n')]
    done += text + '\n'
    tokens += step
    mask += [0] * (len(step) - 1) + [1]
  return Ids(tokens, mask)


def turns(render, follow, before: Messages, after: Messages, stops) -> Ids:
  """What follows a prompt: assistants' words trained, up to their stop token.

  Ends with the last trained token. Other turns, and what the template puts between,
  are there but not trained.

  Args:
    render: (messages, whether to ask for an answer) to text.
    follow: (text, what follows it) to ids of the latter.
    stops: token id to its text; the first ends a turn that the template leaves open.

  Raises:
    InputError: the last turn is not an assistant's; an assistant says nothing, or a
      stop token; the template leaves out what one says, or rewrites earlier turns, so
      that no boundary exists.
  """
  if not after or after[-1].get('role') != 'assistant':
    raise InputError('the completion does not end with an assistant message.')
  done = render(before, True)
  tokens, mask = [], []
  for i, message in enumerate(after):
    if message.get('role') != 'assistant':
      continue
    head = rest(done, render([*before, *after[:i]], True), i)
    words = rest(done + head, render([*before, *after[: i + 1]], False), i)
    # What a template writes after the stop token belongs to no turn; a sampler never
    # gets there.
    ends = [words.index(end) + len(end) for end in stops.values() if end in words]
    words = words[: min(ends)] if ends else words.rstrip()
    check_said(message, words, i, stops.values())
    between, chosen = follow(done, head), follow(done + head, words)
    if not ends:
      chosen = [*chosen, next(iter(stops))]
    tokens += [*between, *chosen]
    mask += [0] * len(between) + [1] * len(chosen)
    done += head + words
  return Ids(tokens, mask)


def replier(tokenizer, stop_ids: Sequence[int]) -> Callable:
  """`between(reply, said)`: the ids from what an assistant said to its next turn.

  `said` are ids, and stay as they are. What was said without a stop token (the turn ran
  out of room) is closed with the one that the template closes a turn with, or with the
  first. A reply is the user's.
  """
  follow = encoding.follower(tokenizer)
  marks = {'user': '[asked]', 'assistant': '[said]'}
  talk = [dict(role=role, content=text) for role, text in marks.items()]
  whole = render(tokenizer, [*talk, dict(role='user', content='[told]')], True)
  close, told, ask = whole.partition('[said]')[2].partition('[told]')
  if not told:
    raise InputError('the chat template leaves out what was said before the last turn.')
  ends = {i: tokenizer.convert_ids_to_tokens(i) for i in stop_ids}
  found = [(close.index(end), i) for i, end in ends.items() if end in close]
  stop = min(found)[1] if found else stop_ids[0]
  after = close.partition(ends[stop])[2] if found else close

  def between(reply: str, said: Sequence[int]) -> list[int]:
    closed = bool(said) and said[-1] in ends
    last = said[-1] if closed else stop
    return [*(() if closed else (stop,)), *follow(ends[last], after + reply + ask)]

  return between


def check_said(message: dict, words: str, turn: int, ends: Iterable[str]) -> None:
  """Refuses an assistant's message that is empty, or that `words` has not all of.

  `words` are what the template makes of it, up to the first of `ends`.
  """
  squeezed = lambda text: ''.join(text.split())
  found = [message.get(key) for key in ('content', 'reasoning_content')]
  said = [squeezed(text) for text in found if isinstance(text, str)]
  others = message.get('tool_calls') or any(
    text and not isinstance(text, str) for text in found
  )
  if not any(said) and not others:
    raise InputError('an assistant message is empty.')
  check_calls(message, words, turn)
  missing = [text for text in said if text not in squeezed(words)]
  if inside := [end for end in ends for text in missing if squeezed(end) in text]:
    raise InputError(
      f'message {turn} of the completion contains the stop token {inside[0]!r}, where '
      'its turn would end. Take it out of the text.'
    )
  if missing or words.strip() in ('', *ends):
    raise InputError(
      f'the chat template leaves out something of message {turn} of the completion, '
      f'of which it says {words[:80]!r}. It would not be learned; take it out of the '
      'data, or set config.model.chat_template.'
    )


def check_calls(message: dict, words: str, turn: int) -> None:
  """Refuses a call of a tool whose name is not in `words`."""
  for call in message.get('tool_calls') or ():
    if (name := called(call)) not in words:
      raise InputError(
        f'the chat template does not show the tool calls of message {turn} of the '
        f'completion, of which it says {words[:80]!r}. Put the call of {name!r} into '
        'the content as text, or set config.model.chat_template.'
      )


def check_tools(words: str, tools: Iterable) -> None:
  """Refuses a tool whose name is not in `words`."""
  for tool in tools:
    if (name := called(tool)) not in words:
      raise InputError(
        f'the chat template does not show the tools, of which {name!r} is one. Take '
        'them out of the data, or name a template that does with config.model.'
        'chat_template.'
      )


def called(call) -> str:
  """The name of the tool that is called, '' where it is not known."""
  call = call.get('function', call) if isinstance(call, dict) else {}
  return str(call.get('name', '')) if isinstance(call, dict) else ''


def rest(start: str, whole: str, turn: int) -> str:
  """What `whole` has after `start`."""
  if not whole.startswith(start):
    raise InputError(
      f'the chat template rewrites what came before message {turn} of the completion, '
      'so its tokens have no place of their own. Put all but the last assistant '
      'message into the prompt, or give a template that keeps what it has said '
      '(config.model.chat_template).'
    )
  return whole[len(start) :]
