"""Between which values an option of a method lies, told by its name alone.

Where one method means something else by a name, the entry is 'method.name'; a function
that an option names, such as a loss of the margin, is looked up as a method is. What
depends on another option, or is no number, the method checks itself.
"""

import math
from typing import NamedTuple

from jaxrl_llm.types import InputError


class Range(NamedTuple):
  """From `least`, or where it is `above`, from what is more than that, to `most`, or
  where it is `below`, to what is less.
  """

  least: float
  most: float = math.inf
  above: bool = False
  below: bool = False


NOT_NEGATIVE, POSITIVE = Range(0), Range(0, above=True)
SHARE, COUNT = Range(0, 1), Range(1)
MINOR = Range(0, 0.5, below=True)  # From 1/2 on wrong labels are as many as right ones.

NAMES = {
  NOT_NEGATIVE: (
    *('beta', 'beta1', 'beta2', 'alpha', 'eta', 'lam', 'nll', 'sft', 'l2', 'center'),
    *('clip', 'clip_low', 'clip_high', 'log_clip', 'dual_clip', 'value_clip'),
    *('reward_clip', 'advantage_clip', 'dpo_clip', 'score_clip', 'bound', 'floor'),
    *('value_coef', 'kl_coef', 'kl_target', 'penalty', 'bonus', 'process', 'prm_beta'),
    *('c1', 'c2', 'rate', 'critic_steps', 'delay', 'top', 'clusters', 'temperature'),
    *('desirable', 'undesirable', 'nash_md.tau', 'decorrelate', 'orthogonal'),
  ),
  POSITIVE: (
    *('tau', 'tau_positive', 'tau_negative', 'kl_horizon', 'kl_max', 'ratio_max'),
    *('cap', 'scale', 'multiplier_max', 'armo.temperature', 'infonca.temperature'),
    *('nca.temperature', 'sppo.eta', 'spin.lam'),
  ),
  MINOR: ('flipped',),
  Range(0, 0.5): ('label_smoothing',),  # At 1/2 no pair teaches anything.
  Range(0, 1, above=True): ('alpha.alpha',),
  Range(0, 1, above=True, below=True): ('discopop.tau',),
  Range(0, 0.5, above=True, below=True): ('exo.flipped',),  # It stands in a log.
  SHARE: (
    *('discount', 'ema', 'hysteresis', 'rollout_gdro.gamma'),
    *(f'{name}.lam' for name in ('ppo', 'ma_rlhf', 'rto', 'pairwise_ppo', 'safe_rlhf')),
    *('tr_dpo.alpha', 'grpo_care.alpha'),
  ),
  COUNT: (
    *('n', 'count', 'prompts', 'history', 'every', 'latent', 'hidden', 'classes'),
    *('layers', 'tokens', 'max_length'),
  ),
}
OF = {name: allowed for allowed, names in NAMES.items() for name in names}


def check_method(method: str, options: dict, where: str) -> None:
  """Refuses numbers that a method of this package has no meaning for."""
  for key, value in options.items():
    if allowed := OF.get(f'{method}.{key}', OF.get(key)):
      check(f'{where}: {key}', value, allowed)


def check(what: str, value, allowed: Range) -> None:
  """Refuses a number out of its range; what is no number has no range."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return
  least, most, above, below = allowed
  low_enough = value < most if below else value <= most
  if not ((value > least if above else value >= least) and low_enough):
    low = f'more than {least}' if above else f'at least {least}'
    high = f' and {"less than" if below else "at most"} {most}'
    high = '' if most == math.inf else high
    raise InputError(f'{what}={value!r}; give {low}{high}.')
