"""HC-RLHF's safety test (2025), https://arxiv.org/abs/2506.08266.

  U = mean + t_{1 - delta, n - 1} std / sqrt(n),  and the model is returned if U <= tau

Then P(returned and unsafe) <= delta, where the mean of n costs is normal. The costs are
of prompts that training and selection never saw, and are looked at once: of k models
tested on the same ones each takes delta / k. The promise is about the cost function,
not about what it stands for. Plain NumPy.
"""

import numpy as np

from jaxrl_llm.ops import costs as bounds


def upper_bound(costs: np.ndarray, *, delta: float) -> np.ndarray:
  """U of costs [..., n], standard deviations those of the sample."""
  costs = np.asarray(costs, np.float64)
  margin = bounds.margin(costs.shape[-1], delta)
  return costs.mean(-1) + margin * costs.std(-1, ddof=1)


def is_safe(costs: np.ndarray, *, threshold: float, delta: float) -> np.ndarray:
  """Whether the mean cost is at most `threshold`, at confidence 1 - delta."""
  return upper_bound(costs, delta=delta) <= threshold
