"""The mean log-probability of a completion's tokens to a model: a baseline without
training.
"""

import jax
import numpy as np

from jaxrl_llm import forward
from jaxrl_llm.data.examples import Example, in_turns
from jaxrl_llm.models import pretrained
from jaxrl_llm.models.decoder import Decoder
from jaxrl_llm.rewards import coding
from jaxrl_llm.rewards.sample import Batched, Sample


def likelihood(
  *,
  model: str,
  max_prompt: int = 512,
  max_length: int = 512,
  batch: int = 8,
  total: bool = False,
) -> Batched:
  """Nats per token, or of the whole completion with `total`; what is too long is cut.

  Args:
    model: a name or folder as of config.model.name.
    batch: completions at once.
  """
  found = pretrained.load(model)
  encode = coding.encoder(found.tokenizer, max_prompt=max_prompt, max_length=max_length)
  see, params = forward.make_forward({'policy': Decoder(found.config)}), found.params()
  say = jax.jit(lambda tree, rows: see({'policy': tree}, {}, rows, ['logp']).logp)

  def score(samples: list[Sample]) -> np.ndarray:
    said = [Example(s.record.messages, (s.completion,), (0.0,)) for s in samples]
    sums = np.zeros(len(said))
    for turn, rows in in_turns(encode, said, range(len(said)), batch):
      mask = np.asarray(rows.mask * rows.valid[..., None])[: len(turn), 0]
      nats = np.where(mask > 0, np.asarray(say(params, rows))[: len(turn), 0], 0)
      sums[turn] = nats.sum(-1) / (1 if total else np.maximum(mask.sum(-1), 1))
    return sums

  return Batched(score)
