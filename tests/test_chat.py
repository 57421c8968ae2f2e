"""Conversations as ids: what is trained, where a prompt ends, BOS and stop tokens."""

import random

import pytest
from tokenizers import processors

from jaxrl_llm.data import chat
from jaxrl_llm.models import pretrained
from jaxrl_llm.types import InputError

# Templates in the shapes of the families', with the tiny tokenizer's one-letter tokens
# and <reserved_*> for their special tokens.
BOS, START, END = '<reserved_0>', '<reserved_1>', '<reserved_2>'
_TURN = "{{ '" + START + "' + m['role'] + '\\n' + m['content'] + '" + END + "\\n' }}"
_OPEN = "{% if add_generation_prompt %}{{ '" + START + "assistant\\n' }}{% endif %}"
TEMPLATES = {
  # ChatML (SmolLM2, Qwen2): a newline after the stop token, which is not trained.
  'chatml': '{% for m in messages %}' + _TURN + '{% endfor %}' + _OPEN,
  # Llama 3: BOS in the template, content trimmed, no newline after the stop token.
  'llama3': '{{ bos_token }}{% for m in messages %}{{ "'
  + START
  + '" + m["role"] + "\n\n" + m["content"] | trim + "'
  + END
  + '" }}{% endfor %}{% if add_generation_prompt %}{{ "'
  + START
  + 'assistant\n\n" }}{% endif %}',
  # Mistral, Llama 2: no words before an answer, EOS after it.
  'mistral': '{{ bos_token }}{% for m in messages %}{% if m["role"] == "assistant" %}'
  '{{ " " + m["content"] + eos_token }}{% else %}{{ "[I] " + m["content"] + " [/I]" }}'
  '{% endif %}{% endfor %}',
  # Gemma: the assistant is called model.
  'gemma': '{{ bos_token }}{% for m in messages %}{{ "'
  + START
  + '" + ("model" if m["role"] == "assistant" else m["role"]) + "\n" + m["content"] + "'
  + END
  + '\n" }}{% endfor %}{% if add_generation_prompt %}{{ "'
  + START
  + 'model\n" }}{% endif %}',
  # Qwen3 without thinking: an empty thought is part of the answer.
  'qwen3': '{% for m in messages %}{{ "'
  + START
  + '" + m["role"] + "\n" + ("<t></t>" if m["role"] == "assistant" else "") + '
  + 'm["content"] + "'
  + END
  + '\n" }}{% endfor %}'
  + _OPEN,
  # A bare one, which closes no turn: the stop token is ours.
  'open': "{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}",
}


def tokenizer(name):
  found = pretrained.load('tiny').tokenizer
  found.bos_token = BOS
  found.chat_template = TEMPLATES[name]
  return found


def stops(found):
  return tuple(found.convert_tokens_to_ids([END, found.eos_token]))


def coded(name, before, after):
  found = tokenizer(name)
  order = stops(found) if name != 'open' else stops(found)[1:]
  code = chat.coder(found, order)
  prompt, completion = code.prompt(before), code.completion(before, after)
  shown = ''.join(
    token if trained else '·' * len(token)
    for token, trained in zip(
      found.convert_ids_to_tokens(completion.tokens), completion.mask
    )
  )
  return found, prompt, completion, shown


def turn(role, content):
  return {'role': role, 'content': content}


TALK = [
  turn('user', 'b'),
  turn('assistant', 'cd'),
  turn('user', 'e'),
  turn('assistant', 'f'),
]
# By hand: what an assistant chose, with its stop token; · for each other character.
GOLDEN = {
  'chatml': f'cd{END}'
  + '·' * len(f'\n{START}user\ne{END}\n{START}assistant\n')
  + f'f{END}',
  'llama3': f'cd{END}'
  + '·' * len(f'{START}user\n\ne{END}{START}assistant\n\n')
  + f'f{END}',
  'mistral': ' cd<eos>' + '·' * len('[I] e [/I]') + ' f<eos>',
  'gemma': f'cd{END}' + '·' * len(f'\n{START}user\ne{END}\n{START}model\n') + f'f{END}',
  'qwen3': f'<t></t>cd{END}'
  + '·' * len(f'\n{START}user\ne{END}\n{START}assistant\n')
  + f'<t></t>f{END}',
}


@pytest.mark.parametrize('name', GOLDEN)
@pytest.mark.parametrize('system', [False, True])
def test_assistants_words_and_their_stop_tokens_are_trained(name, system):
  """AT-39, AT-41: several turns, with and without a system message."""
  before = [turn('system', 'a')] * system + TALK[:1]
  if name == 'qwen3':  # Its generation prompt must lead up to the thought.
    before = TALK[:1]
  found, prompt, completion, shown = coded(name, before, TALK[1:])
  assert shown == GOLDEN[name]
  assert completion.tokens[-1] in stops(found) and completion.mask[-1] == 1
  whole = prompt + completion.tokens
  bos = found.convert_tokens_to_ids(BOS)
  assert whole.count(bos) == ('bos_token' in TEMPLATES[name])
  # All of it is what the template says of the whole conversation.
  text = found.apply_chat_template([*before, *TALK[1:]], tokenize=False)
  assert found.decode(whole).rstrip('\n') == text.rstrip('\n')


def test_a_template_that_closes_no_turn_gets_the_stop_token():
  found, _, completion, _ = coded('open', TALK[:1], 'cd')
  assert completion == ([*found.encode('cd'), found.eos_token_id], [1, 1, 1])


@pytest.mark.parametrize('name', ['chatml', 'llama3', 'gemma'])
def test_random_conversations(name):
  """AT-45: mask and ids of equal length; what is trained is what assistants said."""
  rng = random.Random(0)
  words = lambda: ''.join(rng.choices('abc XYZ.', k=rng.randint(1, 9))).strip() or 'a'
  for _ in range(50):
    pairs = [(turn('user', words()), turn('assistant', words())) for _ in range(3)]
    talk = [m for pair in pairs for m in pair][: 2 * rng.randint(1, 3)]
    found, _, completion, _ = coded(name, talk[:1], talk[1:])
    assert len(completion.tokens) == len(completion.mask)
    trained = [t for t, m in zip(completion.tokens, completion.mask) if m]
    said = ''.join(m['content'] + END for m in talk if m['role'] == 'assistant')
    assert found.decode(trained) == said


def test_the_boundary_lies_between_ids():
  """AT-42: 'ab' could be one token; prompt 'a' and completion 'b' stay two."""

  class Merging:
    bos_token_id, eos_token_id, chat_template = None, 9, None

    def encode(self, text, add_special_tokens=True):
      vocab = {'ab': [3], 'a': [1], 'b': [2]}
      return vocab[text]

  code = chat.coder(Merging(), (9,))
  assert code.prompt('a') == [1]
  assert code.completion('a', 'b') == ([2, 9], [1, 1])


def test_plain_text_has_one_bos_and_no_end():
  found = pretrained.load('tiny').tokenizer
  found.bos_token = BOS
  bos = found.convert_tokens_to_ids(BOS)
  found._tokenizer.post_processor = processors.TemplateProcessing(
    single=f'{BOS} $A <eos>', special_tokens=[(BOS, bos), ('<eos>', 96)]
  )
  a = found.convert_tokens_to_ids('a')
  assert chat.plain(found, 'a') == [bos, a]
  assert chat.plain(found, BOS + 'a') == [bos, a]
  assert chat.plain(found, '') == [bos]


def test_text_from_nothing_begins_after_an_end():
  assert chat.plain(pretrained.load('tiny').tokenizer, '') == [96]


def test_smollm2():
  """The real tokenizer: the template's own system message, one stop token a turn."""
  found = pretrained.load('smollm2').tokenizer
  code = chat.coder(found, pretrained.stop_ids(found))
  prompt, completion = code.prompt(TALK[:1]), code.completion(TALK[:1], TALK[1:])
  text = found.apply_chat_template(TALK, tokenize=False)
  assert found.decode(prompt + completion.tokens) + '\n' == text
  trained = [t for t, m in zip(completion.tokens, completion.mask) if m]
  assert found.decode(trained) == 'cd<|im_end|>f<|im_end|>'


REWRITING = (
  '{% for m in messages %}{{ m["content"] if loop.last else m["content"][:1] }}{{ "'
  + END
  + '" }}{% endfor %}'
)


@pytest.mark.parametrize(
  ('template', 'after', 'words'),
  [
    (TEMPLATES['chatml'], [turn('user', 'x')], 'does not end with an assistant'),
    (TEMPLATES['chatml'], [turn('assistant', '')], 'assistant message is empty'),
    (TEMPLATES['chatml'], [], 'does not end with an assistant'),
    (REWRITING, TALK[1:], 'rewrites what came before message 0'),
    ('{{ raise_exception("no system") }}', 'cd', 'refuses the conversation: no system'),
    (None, 'cd', 'no chat template'),
  ],
)
def test_conversations_that_are_refused(template, after, words):
  found = pretrained.load('tiny').tokenizer
  found.chat_template = template
  code = chat.coder(found, stops(found))
  with pytest.raises(InputError, match=words):
    code.completion([turn('user', 'bb')], after)
