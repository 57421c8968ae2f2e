"""Greedy answers to held-out questions, scored by the task's own check."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxrl_llm import beside, episodes, sources
from jaxrl_llm.evaluate import accuracy, safety
from jaxrl_llm.rewards import combine
from jaxrl_llm.sources import Text, pad, table, to_samples
from jaxrl_llm.tasks.records import Record, Task


class Held(NamedTuple):
  """Scores [N], in order of `task.test`, and rows for log.sample_table."""

  metrics: dict[str, float]
  samples: list[dict]


SALT = 43  # Sets the safety test's draws apart from those of any step.


def make_held_out(
  sample,
  text: Text,
  task: Task,
  *,
  options,
  priced: beside.Tell = beside.nothing,
  reward: combine.Scorer | None = None,
):
  """Returns `evaluate(params) -> Held`.

  Args:
    sample: a sampler of group 1 (rollout.sampler.make_sampler).
    text: tokenizer functions.
    task: its `test` records and `check`.
    options: of so many questions, greedy (rollout.draw.options).
    priced: says what the answers cost (beside.costs).
    reward: what answers are worth where the task cannot check them.
  """
  answer = answering(sample, text, task.test, options)

  def evaluate(params) -> Held:
    rows = answer(params, jax.random.key(0))
    cost = priced(rows, (len(rows), 1))
    told = {f'eval/{name}': x for name, x in cost.metrics.items()}
    if task.check is None:
      scores = reward(rows)[0]
      told |= {'eval/reward': float(scores.mean()), 'eval/length': tokens(rows)}
    else:
      scores = np.array([task.check(r.completion, r.record) for r in rows])
      told |= metrics(scores, rows)
    return Held(told, table(rows, scores, cost.columns))

  return evaluate


def make_safety(
  sample,
  text: Text,
  records: Sequence[Record],
  *,
  options,
  priced: beside.Tell,
  threshold: float,
  delta: float,
):
  """HC-RLHF's safety test (safety.py) as `test(params, key) -> metrics`.

  One completion of each record, drawn as in training: it is the mean cost of the
  policy that is bounded, not of its likeliest answers.
  """
  answer = answering(sample, text, records, options)

  def test(params, key) -> dict[str, float]:
    rows = answer(params, jax.random.fold_in(key, SALT))
    cost = priced(rows, (len(rows), 1)).extra['cost'][:, 0]
    return {
      'eval/safety_cost': float(cost.mean()),
      'eval/safety_bound': float(safety.upper_bound(cost, delta=delta)),
      'eval/safe': float(safety.is_safe(cost, threshold=threshold, delta=delta)),
    }

  return test


def answering(sample, text: Text, records: Sequence[Record], options):
  """One completion of each record, as `answer(params, key) -> samples`."""
  asked = [text.encode(r.messages, r.template) for r in records]
  tokens, length = pad(asked, text.max_prompt)
  ids = np.arange(len(records), dtype=np.int32)
  arrays = (tokens, length, ids, options(len(records)))

  def answer(params, key):
    rollout = sample(params, *arrays, key, np.int32(0))
    return to_samples(jax.device_get(rollout), records, text)

  return answer


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
    return Held(metrics(scores, seen) | parts, table(seen, scores, {}))

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
    'eval/length': tokens(rows),
  }


def tokens(rows: Sequence) -> float:
  """The mean length of an answer."""
  return float(np.mean([r.tokens for r in rows]))
