"""Sequence classifiers of transformers: reward models that come, and that go."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from oracles import make_reference_logits as oracle
from test_scripts import script

from jaxrl_llm import restored, train
from jaxrl_llm.models import config_json, decoder, pretrained, weights
from jaxrl_llm.rewards.classifier import classifier
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.tasks import records
from jaxrl_llm.types import InputError

TEXTS = ('a', 'abcabc', 'b 1', 'cab')
FAMILIES = ('grouped', 'untied', 'biases', 'smollm3', 'mistral', 'qwen2', 'qwen3')
FAMILIES += ('qwen3_moe', 'gemma2', 'gemma3', 'phi3', 'gpt2')


def sample(text, **more):
  record = records.Record(0, records.chat('ab'), '', {})
  return Sample('ab', text, 0, False, record)._replace(**more)


def said(text):
  """tiny's template: each message and a newline."""
  return f'ab\n{text}\n'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A classifier of two scores, its head drawn."""
  tiny, path = pretrained.load('tiny'), tmp_path_factory.mktemp('c') / 'model'
  head = np.random.default_rng(1).normal(size=(tiny.config.width, 2))
  params = dict(tiny.params()) | {'scores': head.astype(np.float32)}
  weights.save(path, tiny.fields, params, tokenizer=tiny.tokenizer)
  return str(path)


def by_decoder(folder, text):
  """The scores of the last token, one conversation alone and without a prefix."""
  found = pretrained.classifier(folder)
  ids = jnp.array(found.tokenizer.encode(said(text)))[None, None]
  model = decoder.Decoder(found.config, scores=found.scores)
  at, mask = jnp.arange(ids.size)[None, None], decoder.causal(ids.size)
  params = found.params()
  hidden, _ = model.apply({'params': params}, ids, at, mask)
  return np.asarray(hidden[0, 0, -1] @ params['scores'])


@pytest.mark.parametrize('label', [0, 1])
def test_the_score_is_that_of_the_last_token(folder, label):
  want = [by_decoder(folder, text)[label] for text in TEXTS]
  rewards = classifier(model=folder, label=label, max_length=16, batch=3)
  got = rewards.score([*map(sample, TEXTS)])
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert np.ptp(want) > 0.1


def test_the_end_of_what_is_too_long_is_scored(folder):
  short = classifier(model=folder, max_length=4)
  found = short.score([sample('abcabc'), sample('xyzabc')])
  assert found[0] == found[1] != short.score([sample('abcabd')])[0]


def test_what_says_nothing_has_the_missing_score(folder):
  rows = [sample(' '), sample('a', truncated=True), sample('a')]
  found = classifier(model=folder, missing=-9.0).score(rows)
  assert found[:2].tolist() == [-9.0, -9.0] and found[2] != -9.0


def test_its_files_say_what_it_is(folder):
  values = json.loads((Path(folder) / 'config.json').read_text())
  assert values['architectures'] == ['LlamaForSequenceClassification']
  assert values['id2label'] == {'0': 'LABEL_0', '1': 'LABEL_1'}
  # Padding is none of the tokens that end a completion: tiny pads with <eos> itself.
  tokenizer = pretrained.classifier(folder).tokenizer
  assert tokenizer.pad_token == '<unk>'
  assert values['pad_token_id'] == tokenizer.pad_token_id != tokenizer.eos_token_id
  assert not (Path(folder) / 'generation_config.json').exists()


def test_a_model_is_one_or_the_other(folder):
  with pytest.raises(InputError, match=r"no words.*dict\(name='classifier'"):
    pretrained.load(folder)
  with pytest.raises(InputError, match=r'no tensor score\.weight'):
    classifier(model='tiny')
  with pytest.raises(InputError, match=r'label=2; .* has 2 scores'):
    classifier(model=folder, label=2)


def test_a_tokenizer_with_nothing_else_to_pad_with():
  tokenizer = pretrained.load('tiny').tokenizer
  tokenizer.unk_token = None
  with pytest.raises(InputError, match='no token to pad with'):
    config_json.padded(tokenizer)


@pytest.fixture(scope='module')
def reward_run(tmp_path_factory):
  path = tmp_path_factory.mktemp('rm') / 'run'
  train.main(runs.config('bradley_terry'), str(path))
  return path


@pytest.fixture(scope='module')
def exported(reward_run, tmp_path_factory):
  path = tmp_path_factory.mktemp('out') / 'model'
  script('export').main([str(reward_run), str(path)])
  return path


def test_a_run_of_a_reward_model_comes_back_bit_for_bit(reward_run, exported):
  found, trained = pretrained.classifier(str(exported)), restored.reward(reward_run)
  jax.tree.map(np.testing.assert_array_equal, found.params(), dict(trained.params))
  assert abs(np.asarray(trained.params['scores'])).max() > 0


def test_adapters_alone_are_no_reward_model(reward_run, tmp_path):
  with pytest.raises(InputError, match='trained a reward model; leave out --adapters'):
    script('export').main([str(reward_run), str(tmp_path / 'm'), '--adapters'])


@pytest.mark.parametrize('method', ['prm', 'odin'])
def test_what_is_more_than_a_score_is_refused(method, tmp_path):
  train.main(runs.config(method, steps=1), str(tmp_path / 'run'))
  with pytest.raises(InputError, match=f'trained {method}, which is more than one'):
    script('export').main([str(tmp_path / 'run'), str(tmp_path / 'model')])


@pytest.mark.parity
class TestLive:
  @pytest.fixture(autouse=True)
  def torch(self):
    return pytest.importorskip('torch')

  @pytest.mark.parametrize('name', FAMILIES)
  def test_theirs_has_their_scores(self, torch, tmp_path, name):
    """Of rows of several lengths, padded; and ours, saved again, has them too."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    tokenizer = config_json.padded(pretrained.load('tiny').tokenizer)
    options = oracle.CONFIGS[name] | {'vocab_size': 104, 'num_labels': 3}
    options['pad_token_id'] = tokenizer.pad_token_id
    torch.manual_seed(0)
    config = AutoConfig.for_model(**options)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / 'theirs')
    tokenizer.save_pretrained(tmp_path / 'theirs')
    found = pretrained.classifier(str(tmp_path / 'theirs'))
    out = dict(tokenizer=found.tokenizer)
    weights.save(tmp_path / 'ours', found.fields, found.params(), **out)
    # As transformers reads the folder: for Qwen's it splits text in its own way.
    theirs = scores(torch, model, found.tokenizer)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / 'ours')
    np.testing.assert_allclose(scores(torch, again, found.tokenizer), theirs, atol=1e-6)
    rewards = classifier(model=str(tmp_path / 'theirs'), label=1, max_length=16)
    got = rewards.score([*map(sample, TEXTS)])
    np.testing.assert_allclose(got, theirs[:, 1], atol=1e-4)
    assert np.ptp(theirs[:, 1]) > 1e-3


def scores(torch, model, tokenizer):
  rows = tokenizer([*map(said, TEXTS)], padding=True, return_tensors='pt')
  with torch.no_grad():
    return model(rows.input_ids, attention_mask=rows.attention_mask).logits.numpy()
