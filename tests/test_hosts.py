"""Two processes, each with its own rows of a batch, compute what one computes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# Two updates of dpo on the toy data. argv: port, number of processes, own number.
SCRIPT = """
import json, os, sys
port, count, number = map(int, sys.argv[1:])
os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={2 // count}'
import jax
if count > 1:
  jax.distributed.initialize(f'127.0.0.1:{port}', count, number)
import toy
from jaxrl_llm import build, sharding, sources, step
from jaxrl_llm.data import chat, examples, letters, order
from jaxrl_llm.models import pretrained

tokenizer = pretrained.load('tiny').tokenizer
coder = chat.coder(tokenizer, pretrained.stop_ids(tokenizer))
mesh = sharding.make_mesh(data=2, fsdp=1)
data = letters.letters(size=20)
read = []
encode = examples.Encoder(coder, max_prompt=16, max_length=8)
def watched(i):
  read.append(i)
  return encode.read(data.train[i])
source = sources.dataset(
  size=20,
  read=watched,
  encode=encode,
  prompts=8,
  index=order.shuffled([(20, 1.0)], 8, seed=0),
  share=sharding.host_rows(8, mesh),
)
make = step.make_update_step(
  toy.forward, toy.SGD, build.method('dpo'), constrain=sharding.constrain(mesh)
)
toy.V = 128
state = toy.state()
state = jax.tree.map(
  lambda x: x if x.dtype == jax.dtypes.prng_key else
  jax.make_array_from_callback(x.shape, sharding.replicated(mesh), lambda i: x[i]),
  state.replace(key=jax.random.key_data(state.key)),
)
update, losses = sharding.compile_step(make, state, mesh), []
for i in range(2):
  batch = source(None, i).batch
  state, metrics = update(state, sharding.put_batch(batch, mesh))
  losses += [float(metrics['loss']), float(metrics['margin'])]
print(json.dumps({'losses': losses, 'read': len(read)}))
"""


def free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def outputs(count):
  """What each of `count` processes prints at its end."""
  here, port = Path(__file__).parent, free_port()
  env = dict(os.environ, PYTHONPATH=f'{here.parent}:{here}', JAX_PLATFORMS='cpu')
  started = [
    subprocess.Popen(
      [sys.executable, '-c', SCRIPT, str(port), str(count), str(i)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=env,
    )
    for i in range(count)
  ]
  done = [process.communicate(timeout=300) for process in started]
  assert all(p.returncode == 0 for p in started), done[0][1][-2000:]
  return [json.loads(out.splitlines()[-1]) for out, _ in done]


def test_two_processes_share_a_batch():
  (alone,) = outputs(1)
  both = outputs(2)
  assert [b['read'] for b in both] == [8, 8] and alone['read'] == 16
  for one in both:
    assert one['losses'] == pytest.approx(alone['losses'], abs=1e-6)
  assert alone['losses'][0] != alone['losses'][2]
