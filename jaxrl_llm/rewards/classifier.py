"""A published reward model: a sequence classifier of transformers, by name or folder.

The score of a conversation is read at its last token, where the chat template ends it,
as `AutoModelForSequenceClassification` reads it. The reward `learned` is of runs here.
"""

import jax
import numpy as np

from jaxrl_llm import forward, sources, types
from jaxrl_llm.models import encoding, pretrained
from jaxrl_llm.models.decoder import Decoder
from jaxrl_llm.rewards.sample import Batched, Sample
from jaxrl_llm.types import InputError


def classifier(
  *,
  model: str,
  label: int = 0,
  max_length: int = 1024,
  missing: float = -1.0,
  batch: int = 8,
) -> Batched:
  """One of the classifier's scores, as it is: no sigmoid, no softmax.

  Args:
    model: a name or folder as of config.model.name, with `score.weight`.
    label: which of its scores.
    max_length: tokens of a conversation; of a longer one the end is scored.
    missing: the score of a completion that ran out of room or is empty, or that the
      chat template refuses; choose what is low on the classifier's scale.
    batch: conversations at once.

  Raises:
    InputError: the model has no scores, or none with this number.
  """
  found = pretrained.classifier(model)
  if not 0 <= label < found.scores:
    raise InputError(f'classifier: label={label}; {model} has {found.scores} scores.')
  see = forward.make_forward({'reward': Decoder(found.config, scores=found.scores)})
  params = found.params()
  say = jax.jit(lambda tree, rows: see({'reward': tree}, {}, rows, ['attributes']))

  def score(samples: list[Sample]) -> np.ndarray:
    ids = [tokens(found.tokenizer, s)[-max_length:] for s in samples]
    known = [i for i, x in enumerate(ids) if len(x) > 1]
    scores = np.full(len(samples), missing, np.float64)
    for start in range(0, len(known), batch):
      turn = known[start : start + batch]
      rows = rowed([ids[i] for i in turn], batch, max_length)
      scores[turn] = np.asarray(say(params, rows).attributes)[: len(turn), 0, label]
    return scores

  return Batched(score)


def tokens(tokenizer, sample: Sample) -> list[int]:
  """The whole conversation, or nothing where there is nothing to score."""
  asked, said = sample.record.messages, sample.completion
  if sample.truncated or not said.strip():
    return []
  try:
    if isinstance(asked, str):
      return encoding.ids(tokenizer, asked + said, begun=True)
    answer = {'role': 'assistant', 'content': said}
    return pretrained.encode_chat(tokenizer, [*asked, answer], ask=False)
  except InputError:
    return []


def rowed(ids: list[list[int]], batch: int, max_length: int) -> types.Batch:
  """A batch of so many rows, in few widths: first tokens as prompts, then the rest."""
  ids = ids + [ids[0]] * (batch - len(ids))
  width = types.bucket(max(map(len, ids)), max_length)
  first, one = sources.pad([x[:1] for x in ids], 1)
  rest, length = sources.pad([x[1:] for x in ids], width)
  return types.make_batch(first, one, rest[:, None], length[:, None])
