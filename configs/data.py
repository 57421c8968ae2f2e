r"""Any method for stored completions on a table of your own.

  python experiments/train.py --config=configs/data.py:dpo --config.data.path=PATH \
    --config.data.kind=pairs --config.model.name=MODEL

The README's part on data lists kinds and options; all of them are flags. Steps, batch
and lengths are for a first look on two CPU cores, with LoRA on SmolLM2-135M-Instruct.
"""

from ml_collections import config_dict

from jaxrl_llm.default_config import KINDS, adam, default_config, files, stored


def get_config(method: str = 'sft') -> config_dict.ConfigDict:
  c = default_config(f'data_{method}', method)
  c.steps = 30
  c.plan.microbatches = 2
  c.model.lora.rank = 16
  c.optimizer = {role: adam(1e-4) for role in ('policy', 'reward')}
  c.evaluation.update(every=30, batch=8)
  c.source = stored(8, 160, 160)
  c.data = files(KINDS.get(method, 'pairs'))
  c.data.test_size = 64
  return c
