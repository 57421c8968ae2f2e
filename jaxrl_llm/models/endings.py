"""The tokens that end what a model says."""

from jaxrl_llm.types import InputError

# Tokens with which chat templates close a turn.
TURN_ENDS = ('<|im_end|>', '<|eot_id|>', '<|eom_id|>', '<end_of_turn>', '<|end|>')
TURN_ENDS += ('</s>',)


def stop_ids(tokenizer) -> tuple[int, ...]:
  """Ids that end a completion: EOS, and what the chat template ends a turn with.

  Raises:
    InputError: the tokenizer has no EOS.
  """
  if tokenizer.eos_token_id is None:
    raise InputError(
      'The tokenizer has no eos_token, so no completion would end. Set one.'
    )
  template, vocab = str(tokenizer.chat_template), tokenizer.get_vocab()
  ends = [vocab[end] for end in TURN_ENDS if end in vocab and end in template]
  return tuple(dict.fromkeys([tokenizer.eos_token_id, *ends]))
