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
  c.steps = 30
  c.plan.update(microbatches=2, pack=320)
  c.model.lora.rank = 16
  c.optimizer = dict(policy=adam(1e-4))
  c.optimizer.policy.decay = 'linear'
  c.evaluation = dict(every=30, batch=8)
  c.source = stored(8, 160, 64)
  c.data = files('hh')
  c.data.update(test_size=120, bad_rows='drop')
  return c
