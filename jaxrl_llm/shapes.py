"""The shapes of what config.source draws, before any of it is drawn."""

import numpy as np

from jaxrl_llm import types
from jaxrl_llm.rollout import draw
from jaxrl_llm.types import Batch


def size(s) -> int:
  """Completions of a group, as the method sees it."""
  return 2 if s.get('pair') else s.group


def width(source) -> int:
  """Groups of a batch, those that are replayed included."""
  return source.prompts + source.get('replay', 0)


def widest(source, extra) -> Batch:
  """A batch of the widest rows that config.source makes, as zeros."""
  shape = (width(source), size(source), source.max_length)
  zeros = np.zeros(shape, np.float32)
  prompts = np.zeros((len(zeros), source.max_prompt), np.int32)
  length = np.full(len(zeros), source.max_prompt, np.int32)
  full = np.full(shape[:2], source.max_length, np.int32)
  batch = types.make_batch(prompts, length, zeros.astype(np.int32), full)
  batch = batch.replace(reward=zeros[..., 0], behavior_logp=zeros, extra=extra)
  if not draw.cuts(source):
    return batch
  matched = not (source.get('pair') or source.get('mixture'))
  return batch.replace(kept_mass=zeros, keep_within=zeros if matched else None)


def told(config) -> dict[str, np.ndarray]:
  """What a source of questions says beside the reward, as zeros."""
  s = config.source
  b, g, t = width(s), size(s), s.max_length
  found = told_of_completions(config) | {
    'accuracy': (s.get('accuracy'), (b, g)),
    'solved': (True, (b,)),
    'answer': (s.get('answer'), (b, g, t)),
    'step_end': (s.get('steps') or s.get('rewriter'), (b, g, t)),
    'step_reward': (s.get('steps') or s.get('rewriter'), (b, g, t)),
    'replayed': (s.get('replay'), (b,)),
    'verdict': (s.get('verdict'), (b, g, t)),
    'verdict_side': (s.get('verdict'), (b,)),
  }
  zeros = {
    k: np.zeros(shape, np.float32) for k, (there, shape) in found.items() if there
  }
  whole = ['question']
  whole += ['verdict_first', 'verdict_second'] if s.get('verdict') else []
  return zeros | {k: np.zeros(b, np.int32) for k in whole}


def told_of_completions(config) -> dict:
  """What may be said beside the reward: whether config asks for it, and its shape."""
  s = config.source
  b, g = width(s), size(s)
  return {
    'greedy_reward': (s.get('greedy'), (b,)),
    'anchor_reward': (s.get('anchor'), (b,)),
    'cost': (config.get('costs'), (b, g)),
    'feasible': (config.get('costs'), (b, g)),
    'duel': (config.get('judge'), (b, g, g)),
  }
