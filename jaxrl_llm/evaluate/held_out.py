"""Greedy answers to held-out questions, scored by the task's own check."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxrl_llm import episodes, sources
from jaxrl_llm.evaluate import accuracy
from jaxrl_llm.sources import Text, pad, to_samples
from jaxrl_llm.tasks.records import Task


class Held(NamedTuple):
  """Scores [N], in order of `task.test`, and rows for log.sample_table."""

  metrics: dict[str, float]
  samples: list[dict]


def make_held_out(sample, text: Text, task: Task, *, options):
  """Returns `evaluate(params) -> Held`.

  Args:
    sample: a sampler of group 1 (rollout.sampler.make_sampler).
    text: tokenizer functions.
    task: its `test` records and `check`.
    options: of so many questions, greedy (rollout.draw.options).
  """
  records = task.test
  tokens, length = pad([text.encode(r.messages) for r in records], text.max_prompt)
  ids = np.arange(len(records), dtype=np.int32)
  arrays = (tokens, length, ids, options(len(records)))

  def evaluate(params) -> Held:
    rollout = sample(params, *arrays, jax.random.key(0), np.int32(0))
    rows = to_samples(jax.device_get(rollout), records, text)
    scores = np.array([task.check(r.completion, r.record) for r in rows])
    return Held(metrics(scores, rows), [shown(r, s) for r, s in zip(rows, scores)])

  return evaluate


def make_episodes(partner: episodes.Partner, task: Task, *, options):
  """`make_held_out` where an answer takes turns: every test record played, greedily."""
  records = task.test
  first = [episodes.begin(partner, r, i) for i, r in enumerate(records)]
  sources.pad([r.prompt for r in first], partner.text.max_prompt)

  def evaluate(params) -> Held:
    how = (options, jax.random.key(0), np.int32(0), 0)
    rows = episodes.play(partner, params, first, *how)
    seen = episodes.to_samples(partner, rows)
    scores = np.array([s.score for s in seen])
    mean = lambda values: float(np.mean(list(values)))
    parts = {f'eval/episode/{k}': mean(s.parts[k] for s in seen) for k in seen[0].parts}
    parts['eval/turns'] = mean(r.count for r in rows)
    return Held(metrics(scores, seen) | parts, [*map(shown, seen, scores)])

  return evaluate


def metrics(scores: np.ndarray, rows: Sequence) -> dict[str, float]:
  """Share of answers that are wholly right, with its 95 % Wilson interval; the mean
  score, which counts partial credit; the mean length in tokens.
  """
  right = float((scores >= 1).sum())
  low, high = accuracy.wilson(right, len(scores))
  return {
    'eval/accuracy': right / len(scores),
    'eval/score': float(scores.mean()),
    'eval/low': low,
    'eval/high': high,
    'eval/length': float(np.mean([r.tokens for r in rows])),
  }


def shown(row, score: float) -> dict:
  """A row of log.sample_table."""
  return {'prompt': row.prompt, 'completion': row.completion, 'reward': float(score)}
