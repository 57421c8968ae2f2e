"""A reward model's score, from the folder of the run that trained it.

A thought is left out of what is scored by after='</think>', as in RLMT (2025),
https://arxiv.org/abs/2509.20357.
"""

import jax
import numpy as np

from jaxrl_llm import forward, restored
from jaxrl_llm.data import chat
from jaxrl_llm.data.examples import Encoder, Example, numbered
from jaxrl_llm.models import pretrained
from jaxrl_llm.rewards.sample import Batched, Sample
from jaxrl_llm.types import InputError


def learned(
  *, run: str, after: str = '', missing: float = -1.0, batch: int = 16
) -> Batched:
  """The score of prompt and completion in that run's own encoding.

  What is too long for the reward model is cut, as in its training.

  Args:
    run: the folder of a run of `bradley_terry`.
    after: only what follows this string is scored; '' is all of the completion.
    missing: the score of a completion that ran out of room, or has nothing after
      `after`, or that the chat template refuses. A reward model has seen none of these
      and may pay them well; choose what is low on its scale.
    batch: completions at once.
  """
  model = restored.network(run, 'reward')
  source = model.config.source
  encode = Encoder(
    chat.coder(model.tokenizer, pretrained.stop_ids(model.tokenizer)),
    max_prompt=source.max_prompt,
    max_length=source.max_length,
    long_prompt='cut',
    bucket=-(-source.max_length // 4),
  )
  see = forward.make_forward({'reward': model.decoder})
  say = jax.jit(lambda params, rows: see({'reward': params}, {}, rows, ['score']).score)

  def score(samples) -> np.ndarray:
    said = [readable(encode, s, after) for s in samples]
    known = [i for i, example in enumerate(said) if example is not None]
    found = np.full(len(samples), missing, np.float64)
    for start in range(0, len(known), batch):
      turn = known[start : start + batch]
      rows = numbered(encode, said, turn, batch).batch
      found[turn] = np.asarray(say(model.params, rows))[: len(turn), 0]
    return found

  return Batched(score)


def readable(encode: Encoder, sample: Sample, after: str) -> Example | None:
  """What is scored of a sample, or None."""
  _, found, rest = sample.completion.rpartition(after) if after else ('', True, '')
  text = rest if after else sample.completion
  if sample.truncated or not found or not text.strip():
    return None
  example = Example(sample.record.messages, (text.strip() if after else text,), (0.0,))
  try:
    encode.read(example)
  except InputError:
    return None
  return example
