"""A judge that may have things computed before its verdict. Experimental.

After CoSineVerifier (2025), https://arxiv.org/abs/2512.01224, a judge with a Python
interpreter and a converter of units. Here a marked line of its reply is a request, and
executor.py answers it without running anything. That judge was trained to use its
tools; the words and the marks are ours.
"""

import hashlib
import re

from jaxrl_llm.judges import asked, executor
from jaxrl_llm.judges.verdicts import Ask, Messages
from jaxrl_llm.types import InputError

MOST = 8  # Requests of one reply that are answered.


def computing(*, by: dict, rounds: int = 2) -> Ask:
  """Conversations to the replies after the last result.

  A request's mark is a hash of all that the judge has seen, so an answer cannot carry
  one, and what an answer says is computed only if the judge asks for it.

  Args:
    by: another judge, as of the reward `judge`.
    rounds: how often results are sent back, in each of a conversation's votes.
  """
  if rounds < 1:
    raise InputError(f'computing: rounds={rounds}; give at least 1.')
  ask = asked.make(by)

  def answer(conversations, vote: int = 0) -> list[str]:
    tags = [tag(messages) for messages in conversations]
    talks = [offered(m, t) for m, t in zip(conversations, tags)]
    found, live = [''] * len(talks), list(range(len(talks)))
    for turn in range(rounds + 1):
      replies = ask([talks[i] for i in live], vote) if live else []
      for i, reply in zip(live, replies, strict=True):
        found[i] = reply
        talks[i] = went_on(talks[i], reply, tags[i], last=turn == rounds - 1)
      live = [i for i in live if requests(found[i], tags[i])]
    return found

  return answer


def tag(messages: Messages) -> str:
  return hashlib.blake2b(repr(messages).encode(), digest_size=6).hexdigest()


def offered(messages: Messages, mark: str) -> Messages:
  """The conversation, with word of what can be computed."""
  *before, last = messages
  words = (
    'Before your verdict you may have things computed. Write lines like these, and '
    f'stop:\nCOMPUTE-{mark}: 17 * 23 / 4\nCOMPUTE-{mark}: 36 km/h in m/s\n'
    f'COMPUTE-{mark}: 2.667 = 8/3\nThe results will be sent to you.'
  )
  return [*before, last | {'content': f'{last["content"]}\n\n{words}'}]


def requests(reply: str, mark: str) -> list[str]:
  """What stands behind the marks of a reply."""
  return re.findall(rf'COMPUTE-{mark}:[ \t]*(\S.*)', reply)[:MOST]


def went_on(talk: Messages, reply: str, mark: str, *, last: bool) -> Messages:
  """The conversation with the reply and its results."""
  lines = [f'{text.strip()}: {executor.result(text)}' for text in requests(reply, mark)]
  lines.append('Now give your verdict.' if last else 'Go on.')
  results = '\n'.join([f'RESULTS-{mark}', *lines])
  said = {'role': 'assistant', 'content': reply}
  return [*talk, said, {'role': 'user', 'content': results}]
