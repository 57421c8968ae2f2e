r"""dpo, ipo, kto, orpo or simpo on hh-rlhf's pairs of transcripts.

  python experiments/train.py --config=configs/hh.py:dpo --config.data.path=FILE

FILE is one of hh-rlhf's files (chosen, rejected), or hf:Anthropic/hh-rlhf; `kto` takes
it as labels:

  python experiments/reshape.py transcripts FILE PAIRS.jsonl
  python experiments/reshape.py labels PAIRS.jsonl LABELS.jsonl

LoRA on SmolLM2-135M-Instruct. Of 450 held-out pairs of harmless-base's test file dpo
preferred the chosen completion in 57.8 % [53.2, 62.3], in 19.6 minutes of two CPU cores
with nothing else to do, a third of it to score what is held out and the reference; the
shorter one was chosen in 56.4 %. Pairs with longer prompts are left out, as are four
with empty answers. In float32, with prompts of up to 256 tokens, dpo came to 61.9 % of
441 pairs, ipo to 57.4 and kto to 58.7, and by the mean of log pi orpo to 54.6 and simpo
to 54.4 (experiments/claims/043_five_losses). One learning rate for all. The baseline of
kto is that of the batch: the mismatched rows of the paper (baseline=mismatched,
cache_reference=False) take twice the time. dtype=mixed is for a CPU that multiplies
bfloat16; on others it has not been measured. A larger model on a pod:
--config.model.name=meta-llama/Llama-3.2-1B-Instruct --config.model.dtype=bfloat16
--config.model.remat=full --config.source.prompts=64.
"""

from ml_collections import config_dict

from jaxrl_llm.default_config import adam, default_config, files, stored


def get_config(method: str = 'dpo') -> config_dict.ConfigDict:
  c = default_config(f'hh_{method}', method)
  c.model.dtype = 'mixed'
  c.steps = 63
  c.plan.pack = 768
  c.model.lora.rank = 16
  c.optimizer = dict(policy=adam(1e-4))
  c.optimizer.policy.decay = 'linear'
  referred = method in ('dpo', 'ipo', 'kto')
  # The reference prefers nothing to itself, so that its start needs no look.
  c.evaluation.update(every=c.steps, batch=64, at_start=not referred)
  c.source = stored(32 if method == 'kto' else 16, 192, 256)
  c.source.cache_reference = referred
  if method == 'kto':
    c.method.baseline = 'batch'
  c.data = files('labels' if method == 'kto' else 'hh')
  c.data.update(test_size=1200 if method == 'kto' else 600, bad_rows='drop')
  return c
