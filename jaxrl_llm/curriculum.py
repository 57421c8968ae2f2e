"""Questions drawn by how often they were solved: those at the frontier come more often.

  rate_q <- rate_q + ema (share of right completions - rate_q), from the first visit's
  weight_q = floor + rate_q (1 - rate_q), and 1/4 for a question never asked

The variance of a binary reward, which a group's advantages are made of. Ours; no paper
is reproduced. The table is of the state, so that a resumed run draws the same.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.ops import extras
from jaxrl_llm.sources import host_rng
from jaxrl_llm.types import InputError, Method, State


def weights(rate: np.ndarray, floor: float) -> np.ndarray:
  """How likely each question is drawn, up to a factor; a rate below 0 is unknown."""
  return floor + np.where(rate < 0, 0.25, rate * (1 - rate))


def by_rate(prompts: int, floor: float) -> Callable[[State, int], np.ndarray]:
  """(state, step) to the questions of that step, each once at most."""

  def index(state: State, step: int) -> np.ndarray:
    rate = np.asarray(jax.device_get(state.extra['pass_rate']), np.float64)
    share = weights(rate, floor)
    return host_rng(state, step).choice(
      len(rate), prompts, replace=False, p=share / share.sum()
    )

  return index


def tracked(method: Method, *, pool: int, prompts: int, ema: float) -> Method:
  """The method, keeping the pass rate of the first `pool` questions in the state."""
  if not 0 < ema <= 1 or pool < prompts:
    raise InputError(
      f'config.source: pool={pool} is at least prompts={prompts}, and pool_ema={ema} '
      'above 0 and at most 1.'
    )

  def prepare(state, batch):
    share, asked = extras.visits(batch)
    rate, who = state.extra['pass_rate'], batch.prompt_id % pool
    old = rate[who]
    new = jnp.where(old < 0, share, old + ema * (share - old))
    new = jnp.where(asked, new, old)
    rate = rate.at[who].set(new.astype(rate.dtype))
    state, batch = method.prepare(state, batch)
    return state.replace(extra=state.extra | {'pass_rate': rate}), batch

  extra = method.extra | {'pass_rate': np.full(pool, -1.0)}
  return method._replace(prepare=prepare, extra=extra)
