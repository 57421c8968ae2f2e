"""How a model that scores completions reads them."""

from jaxrl_llm.data import chat
from jaxrl_llm.data.examples import Encoder
from jaxrl_llm.models import pretrained


def encoder(tokenizer, *, max_prompt: int, max_length: int) -> Encoder:
  """What is too long is cut; there are at most four widths of completions."""
  return Encoder(
    chat.coder(tokenizer, pretrained.stop_ids(tokenizer)),
    max_prompt=max_prompt,
    max_length=max_length,
    long_prompt='cut',
    bucket=-(-max_length // 4),
  )
