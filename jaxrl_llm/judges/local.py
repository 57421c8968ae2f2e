"""A judge of our own: a model on this machine's devices, or a run's policy."""

import zlib
from pathlib import Path

import jax
import numpy as np

from jaxrl_llm import restored, sources
from jaxrl_llm.judges.verdicts import Ask
from jaxrl_llm.models import pretrained
from jaxrl_llm.models.decoder import Decoder
from jaxrl_llm.rollout import draw
from jaxrl_llm.rollout.sampler import make_sampler
from jaxrl_llm.types import InputError


def local(
  *,
  model: str,
  max_prompt: int = 2048,
  max_tokens: int = 256,
  temperature: float = 0.0,
  batch: int = 8,
  seed: int = 0,
) -> Ask:
  """Conversations to replies; one depends on its conversation and vote alone.

  Args:
    model: a name or folder as of config.model.name, or the folder of a run.
    max_prompt, max_tokens: of a conversation, and of a reply. A longer conversation has
      no reply.
    temperature: 0 is the likeliest reply, the same for every vote.
    batch: conversations at once.
  """
  tokenizer, decoder, params = loaded(model)
  if (need := max_prompt + max_tokens) > decoder.config.max_positions:
    raise InputError(
      f'judge {model}: max_prompt + max_tokens = {need} exceeds its window, '
      f'{decoder.config.max_positions} tokens.'
    )
  sample = make_sampler(decoder, group=1, max_length=max_tokens)
  stops = pretrained.stop_ids(tokenizer)
  said = dict(max_length=max_tokens, stop_ids=stops, temperature=temperature)
  how = draw.options(batch, **said)

  def some(rows: list[list[int]], vote: int) -> list[str]:
    filled = rows + [rows[-1]] * (batch - len(rows))
    tokens, length = sources.pad(filled, max_prompt)
    ids = np.array([zlib.crc32(bytes(str(row), 'ascii')) >> 1 for row in filled], 'i4')
    key = jax.random.fold_in(jax.random.key(seed), vote)
    found = jax.device_get(sample(params, tokens, length, ids, how, key, np.int32(0)))
    kept = zip(found.tokens[:, 0], found.length[:, 0])
    words = [tokenizer.decode(row[:n], skip_special_tokens=True) for row, n in kept]
    return words[: len(rows)]

  def ask(conversations, vote: int = 0) -> list[str]:
    coded = [pretrained.encode_chat(tokenizer, messages) for messages in conversations]
    fit = [i for i, row in enumerate(coded) if len(row) <= max_prompt]
    replies = [''] * len(coded)
    for start in range(0, len(fit), batch):
      turn = fit[start : start + batch]
      for i, text in zip(turn, some([coded[i] for i in turn], vote)):
        replies[i] = text
    return replies

  return ask


def loaded(model: str):
  """Tokenizer, decoder and parameters."""
  if (Path(model) / 'run.json').exists():
    found = restored.policy(model)
    return found.tokenizer, found.decoder, found.params
  found = pretrained.load(model)
  return found.tokenizer, Decoder(found.config), found.params()
