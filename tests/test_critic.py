"""A critic that starts as a reward model."""

import json

import jax
import numpy as np
import pytest
import runs

from jaxrl_llm import assemble, restored
from jaxrl_llm.types import InputError


def test_a_critic_starts_as_the_reward_model_of_a_run():
  """All of its weights, and the head, which training has moved away from zero."""
  folder = runs.finished('bradley_terry')
  want = restored.network(str(folder), 'reward').params
  state = assemble.assemble(runs.config('ppo', model=dict(critic=str(folder)))).state
  jax.tree.map(np.testing.assert_array_equal, state.params['critic'], want)
  assert abs(want['scores']).max() > 1e-3
  low_rank = dict(lora=dict(rank=2), critic=str(folder))
  with pytest.raises(InputError, match='adapters of the same base'):
    assemble.assemble(runs.config('ppo', model=low_rank))
  with pytest.raises(InputError, match='grpo trains'):
    assemble.assemble(runs.config('grpo', model=dict(critic=str(folder))))
  with pytest.raises(InputError, match=r'bradley_terry \(run\.json\)'):
    assemble.assemble(runs.config('ppo', model=dict(critic='nowhere')))


@pytest.mark.parametrize('name', ['armo', 'vpl', 'odin', 'brme'])
def test_a_critic_needs_a_score_of_the_roles_own_head(name, tmp_path):
  """Theirs stands apart, beside a head that is another or is never trained."""
  config = json.loads(runs.config(name).to_json())
  (tmp_path / 'run.json').write_text(json.dumps({'config': config}))
  asked = runs.config('ppo', model=dict(critic=str(tmp_path)))
  with pytest.raises(InputError, match=f'the score of {name} is not'):
    assemble.critic_start(asked, {'critic'})
