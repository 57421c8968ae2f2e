"""Times Tunix on a benchmark's work (versus.py); runs in an environment with Tunix."""

import functools
import os
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from lines import say
from transformers import PreTrainedTokenizerFast
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout
from tunix.sft import peft_trainer, utils
from tunix.sft.dpo import dpo_trainer

CONFIG = llama.ModelConfig(
  num_layers=30,
  vocab_size=49152,
  embed_dim=576,
  hidden_dim=1536,
  num_heads=9,
  head_dim=64,
  num_kv_heads=3,
  rope_theta=100_000,
  norm_eps=1e-5,
  weight_tying=True,
)
# Its blocks call apply_rope without the config's base, so that 1e6 is always taken.
llama.apply_rope = functools.partial(llama.apply_rope, rope_theta=CONFIG.rope_theta)


def main(kind: str, folder: str, steps: int) -> None:
  work = np.load(f'{folder}/work.npz')
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((1, 1), ('fsdp', 'tp'), axis_types=auto)
  load = lambda: llama_params.create_model_from_safe_tensors(
    f'{folder}/model', CONFIG, mesh, jnp.float32
  )
  {'grpo': grpo, 'dpo': dpo, 'sft': sft}[kind](work, folder, steps, mesh, load)


def dpo(work, folder, steps, mesh, load) -> None:
  """Eight pairs of given token ids."""

  def batch(i):
    rows = slice(8 * i, 8 * i + 8)
    ids, mask = asked(work, rows)
    said, one = work['pairs'][rows], jnp.ones((8, 64), jnp.int32)
    return dpo_trainer.TrainingInput(
      prompt_ids=jnp.array(ids),
      prompt_mask=jnp.array(mask),
      chosen_ids=jnp.array(said[:, 0]),
      chosen_mask=one,
      rejected_ids=jnp.array(said[:, 1]),
      rejected_mask=one,
    )

  # It hands on the mean margin, so small here that the mean loss is its loss.
  loss = lambda aux: float(np.log1p(np.exp(-float(aux['rewards/margin']))))
  with mesh:
    trainer = timed(dpo_trainer.DPOTrainer, loss)(
      load(),
      load(),
      optax.adamw(1e-6, weight_decay=0.0),
      dpo_trainer.DPOTrainingConfig(
        beta=0.1, eval_every_n_steps=10**9, max_steps=steps
      ),
    )
    trainer.train([batch(i) for i in range(steps)])


def sft(work, folder, steps, mesh, load) -> None:
  """The completions of the eight pairs, each alone."""

  def batch(i):
    rows = slice(8 * i, 8 * i + 8)
    ids, mask = (np.repeat(x, 2, 0) for x in asked(work, rows))
    said = work['pairs'][rows].reshape(16, 64)
    return peft_trainer.TrainingInput(
      input_tokens=np.concatenate([ids, said], 1),
      input_mask=np.concatenate([mask, np.ones_like(said)], 1),
    )

  def inputs(x):
    learned = jnp.arange(x.input_mask.shape[1]) >= x.input_mask.shape[1] - 64
    return {
      'input_tokens': x.input_tokens,
      'input_mask': x.input_mask * learned,
      'positions': utils.build_positions_from_mask(x.input_mask),
      'attention_mask': utils.make_causal_attn_mask(x.input_mask),
    }

  def both(model, input_tokens, input_mask, positions, attention_mask):
    given = input_tokens, input_mask, positions, attention_mask
    loss = peft_trainer._default_loss_fn(model, *given)
    return loss, {'loss': loss}

  with mesh:
    trainer = timed(peft_trainer.PeftTrainer, lambda aux: float(aux['loss']))(
      load(),
      optax.adamw(1e-6, weight_decay=0.0),
      peft_trainer.TrainingConfig(eval_every_n_steps=10**9, max_steps=steps),
    )
    trainer = trainer.with_gen_model_input_fn(inputs).with_loss_fn(both, has_aux=True)
    trainer.train([batch(i) for i in range(steps)])


def asked(work, rows) -> tuple[np.ndarray, np.ndarray]:
  """Prompts with their padding before them, and where they are."""
  length, width = work['length'][rows], work['prompts'].shape[1]
  ids, mask = np.zeros((8, width), np.int32), np.zeros((8, width), np.int32)
  for r, n in enumerate(length):
    ids[r, width - n :], mask[r, width - n :] = work['prompts'][rows][r, :n], 1
  return ids, mask


def timed(trainer, loss):
  """The trainer, saying what a step took and its `loss(aux)`."""

  class Timed(trainer):
    def _prepare_inputs(self, x):
      self.start = time.perf_counter()
      return super()._prepare_inputs(x)

    def _post_process_train_step(self, aux):
      super()._post_process_train_step(aux)
      jax.block_until_ready(nnx.state(self.model, nnx.Param))
      spent = time.perf_counter() - self.start
      say(step=spent, rollout=0.0, update=spent, loss=loss(aux), tokens=1024)

  return Timed


def grpo(work, folder, steps, mesh, load) -> None:
  """Four prompts of 8 completions; the reward counts digits."""
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_file=f'{folder}/model/tokenizer.json',
    bos_token='<|im_start|>',
    eos_token='<|im_end|>',
    unk_token='<|endoftext|>',
    pad_token='<|endoftext|>',
  )
  with open(f'{folder}/model/chat_template.jinja') as file:
    tokenizer.chat_template = file.read()
  asked = [
    tokenizer.apply_chat_template(
      [{'role': 'user', 'content': text}], tokenize=False, add_generation_prompt=True
    )
    for text in work['texts'].tolist()
  ]
  role = rl_cluster.Role
  config = rl_cluster.ClusterConfig(
    role_to_mesh={role.ACTOR: mesh, role.REFERENCE: mesh, role.ROLLOUT: mesh},
    rollout_engine='vanilla',
    training_config=rl_cluster.RLTrainingConfig(
      actor_optimizer=optax.adamw(1e-6, weight_decay=0.0),
      eval_every_n_steps=10**9,
      max_steps=steps,
      mini_batch_size=4,
      train_micro_batch_size=4,
      rollout_micro_batch_size=4,
      compute_logps_micro_batch_size=4,
    ),
    rollout_config=base_rollout.RolloutConfig(
      max_tokens_to_generate=64,
      max_prompt_length=48,
      kv_cache_size=112,
      temperature=1.0,
      top_p=1.0,
      top_k=None,
    ),
  )
  cluster = rl_cluster.RLCluster(
    actor=load(), reference=load(), tokenizer=tokenizer, cluster_config=config
  )
  learner = grpo_learner.GRPOLearner(
    cluster,
    grpo_learner.GRPOConfig(num_generations=8, num_iterations=1, beta=0.04),
    lambda prompts, completions, **_: [
      sum(c.isdigit() for c in x) / 10 for x in completions
    ],
  )
  spent = {}
  generate, inner = cluster.generate, learner._run_global_step

  def timed_generate(*args, **kwargs):
    start = time.perf_counter()
    out = generate(*args, **kwargs)
    jax.block_until_ready(jax.tree.leaves(out.tokens))
    spent['rollout'] = time.perf_counter() - start
    spent['tokens'] = int(sum(len(x) for x in out.tokens))
    return out

  def timed_step(*args, **kwargs):
    start = time.perf_counter()
    inner(*args, **kwargs)
    jax.block_until_ready(nnx.state(cluster.actor_trainer.model, nnx.Param))
    step = time.perf_counter() - start
    say(step=step, update=step - spent['rollout'], **spent)

  cluster.generate, learner._run_global_step = timed_generate, timed_step
  learner.train({'prompts': np.array(asked[4 * i : 4 * i + 4])} for i in range(steps))


if __name__ == '__main__':
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
