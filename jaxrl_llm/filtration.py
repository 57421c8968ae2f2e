"""PF-PPO's policy filtration (2024), https://arxiv.org/abs/2409.06957.

A reward model is to be trusted at some ranks only, so a group's completions are drawn
again, with replacement, by weights of their rank. Which weights is the paper's choice
by how well rewards of what is kept predict the outcome.
"""

import jax
import numpy as np

from jaxrl_llm.sources import Source, changed, host_rng
from jaxrl_llm.types import Batch, InputError, State


def weights(reward: np.ndarray, kind: str) -> np.ndarray:
  """How likely each of a group's completions is drawn, up to a factor: [G] to [G]."""
  best, worst = np.argmax(reward), np.argmin(reward)
  alone = lambda *which: np.isin(np.arange(len(reward)), which).astype(float)
  table = {
    'best': lambda: alone(best),
    'best_random': lambda: 0.1 + 0.3 * alone(best),
    'best_worst': lambda: alone(best, worst),
    'power': lambda: np.square(reward) + 1e-12,
  }
  if kind not in table:
    raise InputError(f'config.source.filter={kind!r}; there are {sorted(table)}.')
  return table[kind]()


def filtered(source: Source, kind: str) -> Source:
  """The source with the completions of each group drawn again by `weights`.

  The draw is a function of the state's key and the step. Metrics are those of all
  completions.
  """
  weights(np.zeros(2), kind)

  def again(batch: Batch, state: State, step: int) -> Batch:
    rng = host_rng(state, step)
    g = batch.reward.shape[1]
    shares = [(w := weights(reward, kind)) / w.sum() for reward in batch.reward]
    rows = np.stack([rng.choice(g, g, p=share) for share in shares])
    return taken(batch, rows)

  return changed(source, again)


def taken(batch: Batch, rows: np.ndarray) -> Batch:
  """The batch with completions `rows` [B, K] of each group, and what they are told."""
  whole = ('prompts', 'prompt_length', 'prompt_id')
  pick = lambda x: x[np.arange(len(rows))[:, None], rows]
  kept = {k: vars(batch)[k] for k in whole}
  # Of a prompt [B], or of its completions [B, G, ...].
  extra = {k: pick(x) if x.ndim > 1 else x for k, x in batch.extra.items()}
  if 'duel' in extra:  # Of two completions [B, G, G].
    extra['duel'] = np.take_along_axis(extra['duel'], rows[:, None], 2)
  kept['extra'] = extra
  return jax.tree.map(pick, batch.replace(**dict.fromkeys(kept))).replace(**kept)
