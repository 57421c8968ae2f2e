"""A judge whose replies are kept, so that what was cut off goes on where it stopped."""

from pathlib import Path

from jaxrl_llm import log
from jaxrl_llm.data.reshape import digest
from jaxrl_llm.judges import asked
from jaxrl_llm.judges.verdicts import Ask


def remembered(*, by: dict, path: str, batch: int = 16) -> Ask:
  """Conversations to replies; none is asked for twice.

  Args:
    by: another judge, as of the reward `judge`. With other options it is another one.
    path: a .jsonl file, to which each batch of replies is added.
    batch: conversations at once.
  """
  ask, file = asked.make(by), Path(path)
  kept = {row['key']: row['reply'] for row in log.read_lines(file)}
  if file.exists():  # A last line cut short by a kill would spoil the next.
    log.write_lines(file, [{'key': k, 'reply': reply} for k, reply in kept.items()])

  def answer(conversations, vote: int = 0) -> list[str]:
    keys = [digest([by, messages, vote]) for messages in conversations]
    new = {k: m for k, m in zip(keys, conversations) if k not in kept}
    for start in range(0, len(new), batch):
      turn = [*new][start : start + batch]
      for key, reply in zip(turn, ask([new[k] for k in turn], vote), strict=True):
        kept[key] = reply
        log.append(file, {'key': key, 'reply': reply})
    return [kept[k] for k in keys]

  return answer
