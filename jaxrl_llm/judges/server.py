"""A judge behind HTTP: any server with OpenAI's /chat/completions. Standard library."""

import concurrent.futures
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

from jaxrl_llm.judges.verdicts import Ask, Messages
from jaxrl_llm.types import InputError

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # Statuses that may pass.
LARGEST = 1 << 22  # Bytes of a reply.


class Stay(urllib.request.HTTPRedirectHandler):
  """Follows no redirection: the key would go along."""

  def redirect_request(self, *args):
    return None


def server(
  *,
  url: str,
  model: str,
  key_variable: str = '',
  temperature: float = 0.0,
  max_tokens: int = 512,
  timeout: float = 60.0,
  retries: int = 4,
  wait: float = 1.0,
  workers: int = 8,
  seed: int = 0,
) -> Ask:
  """Conversations to replies, several at once.

  Args:
    url: up to and with /v1, such as http://localhost:8000/v1.
    key_variable: the environment variable that holds the key, if the server wants one.
    timeout: seconds of one attempt.
    retries: attempts after the first, for what may pass; waits double from `wait`.
    seed: sent along, with the number of the vote added.

  Raises:
    InputError: no such address or key; at a call, the server fails for good.
  """
  options = dict(model=model, temperature=temperature, max_tokens=max_tokens)
  how = dict(timeout=timeout, retries=retries, wait=wait)
  send = sender(url, 'chat/completions', key_variable, **how)

  def one(messages: Messages, vote: int) -> str:
    return content(send({'messages': messages, 'seed': seed + vote, **options}), url)

  def ask(conversations, vote: int = 0) -> list[str]:
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      return list(pool.map(lambda messages: one(messages, vote), conversations))

  return ask


def sender(
  url: str,
  place: str,
  key_variable: str,
  *,
  timeout: float,
  retries: int,
  wait: float,
) -> Callable[[dict], bytes]:
  """A function that posts JSON to a place of the server and returns its answer."""
  checked(url)
  headers = headed(key_variable)
  opener, place = urllib.request.build_opener(Stay), f'{url.rstrip("/")}/{place}'

  def send(body: dict) -> bytes:
    request = urllib.request.Request(place, json.dumps(body).encode(), headers)
    for tries in range(1, retries + 2):
      if tries > 1:
        time.sleep(min(wait * 2 ** (tries - 2), 60.0))
      try:
        with opener.open(request, timeout=timeout) as reply:
          return reply.read(LARGEST + 1)
      except urllib.error.HTTPError as error:
        problem = f'status {error.code}: {error.read(300).decode(errors="replace")}'
        if error.code not in AGAIN:
          break
      except (OSError, http.client.HTTPException) as error:
        problem = f'{type(error).__name__}: {error}'
    raise InputError(f'judge {url}: {problem}. Tried {tries} times.')

  return send


def checked(url: str) -> None:
  """Refuses what is no address of a server."""
  if urlsplit(url).scheme not in ('http', 'https') or not urlsplit(url).hostname:
    raise InputError(
      f'judge: url={url!r}; give http://HOST:PORT/v1 or https://HOST/v1.'
    )


def headed(key_variable: str) -> dict[str, str]:
  """The headers of a request, with the key if one is wanted."""
  found = {'Content-Type': 'application/json'}
  if key_variable:
    if not (key := os.environ.get(key_variable)):
      raise InputError(f'judge: the environment lacks {key_variable}, the key.')
    found['Authorization'] = f'Bearer {key}'
  return found


def content(body: bytes, url: str) -> str:
  """The text of a reply."""
  if len(body) > LARGEST:
    raise InputError(f'judge {url}: a reply of more than {LARGEST} bytes.')
  try:
    text = json.loads(body)['choices'][0]['message']['content']
  except (ValueError, LookupError, TypeError, RecursionError) as error:
    raise InputError(
      f'judge {url}: no reply of /chat/completions: {body[:200]!r}.'
    ) from error
  return text if isinstance(text, str) else ''
