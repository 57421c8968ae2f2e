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
    b, g = batch.reward.shape
    shares = [(w := weights(reward, kind)) / w.sum() for reward in batch.reward]
    rows = np.stack([rng.choice(g, g, p=share) for share in shares])
    whole = ('prompts', 'prompt_length', 'prompt_id')
    pick = lambda x: x if x.ndim < 2 else x[np.arange(b)[:, None], rows]
    kept = {k: vars(batch)[k] for k in whole}
    return jax.tree.map(pick, batch.replace(**dict.fromkeys(whole))).replace(**kept)

  return changed(source, again)
