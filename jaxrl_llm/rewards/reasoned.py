"""A generative reward model's verdict: RLBFF (2025), https://arxiv.org/abs/2509.21319.

It reads the answer and the principle, reasons, and says Yes or No; the score is the log
odds of Yes where it says one of them (methods/rlbff_generative.py).
"""

from collections.abc import Sequence

import jax
import numpy as np

from jaxrl_llm import forward, restored, sources, spoken, types
from jaxrl_llm.models import pretrained
from jaxrl_llm.rewards import learned
from jaxrl_llm.rewards.sample import Batched, Sample
from jaxrl_llm.rollout import draw
from jaxrl_llm.rollout.sampler import make_sampler
from jaxrl_llm.tasks import principles
from jaxrl_llm.types import InputError


def reasoned(
  *,
  run: str,
  principle: str,
  missing: float = 0.0,
  temperature: float = 0.0,
  max_length: int = 0,
  batch: int = 8,
  seed: int = 0,
) -> Batched:
  """Log odds of Yes, from -50 to 50; a `shape` such as 'clip(low=-10.0)' bounds them.

  Args:
    run: the folder of a run of rlbff_generative.
    principle: as of rewards/learned.py: a principle, or '@name' of the record's extra.
    missing: the score where there is no verdict: it does not end, or with another word,
      or what it is asked does not fit. 0 is neither Yes nor No.
    temperature: of its reasons; 0 is the likeliest.
    max_length: tokens of reasons and verdict; 0 is as in its training.
    batch: completions at once.
  """
  model = restored.network(run, 'policy')
  told, room = model.config.task, model.config.source.max_prompt
  if told.name != 'principles':
    raise InputError(f'reasoned: {run} is of task {told.name}; principles is due.')
  size = max_length or model.config.source.max_length
  said = make_verdicts(model, room, size, temperature, batch, seed)

  def asked(s: Sample) -> list[int]:
    """What the model is asked of a sample, or nothing where there is no answer."""
    if s.truncated or not s.completion.strip():
      return []
    rule = learned.named(principle, s)
    whole = principles.messages(s.record.messages, s.completion, rule, told.ask)
    return pretrained.encode_chat(model.tokenizer, whole)

  def score(samples: Sequence[Sample]) -> np.ndarray:
    coded = [asked(s) for s in samples]
    fit = [i for i, row in enumerate(coded) if 0 < len(row) <= room]
    found = np.full(len(samples), missing, np.float64)
    for start in range(0, len(fit), batch):
      turn = fit[start : start + batch]
      odds, there = said([coded[i] for i in turn])
      found[turn] = np.where(there, odds, missing)
    return found

  return Batched(score)


def make_verdicts(model, room: int, size: int, temperature: float, batch: int, seed):
  """Returns `said(rows of ids) -> (log odds [N], whether there is a verdict [N])`.

  Args:
    model: a restored.Network.
    room, size: tokens of a prompt, and of reasons with their verdict.
    batch: rows at once, at most.
  """
  sample = make_sampler(model.decoder, group=1, max_length=size)
  ids = spoken.tokens(model.tokenizer, model.config.task.verdicts)
  stops = pretrained.stop_ids(model.tokenizer)
  options = dict(max_length=size, stop_ids=stops, temperature=temperature)
  how, key = draw.options(batch, **options), jax.random.key(seed)
  see = forward.make_forward({'policy': model.decoder})
  read = jax.jit(lambda tree, rows: see({'policy': tree}, {}, rows, ['odds']).odds)
  numbers = np.arange(batch, dtype=np.int32)

  def said(rows: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    filled = [*rows, *[rows[-1]] * (batch - len(rows))]
    tokens, length = sources.pad(filled, room)
    asked = (tokens, length, numbers, how, key, np.int32(0))
    rollout = jax.device_get(sample(model.params, *asked))
    told = types.make_batch(tokens, length, rollout.tokens, rollout.length)
    told = told.replace(
      truncated=np.float32(rollout.stop_reason == 0),
      extra=spoken.asked(ids, batch),
    )
    where = spoken.places(told, ids)
    odds = (np.asarray(read(model.params, told)) * where).sum(-1)
    return odds[: len(rows), 0], where.any(-1)[: len(rows), 0]

  return said
