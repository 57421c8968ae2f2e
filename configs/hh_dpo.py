r"""DPO on hh-rlhf's pairs of transcripts.

  python experiments/train.py --config=configs/hh_dpo.py \
    --config.data.path=FILE

FILE is one of hh-rlhf's files (chosen, rejected), or hf:Anthropic/hh-rlhf. LoRA on
SmolLM2-135M-Instruct, two CPU cores; the README's table of real data has the held-out
accuracy of the implicit reward and the time. A larger model on a pod:
--config.model.name=meta-llama/Llama-3.2-1B-Instruct --config.model.dtype=bfloat16
--config.model.remat=full --config.source.prompts=64.
"""

from ml_collections import config_dict

from jaxrl_llm.default_config import adam, default_config, files, stored


def get_config() -> config_dict.ConfigDict:
  c = default_config('hh_dpo', 'dpo')
  c.steps = 63
  c.plan.pack = 768
  c.model.lora.rank = 16
  c.optimizer = dict(policy=adam(1e-4))
  c.optimizer.policy.decay = 'linear'
  c.evaluation = dict(every=63, batch=16)
  c.source = stored(16, 256, 256)
  c.source.cache_reference = True
  c.data = files('hh')
  c.data.update(test_size=500, bad_rows='drop')
  return c
