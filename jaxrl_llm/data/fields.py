"""The fields of a row: what each holds, and errors that name the field."""

import json
from typing import Any

from jaxrl_llm.data.chat import Messages, Prompt
from jaxrl_llm.types import InputError

Row = dict[str, Any]


def prompt(row: Row) -> Prompt:
  """'prompt', a string or messages; or 'messages'; or messages in 'context'."""
  key = asked_in(row)
  return text(row, key) if isinstance(row.get(key), str) else messages(row, key)


def asked_in(row: Row) -> str:
  """The field that holds the prompt. Of `user_pairs` 'context' is something else."""
  there = row.get('context')
  talk = isinstance(there, list) and there and isinstance(there[0], dict)
  names = ('prompt', 'messages', *(['context'] if talk and 'role' in there[0] else []))
  return named(row, *names)


def completion(row: Row) -> str | Messages:
  """'completion', or 'response'."""
  return said(row, named(row, 'completion', 'response'))


def named(row: Row, *names: str) -> str:
  """The first of the names whose field is there, else the first."""
  return next((k for k in names if row.get(k) is not None), names[0])


def template(row: Row) -> dict[str, Any]:
  """What the chat template takes beside the messages: 'tools', a list of objects or
  that as JSON, and 'chat_template_kwargs', an object.
  """
  tools, options = row.get('tools'), row.get('chat_template_kwargs')
  if isinstance(tools, str) and tools.strip():
    try:
      tools = json.loads(tools)
    except ValueError as error:
      raise InputError(f"'tools' is no JSON: {error}.") from error
  if tools and not (
    isinstance(tools, list) and all(isinstance(t, dict) for t in tools)
  ):
    raise InputError("'tools' is a list of objects, each the JSON schema of a tool.")
  if options and not isinstance(options, dict):
    raise InputError("'chat_template_kwargs' is an object of the template's options.")
  found = {k: v for k, v in (options or {}).items() if v is not None}
  return found | ({'tools': tools} if tools else {})


def conversation(prompt: Prompt) -> Messages:
  """A prompt as messages: a string is what a user says."""
  return [{'role': 'user', 'content': prompt}] if isinstance(prompt, str) else prompt


def said(row: Row, key: str) -> str | Messages:
  """A string that is not empty, or messages."""
  if isinstance(row.get(key), list):
    return messages(row, key)
  return text(row, key)


def text(row: Row, key: str) -> str:
  value = row.get(key)
  if isinstance(value, bytes):  # tensorflow-datasets gives text as bytes.
    try:
      value = value.decode()
    except UnicodeDecodeError as error:
      raise InputError(f'{key!r} is not UTF-8: {error}.') from error
  if not isinstance(value, str):
    raise InputError(f'{key!r} is {kind_of(row, key)}; a string is due.')
  if not value.strip():
    raise InputError(f'{key!r} is empty.')
  return value


def messages(row: Row, key: str) -> Messages:
  value = row.get(key)
  good = isinstance(value, list) and all(
    isinstance(m, dict) and isinstance(m.get('role'), str) for m in value
  )
  if not good or not value:
    raise InputError(
      f'{key!r} is {kind_of(row, key)}; a list of messages {{role, content}} is due.'
    )
  return value


def listed(row: Row, key: str) -> list:
  value = row.get(key)
  if not isinstance(value, list) or not value:
    raise InputError(f'{key!r} is {kind_of(row, key)}; a list is due.')
  return value


def truth(row: Row, key: str) -> bool:
  value = row.get(key)
  if not isinstance(value, bool):
    raise InputError(f'{key!r} is {value!r}; true or false is due.')
  return value


def number(row: Row, key: str) -> float:
  value = row.get(key)
  good = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not good or not abs(value) < 1e30:
    raise InputError(f'{key!r} is {str(value)[:40]!r}; a number is due.')
  return float(value)


def kind_of(row: Row, key: str) -> str:
  if key not in row:
    return f'missing (fields: {", ".join(map(str, sorted(row)))})'
  return f'of type {type(row[key]).__name__}'
