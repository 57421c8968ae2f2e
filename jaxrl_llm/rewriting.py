"""Rewards of tokens, from a model that writes answers again: the sequence-to-sequence
reward model (2024), https://arxiv.org/abs/2409.00162. Experimental.

It is an sft run on what data/reshape.rewrites makes of pairs: the rejected answer to
the chosen one, and the chosen one to itself. Here it reads prompt and answer y, and
each of y's tokens after those before it:

  gap_t = max log p - log p(y_t)
  r_t = 1 / T where gap_t = 0,   -1 / T where gap_t > log tau,   0 between

What it would write again has a positive reward, what it would change a negative one.
How large they are was not found, nor whether a rewrite is sampled: 1 / T, tau and
reading the answer itself are ours. Method grpo_process trains on them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import forward, restored, sources, types
from jaxrl_llm.data import kinds, reshape
from jaxrl_llm.models import pretrained
from jaxrl_llm.models.decoder import head_kernel
from jaxrl_llm.ops import logprobs
from jaxrl_llm.types import BGT, Array, Batch, InputError, State


def feedback(gap: BGT, mask: BGT, tau: float) -> Array:
  """r_t [B, G, T] of gaps in nats; 0 where `mask` is."""
  size = jnp.maximum(mask.sum(-1, keepdims=True), 1.0)
  sign = (gap <= 0) * 1.0 - (gap > jnp.log(tau))
  return mask * sign / size


def rewarded(source: sources.Source, ask: sources.Ask, run: str, *, tau: float):
  """The source with extra['step_reward'] [B, G, T], and every token a step's end.

  An answer that does not fit into the model's prompts has rewards of 0.

  Args:
    ask: whose records and tokens the source's are.
    run: the folder of the sft run. Its tokens must be the policy's.
  """
  if not tau >= 1:
    raise InputError(f'config.source.rewriter_tau={tau!r}; give at least 1.')
  model = restored.network(run, 'policy')
  asked = lambda record, text: kinds.judged(record.messages, text, reshape.REWRITE)
  check_tokens(model.tokenizer, ask.text.encode, asked(ask.record(0), 'a'), run)
  room, gaps = model.config.source.max_prompt, make_gaps(model)

  def marked(batch: Batch, state: State, step: int) -> Batch:
    found = np.zeros(batch.mask.shape, np.float32)
    for b, index in enumerate(batch.prompt_id):
      rows = zip(batch.completions[b], batch.length[b])
      texts = [ask.text.decode(tokens[:size]) for tokens, size in rows]
      record = ask.record(int(index))
      prompts = [ask.text.encode(asked(record, text)) for text in texts]
      fit = np.array([len(x) <= room for x in prompts], np.float32)
      padded = sources.pad([x[:room] for x in prompts], room)
      gap = gaps(*padded, batch.completions[b], batch.length[b])
      found[b] = feedback(gap, batch.mask[b][None], tau)[0] * fit[:, None]
    told = {'step_end': np.asarray(batch.mask, np.float32), 'step_reward': found}
    return batch.replace(extra=batch.extra | told)

  return sources.changed(source, marked)


def make_gaps(model):
  """Returns `gaps(prompts [N, P], lengths [N], completions [N, T], lengths [N])` of a
  restored.Network: by how many nats each token is less likely than the likeliest,
  [1, N, T].
  """

  @jax.jit
  def say(params, batch):
    seen = forward.look(model.decoder, params, batch)
    kernel = head_kernel(params)
    return seen.back(logprobs.token_gap(seen.before, kernel, seen.tokens, cap=seen.cap))

  def gaps(prompts, prompt_length, completions, length) -> BGT:
    rows = types.make_batch(
      prompts, prompt_length, completions[:, None], length[:, None]
    )
    return say(model.params, rows).swapaxes(0, 1)

  return gaps


def check_tokens(tokenizer, encode, messages, run: str) -> None:
  """Refuses a model that would read other tokens than the policy writes."""
  if pretrained.encode_chat(tokenizer, messages) != encode(messages):
    raise InputError(
      f'config.source.rewriter={run}: its tokens, or its chat template, are not those '
      'of the policy, whose tokens it is to judge. Train it from the same model.'
    )
