"""What is better depends on the principle: told it, or not, of the same judgements."""

import jax
import jax.numpy as jnp
import small
import tables

from jaxrl_llm.methods.bradley_terry import bradley_terry
from jaxrl_llm.methods.rlbff import rlbff
from jaxrl_llm.ops import sequences

METHODS = ('rlbff',)
METRICS = ('accuracy', 'one_for_all')
WORDS, ANSWER = 6, 6
# A principle says that an answer has this word (1), or that it has not (0).
WORD, HAS = jnp.array([0, 1, 2, 3, 2, 3, 4, 5]), jnp.array([1, 1, 1, 1, 0, 0, 0, 0])
NET = small.Net(vocab=8, prompt=1 + ANSWER, length=1)
SEEDS, STEPS, JUDGED, FLIPPED = 6, 400, 4000, 0.1
VERDICTS = jnp.array([[1], [0]])  # Yes and no.


def run():
  data = jax.vmap(lambda i: pairs(jax.random.key(i + 500), JUDGED // 2, FLIPPED))(
    jnp.arange(SEEDS)
  )
  told = lambda rows: rows
  return {
    'RLBFF': train(rlbff(), 'policy', asked, told, data),
    'RLBFF, taught one principle': train(rlbff(), 'policy', asked, one, data),
    'Bradley-Terry': train(bradley_terry(), 'reward', compared, one, data),
    'Bradley-Terry, told the principle': train(
      bradley_terry(), 'reward', compared, told, data
    ),
  }


def pairs(key, count, flipped):
  """Rows [N, 2, 1 + ANSWER], a principle and an answer: the first answer keeps it and
  the second does not, but where a judgement is wrong they have changed places.
  """
  keys = jax.random.split(key, 3)
  principle = jax.random.randint(keys[0], (count, 1), 0, len(WORD))
  drawn = jax.random.randint(keys[1], (count, 32, ANSWER), 0, WORDS)
  has = (drawn == WORD[principle][..., None]).any(-1)
  keeps = has == (HAS[principle] == 1)
  at = jnp.stack([keeps.argmax(-1), (~keeps).argmax(-1)], -1)
  wrong = jax.random.bernoulli(keys[2], flipped, (count, 1))
  at = jnp.where(wrong, at[:, ::-1], at)
  answers = jnp.take_along_axis(drawn, at[..., None], 1)
  said = jnp.broadcast_to(principle[:, None], (count, 2, 1))
  return jnp.concatenate([said, answers], -1)


def one(rows):
  """The first principle, whichever it was."""
  return rows.at[..., 0].set(0)


def asked(rows):
  """Each answer by itself, and Yes and No about it."""
  count = 2 * len(rows)
  said = jnp.broadcast_to(VERDICTS, (count, 2, 1))
  keeps = jnp.tile(jnp.array([[1.0, 0.0], [0.0, 1.0]]), (len(rows), 1))
  return small.stored(rows.reshape(count, -1), said).replace(reward=keeps)


def compared(rows):
  """Both answers as a pair."""
  batch = small.stored(rows[:, 0], jnp.zeros((len(rows), 2, 1), int))
  return batch.replace(
    row_prompt=rows,
    row_prompt_length=jnp.full(rows.shape[:2], NET.prompt),
    reward=jnp.tile(jnp.array([[1.0, 0.0]]), (len(rows), 1)),
  )


def scores(params, rows):
  """Of the answers [N, 2], whichever model there is."""
  see = small.make_forward(NET)
  if 'reward' in params:
    return see(params, {}, compared(rows), ('score',)).score
  out, batch = see(params, {}, asked(rows), ('logp',)), asked(rows)
  found = sequences.margin(sequences.words(out.logp, batch.mask))
  return found.reshape(len(rows), 2)


def train(method, role, batched, known, data):
  keys = jax.random.split(jax.random.key(0), SEEDS)
  outputs = NET.vocab if role == 'policy' else 1
  start = {role: jax.vmap(lambda key: small.init(NET, key, outputs))(keys)}

  def draw(state, key):
    at = jax.random.randint(key, (64,), 0, JUDGED // 2)
    return batched(known(state.frozen['data'][at])), dict(tables.NOTHING)

  def measure(state, key):
    """On new pairs, under their own principles and all under the first one."""
    rows = pairs(key, 2048, 0.0)
    right = lambda s: (s[:, 0] > s[:, 1]).mean()
    return {
      'accuracy': right(scores(state.params, known(rows))),
      'one_for_all': right(scores(state.params, one(rows))),
    }

  how = dict(frozen={'data': data}, steps=STEPS, every=STEPS // 10, measure=measure)
  return small.run(NET, draw, method, start, **how)[1]


def parts(told):
  last = {arm: found['accuracy'] for arm, found in told.last.items()}
  own = told.last['RLBFF']
  return {
    'accuracy: RLBFF less Bradley-Terry': last['RLBFF'] - last['Bradley-Terry'],
    'the same less one principle in training': last['RLBFF']
    - last['RLBFF, taught one principle'],
    'its own principles less one for all in the test': own['accuracy']
    - own['one_for_all'],
  }
