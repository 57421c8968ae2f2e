"""Policies beside the model that they started as: what they prefer, and what they say.

Of a held-out pair a policy prefers the completion with the larger sum_t log(pi / ref),
the reward that dpo and its relatives learn, or with the larger mean_t log pi, which
simpo and orpo learn. Of fresh completions, one of each held-out prompt, the mean of
sum_t log(pi / ref) is the KL from the policy to the reference.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxrl_llm import forward, sources, types
from jaxrl_llm.data.examples import Encoder, Example, in_turns
from jaxrl_llm.models import pretrained
from jaxrl_llm.models.decoder import Decoder
from jaxrl_llm.rollout import draw, sampler
from jaxrl_llm.types import Batch, Params


class Told(NamedTuple):
  """Log-probs of pairs, the chosen one first, and of fresh completions."""

  pairs: np.ndarray  # [N, 2] nats.
  tokens: np.ndarray  # [N, 2]
  fresh: np.ndarray  # [M] nats, to the policy that sampled,
  base: np.ndarray  # [M] and to the reference.
  length: np.ndarray  # [M]
  truncated: np.ndarray  # [M] bool


def make_tell(
  model: pretrained.Pretrained,
  pairs: Sequence[Example],
  encode: Encoder,
  *,
  samples: int,
  max_length: int,
  batch: int = 16,
) -> tuple[Callable[[Params], Told], Told]:
  """Returns `tell(params) -> Told` of policies of one network, and what it tells of the
  model itself.

  Args:
    pairs: the chosen completion first; groups that do not fit are left out.
    encode: of the pairs, with a bucket.
    samples: prompts, the first of the pairs, to be answered once at temperature 1.
    max_length: tokens of such an answer.
    batch: pairs, or prompts, at once.
  """
  decoder, base = Decoder(model.config), model.params()
  see = forward.make_forward({'policy': decoder})
  read = jax.jit(lambda tree, rows: see({'policy': tree}, {}, rows, ['logp']).logp)
  coded = [encode.read(example) for example in pairs]
  kept = [i for i, c in enumerate(coded) if c.kept]
  order = sorted(kept, key=lambda i: coded[i].size)
  turns = [(len(t), b) for t, b in in_turns(encode, pairs, order, batch)]
  prompts = dict.fromkeys(tuple(coded[i].prompt) for i in kept)  # No one twice.
  asked = sources.pad([*prompts][:samples], encode.max_prompt)
  ids = np.arange(len(asked[0]), dtype=np.int32)
  sample = sampler.make_sampler(decoder, group=1, max_length=max_length, slots=batch)
  stops = pretrained.stop_ids(model.tokenizer)
  how = draw.options(len(ids), max_length=max_length, stop_ids=stops)

  def total(params, rows: Batch) -> np.ndarray:
    return np.where(rows.mask > 0, np.asarray(read(params, rows)), 0.0).sum(-1)

  tokens = np.concatenate([b.mask.sum(-1)[:n] for n, b in turns])

  def tell(params) -> Told:
    rollout = jax.device_get(sample(params, *asked, ids, how, jax.random.key(0), 0))
    rows = types.make_batch(*asked, rollout.tokens, rollout.length)
    cut = lambda i: jax.tree.map(lambda x: x[i : i + batch], rows)
    seen = [total(base, cut(i)) for i in range(0, len(ids), batch)]
    said = np.where(rows.mask > 0, rollout.behavior_logp, 0.0).sum(-1)
    return Told(
      np.concatenate([total(params, b)[:n] for n, b in turns]),
      tokens,
      said[:, 0],
      np.concatenate(seen)[:, 0],
      rollout.length[:, 0],
      rollout.stop_reason[:, 0] == 0,
    )

  return tell, tell(base)


def table(found: dict, beside: dict[str, dict[str, str]] | None = None) -> str:
  """Markdown, a policy a line; shares in percent.

  Args:
    found: policy -> column -> value and the ends of its interval; columns of shares
      begin with 'prefers' or 'out'.
    beside: further columns -> policy -> what stands there.
  """
  columns, beside = [*next(iter(found.values()))], beside or {}
  head = ['policy', *columns, *beside]
  lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
  for name, of in found.items():
    cells = [shown(column, *of[column]) for column in columns]
    cells += [text.get(name, '') for text in beside.values()]
    lines.append(f'| {" | ".join([name, *cells])} |')
  return '\n'.join(lines)


def shown(column: str, *found: float) -> str:
  share = column.startswith(('prefers', 'out'))
  value, low, high = (round(100 * x if share else x, 1) + 0.0 for x in found)
  return f'{value} [{low}, {high}]' + (' %' if share else '')
