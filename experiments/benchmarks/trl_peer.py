"""Times TRL on a benchmark's work (versus.py); runs in an environment with TRL."""

import sys
import time

import numpy as np
import torch
from datasets import Dataset
from lines import say
from transformers import AutoTokenizer, TrainerCallback
from trl import (
  DPOConfig,
  DPOTrainer,
  GRPOConfig,
  GRPOTrainer,
  SFTConfig,
  SFTTrainer,
)

SAME = dict(
  use_cpu=True,
  bf16=False,
  learning_rate=1e-6,
  weight_decay=0.0,
  lr_scheduler_type='constant',
  max_grad_norm=0.0,
  logging_steps=1,
  report_to=[],
  save_strategy='no',
  gradient_checkpointing=False,
  dataloader_drop_last=True,
)
SPENT = {}


def main(kind: str, folder: str, steps: int) -> None:
  work = np.load(f'{folder}/work.npz')
  tokenizer = AutoTokenizer.from_pretrained(f'{folder}/model')
  common = SAME | {'output_dir': f'{folder}/trl', 'max_steps': steps}
  make = {'grpo': grpo, 'dpo': dpo, 'sft': sft}[kind]
  trainer = make(f'{folder}/model', tokenizer, work, common)
  trainer.add_callback(Clock())
  trainer.train()


class Clock(TrainerCallback):
  """Prints a JSON line per step."""

  def on_step_begin(self, *args, **kwargs):
    SPENT.clear()
    self.start = time.perf_counter()

  def on_log(self, args, state, control, logs=None, **kwargs):
    if 'loss' not in logs:
      return
    rollout = SPENT.get('rollout', 0.0)
    said = {'step': self.spent, 'rollout': rollout, 'update': self.spent - rollout}
    # 32 completions of this mean length, or 16 of 64.
    tokens = int(32 * logs.get('completions/mean_length', 32))
    say(**said, loss=logs['loss'], tokens=tokens)

  def on_step_end(self, *args, **kwargs):
    self.spent = time.perf_counter() - self.start


def grpo(path, tokenizer, work, common):
  """Four prompts of 8 completions; the reward counts digits."""

  class Timed(GRPOTrainer):
    def _generate(self, *args, **kwargs):
      start = time.perf_counter()
      out = super()._generate(*args, **kwargs)
      SPENT['rollout'] = time.perf_counter() - start
      return out

  def digits(completions, **kwargs):
    return [sum(c.isdigit() for c in x[0]['content']) / 10 for x in completions]

  config = GRPOConfig(
    **common,
    per_device_train_batch_size=32,
    num_generations=8,
    max_completion_length=64,
    beta=0.04,
    temperature=1.0,
    shuffle_dataset=False,
    model_init_kwargs=dict(dtype='float32'),
  )
  asked = [[{'role': 'user', 'content': text}] for text in work['texts'].tolist()]
  return Timed(
    model=path,
    reward_funcs=digits,
    args=config,
    train_dataset=Dataset.from_dict({'prompt': asked}),
    processing_class=tokenizer,
  )


def dpo(path, tokenizer, work, common):
  """Eight pairs of given token ids."""

  rows = [
    {
      'prompt': 'x',
      'chosen': 'x',
      'rejected': 'x',
      'prompt_ids': work['prompts'][i][: work['length'][i]].tolist(),
      'chosen_ids': work['pairs'][i, 0].tolist(),
      'rejected_ids': work['pairs'][i, 1].tolist(),
    }
    for i in range(8 * common['max_steps'])
  ]
  config = DPOConfig(
    **common,
    per_device_train_batch_size=8,
    beta=0.1,
    loss_type=['sigmoid'],
    max_length=None,
    model_init_kwargs=dict(dtype='float32'),
  )
  return given(DPOTrainer, path, tokenizer, config, rows)


def sft(path, tokenizer, work, common):
  """The completions of the eight pairs, each alone."""
  rows = []
  for i in range(8 * common['max_steps']):
    asked = work['prompts'][i][: work['length'][i]].tolist()
    for said in work['pairs'][i].tolist():
      rows.append({'input_ids': asked + said, 'labels': [-100] * len(asked) + said})
  config = SFTConfig(
    **common,
    per_device_train_batch_size=16,
    max_length=None,
    model_init_kwargs=dict(dtype='float32'),
  )
  return given(SFTTrainer, path, tokenizer, config, rows)


def given(trainer, path, tokenizer, config, rows):
  """A trainer that takes token ids as they are, in order."""

  class Given(trainer):
    def _prepare_dataset(self, dataset, *args, **kwargs):
      return dataset

    def _get_train_sampler(self, *args, **kwargs):
      return torch.utils.data.SequentialSampler(self.train_dataset)

  return Given(
    model=path,
    args=config,
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer,
  )


if __name__ == '__main__':
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
