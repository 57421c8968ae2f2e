"""Conversations as ids: what is trained, where a prompt ends, BOS and stop tokens."""

import itertools
import random

import pytest
import tokenizers
from tokenizers import models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from jaxrl_llm.data import chat, examples
from jaxrl_llm.models import pretrained
from jaxrl_llm.types import InputError

# ---- Templates -----------------------------------------------------------------------
# Small ones, in the shapes of the families': the token that ends a sequence, and how a
# conversation is worded.

SPECIAL = ('<s>', '</s>', '<|im_end|>', '<|eot_id|>', '<end_of_turn>', '<|end|>')
TEMPLATES = {
  # Qwen2: a newline after the stop token; what a tool says is in a user's turn.
  'chatml': (
    '<|im_end|>',
    """{%- for m in messages %}
    {%- if m.role == 'tool' %}
      {{- '<|im_start|>user\n<tool>' + m.content + '</tool>' }}
    {%- elif m.tool_calls %}
      {{- '<|im_start|>assistant\n<call>' + (m.tool_calls | tojson) + '</call>' }}
    {%- else %}
      {{- '<|im_start|>' + m.role + '\n' + m.content }}
    {%- endif %}
    {{- '<|im_end|>\n' }}
    {%- endfor %}
    {%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}""",
  ),
  # SmolLM2: words of its own where there is no system message; no tools.
  'smollm2': (
    '<|im_end|>',
    """{%- for m in messages %}
    {%- if loop.first and m.role != 'system' %}
      {{- '<|im_start|>system\nz<|im_end|>\n' }}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
    {%- endfor %}
    {%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}""",
  ),
  # Qwen3: the last answer has a thought, if an empty one; answers to earlier questions
  # lose theirs.
  'qwen3': (
    '<|im_end|>',
    """{%- set asked = namespace(last=0) %}
    {%- for m in messages %}
      {%- if m.role == 'user' %}{% set asked.last = loop.index0 %}{% endif %}
    {%- endfor %}
    {%- for m in messages %}
    {%- set parts = (m.content or '').split('</think>') %}
    {%- set thought = parts[0].split('<think>')[-1] if parts[1:] else '' %}
    {%- if m.role == 'tool' %}
      {{- '<|im_start|>user\n<tool>' + m.content + '</tool>' }}
    {%- else %}
      {{- '<|im_start|>' + m.role + '\n' }}
      {%- if m.role == 'assistant' and loop.index0 > asked.last %}
        {%- if loop.last or thought %}
          {{- '<think>\n' + thought + '\n</think>\n\n' }}
        {%- endif %}
      {%- endif %}
      {{- parts[-1] }}
      {%- if m.tool_calls %}{{ '<call>' + (m.tool_calls | tojson) }}{% endif %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
    {%- endfor %}
    {%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}""",
  ),
  # Llama 2: BOS before each question, no words that ask for an answer.
  'llama2': (
    '</s>',
    """{%- for m in messages %}
    {%- if m.role == 'user' %}
      {{- bos_token + '[INST] ' }}
      {%- if loop.index0 == 1 %}
        {{- '<<SYS>>' + messages[0].content + '<</SYS>> ' }}
      {%- endif %}
      {{- m.content + ' [/INST]' }}
    {%- elif m.role == 'assistant' %}
      {{- ' ' + m.content + ' ' + eos_token }}
    {%- elif loop.index0 %}
      {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- endfor -%}""",
  ),
  # Llama 3: content trimmed, no newline after the stop token.
  'llama3': (
    '<|eot_id|>',
    """{{- bos_token }}
    {%- for m in messages %}
    {{- '<h>' + ('ipython' if m.role == 'tool' else m.role) + '</h>\n\n' }}
    {{- (m.tool_calls[0].function | tojson) if m.tool_calls else (m.content | trim) }}
    {{- '<|eot_id|>' }}
    {%- endfor %}
    {%- if add_generation_prompt %}{{ '<h>assistant</h>\n\n' }}{% endif -%}""",
  ),
  # Mistral 7B v0.3: the system message stands in the last question, while it is last.
  'mistral': (
    '</s>',
    """{{- bos_token }}
    {%- for m in messages %}
    {%- if m.role == 'user' %}
      {{- '[INST] ' }}
      {%- if loop.last and messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
      {%- endif %}
      {{- m.content + '[/INST]' }}
    {%- elif m.role == 'tool' %}
      {{- '[RESULT] ' + m.content + '[/RESULT]' }}
    {%- elif m.role == 'assistant' %}
      {{- ('[CALLS] ' + (m.tool_calls | tojson)) if m.tool_calls else ' ' + m.content }}
      {{- eos_token }}
    {%- endif %}
    {%- endfor -%}""",
  ),
  # Gemma: the assistant is called model; no system message, no tools.
  'gemma': (
    '<eos>',
    """{{- bos_token }}
    {%- for m in messages %}
    {%- if m.role not in ('user', 'assistant') or m.tool_calls %}
      {{- raise_exception('no such role') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\n' }}
    {{- m.content | trim + '<end_of_turn>\n' }}
    {%- endfor %}
    {%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif -%}""",
  ),
  # Phi-3: where nobody is asked, the sequence ends after the turn has.
  'phi3': (
    '<eos>',
    """{%- for m in messages %}
    {{- '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}
    {%- endfor %}
    {{- '<|assistant|>\n' if add_generation_prompt else eos_token }}""",
  ),
  # Zephyr: every turn ends in EOS.
  'zephyr': (
    '</s>',
    """{%- for m in messages %}
    {{- '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}
    {%- endfor %}
    {%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif -%}""",
  ),
  # DeepSeek: one line; every thought is left out, that of the last answer too.
  'deepseek': (
    '</s>',
    """{{- bos_token }}
    {%- for m in messages %}
    {%- if m.role == 'system' %}{{ m.content }}{% endif %}
    {%- if m.role == 'user' %}{{ '<User>' + m.content }}{% endif %}
    {%- if m.role == 'tool' %}{{ '<tool>' + m.content + '</tool>' }}{% endif %}
    {%- if m.role == 'assistant' %}
      {%- if messages[loop.index0 - 1].role != 'tool' %}{{ '<Assistant>' }}{% endif %}
      {%- if m.tool_calls %}
        {{- '<call>' + (m.tool_calls | tojson) }}
      {%- else %}
        {{- m.content.split('</think>')[-1] }}
      {%- endif %}
      {{- eos_token }}
    {%- endif %}
    {%- endfor %}
    {%- if add_generation_prompt and messages[-1].role != 'tool' %}
      {{- '<Assistant>' }}
    {%- endif -%}""",
  ),
  # A bare one, which closes no turn: the stop token is ours.
  'open': ('<eos>', "{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}"),
}


def tokenizer(name):
  """Letters as tokens, and SPECIAL."""
  found = pretrained.load('tiny').tokenizer
  found.add_special_tokens({'additional_special_tokens': list(SPECIAL)})
  found.bos_token = '<s>'
  found.eos_token, found.chat_template = TEMPLATES[name]
  return found


def coded(name, before, after):
  """The tokenizer, its stop tokens, and ids of the prompt and the completion."""
  found = tokenizer(name)
  stops = pretrained.stop_ids(found)
  code = chat.coder(found, stops)
  return found, stops, code.prompt(before), code.completion(before, after)


def shown(found, prompt, completion):
  """prompt^completion, with «what is trained» marked."""
  text = ''.join(found.convert_ids_to_tokens(prompt)) + '^'
  pieces = zip(found.convert_ids_to_tokens(completion.tokens), completion.mask)
  for trained, piece in itertools.groupby(pieces, lambda x: x[1]):
    words = ''.join(token for token, _ in piece)
    text += f'«{words}»' if trained else words
  return text


# ---- Masks ---------------------------------------------------------------------------


def turn(role, content):
  return {'role': role, 'content': content}


CALLS = {'role': 'assistant', 'tool_calls': [{'function': {'name': 'f'}}]}
# (prompt, completion).
TALKS = {
  'system': (
    [turn('system', 'a'), turn('user', 'b')],
    [turn('assistant', 'cd')],
  ),
  'turns': (
    [turn('user', 'b')],
    [turn('assistant', 'cd'), turn('user', 'e'), turn('assistant', 'f')],
  ),
  'tool': (
    [turn('user', 'b')],
    [CALLS, turn('tool', 'r'), turn('assistant', 'f')],
  ),
  'thinking': (
    [
      turn('user', 'b'),
      turn('assistant', '<think>s</think>cd'),
      turn('user', 'e'),
    ],
    [turn('assistant', '<think>t</think>f')],
  ),
}
S, E, F = '<|im_start|>', '<|im_end|>', '{"name": "f"}'
REFUSED = 'refuses the conversation'
REWRITES = 'rewrites what came before message'
# By hand. A line that is none of a conversation says why it is refused.
GOLDEN = {
  'chatml': {
    'system': f'{S}system\na{E}\n{S}user\nb{E}\n{S}assistant\n^«cd{E}»',
    'turns': f'{S}user\nb{E}\n{S}assistant\n^«cd{E}»\n{S}user\ne{E}\n'
    f'{S}assistant\n«f{E}»',
    'tool': f'{S}user\nb{E}\n{S}assistant\n^«<call>[{{"function": {F}}}]</call>{E}»\n'
    f'{S}user\n<tool>r</tool>{E}\n{S}assistant\n«f{E}»',
    'thinking': f'{S}user\nb{E}\n{S}assistant\n<think>s</think>cd{E}\n{S}user\ne{E}\n'
    f'{S}assistant\n^«<think>t</think>f{E}»',
  },
  'smollm2': {
    'system': f'{S}system\na{E}\n{S}user\nb{E}\n{S}assistant\n^«cd{E}»',
    'turns': f'{S}system\nz{E}\n{S}user\nb{E}\n{S}assistant\n^«cd{E}»\n{S}user\ne{E}\n'
    f'{S}assistant\n«f{E}»',
    'tool': REFUSED,
    'thinking': f'{S}system\nz{E}\n{S}user\nb{E}\n{S}assistant\n<think>s</think>cd{E}\n'
    f'{S}user\ne{E}\n{S}assistant\n^«<think>t</think>f{E}»',
  },
  'qwen3': {
    'system': f'{S}system\na{E}\n{S}user\nb{E}\n{S}assistant\n'
    f'^«<think>\n\n</think>\n\ncd{E}»',
    'turns': REWRITES,
    'tool': REWRITES,
    'thinking': f'{S}user\nb{E}\n{S}assistant\ncd{E}\n{S}user\ne{E}\n{S}assistant\n'
    f'^«<think>\nt\n</think>\n\nf{E}»',
  },
  'llama2': {
    'system': '<s>[INST] <<SYS>>a<</SYS>> b [/INST]^« cd </s>»',
    'turns': '<s>[INST] b [/INST]^« cd </s>»<s>[INST] e [/INST]« f </s>»',
    'tool': REFUSED,
    'thinking': '<s>[INST] b [/INST] <think>s</think>cd </s><s>[INST] e [/INST]'
    '^« <think>t</think>f </s>»',
  },
  'llama3': {
    'system': '<s><h>system</h>\n\na<|eot_id|><h>user</h>\n\nb<|eot_id|>'
    '<h>assistant</h>\n\n^«cd<|eot_id|>»',
    'turns': '<s><h>user</h>\n\nb<|eot_id|><h>assistant</h>\n\n^«cd<|eot_id|>»'
    '<h>user</h>\n\ne<|eot_id|><h>assistant</h>\n\n«f<|eot_id|>»',
    'tool': f'<s><h>user</h>\n\nb<|eot_id|><h>assistant</h>\n\n^«{F}<|eot_id|>»'
    '<h>ipython</h>\n\nr<|eot_id|><h>assistant</h>\n\n«f<|eot_id|>»',
    'thinking': '<s><h>user</h>\n\nb<|eot_id|><h>assistant</h>\n\n<think>s</think>cd'
    '<|eot_id|><h>user</h>\n\ne<|eot_id|><h>assistant</h>\n\n'
    '^«<think>t</think>f<|eot_id|>»',
  },
  'mistral': {
    'system': REWRITES,
    'turns': '<s>[INST] b[/INST]^« cd</s>»[INST] e[/INST]« f</s>»',
    'tool': f'<s>[INST] b[/INST]^«[CALLS] [{{"function": {F}}}]</s>»'
    '[RESULT] r[/RESULT]« f</s>»',
    'thinking': '<s>[INST] b[/INST] <think>s</think>cd</s>[INST] e[/INST]'
    '^« <think>t</think>f</s>»',
  },
  'gemma': {
    'system': REFUSED,
    'turns': '<s><start_of_turn>user\nb<end_of_turn>\n<start_of_turn>model\n'
    '^«cd<end_of_turn>»\n<start_of_turn>user\ne<end_of_turn>\n<start_of_turn>model\n'
    '«f<end_of_turn>»',
    'tool': REFUSED,
    'thinking': '<s><start_of_turn>user\nb<end_of_turn>\n<start_of_turn>model\n'
    '<think>s</think>cd<end_of_turn>\n<start_of_turn>user\ne<end_of_turn>\n'
    '<start_of_turn>model\n^«<think>t</think>f<end_of_turn>»',
  },
  'phi3': {
    'system': '<|system|>\na<|end|>\n<|user|>\nb<|end|>\n<|assistant|>\n^«cd<|end|>»',
    'turns': '<|user|>\nb<|end|>\n<|assistant|>\n^«cd<|end|>»\n<|user|>\ne<|end|>\n'
    '<|assistant|>\n«f<|end|>»',
    'tool': REFUSED,
    'thinking': '<|user|>\nb<|end|>\n<|assistant|>\n<think>s</think>cd<|end|>\n'
    '<|user|>\ne<|end|>\n<|assistant|>\n^«<think>t</think>f<|end|>»',
  },
  'zephyr': {
    'system': '<|system|>\na</s>\n<|user|>\nb</s>\n<|assistant|>\n^«cd</s>»',
    'turns': '<|user|>\nb</s>\n<|assistant|>\n^«cd</s>»\n<|user|>\ne</s>\n'
    '<|assistant|>\n«f</s>»',
    'tool': REFUSED,
    'thinking': '<|user|>\nb</s>\n<|assistant|>\n<think>s</think>cd</s>\n'
    '<|user|>\ne</s>\n<|assistant|>\n^«<think>t</think>f</s>»',
  },
  'deepseek': {
    'system': '<s>a<User>b<Assistant>^«cd</s>»',
    'turns': '<s><User>b<Assistant>^«cd</s>»<User>e<Assistant>«f</s>»',
    'tool': f'<s><User>b<Assistant>^«<call>[{{"function": {F}}}]</s>»<tool>r</tool>'
    '«f</s>»',
    'thinking': 'leaves out',
  },
  'open': {
    'system': 'a\nb\n^«cd<eos>»',
    'turns': 'b\n^«cd<eos>»\ne\n«f<eos>»',
    'tool': REFUSED,
    'thinking': 'b\n<think>s</think>cd\ne\n^«<think>t</think>f<eos>»',
  },
}


@pytest.mark.parametrize('talk', TALKS)
@pytest.mark.parametrize('name', TEMPLATES)
def test_masks(name, talk):
  """AT-39, AT-41: an assistant's words up to and with the stop token, nothing else."""
  before, after = TALKS[talk]
  want = GOLDEN[name][talk]
  if '^' not in want:
    with pytest.raises(InputError, match=want):
      coded(name, before, after)
    return
  found, stops, prompt, completion = coded(name, before, after)
  assert shown(found, prompt, completion) == want
  # A sampler stops where each trained run ends, and no sooner.
  last = [*completion.mask[1:], 0]
  for token, trained, more in zip(completion.tokens, completion.mask, last):
    if trained:
      assert (token in stops) == (not more)
  # All of it is what the template says of the whole conversation, BOS included.
  if name != 'open':
    text = found.apply_chat_template([*before, *after], tokenize=False)
    assert text.startswith(found.decode([*prompt, *completion.tokens]))


def test_every_template_has_its_masks():
  assert {k: [*v] for k, v in GOLDEN.items()} == {k: [*TALKS] for k in TEMPLATES}


@pytest.mark.parametrize('name', ['chatml', 'llama3', 'mistral', 'deepseek'])
def test_random_tool_transcripts(name):
  """AT-45: assistants say X, Y and Z, the others digits, in any order and number."""
  rng = random.Random(0)
  words = lambda letters: ''.join(rng.choices(letters, k=rng.randint(1, 4)))
  for _ in range(30):
    after = []
    for _ in range(rng.randint(0, 4)):
      calls = rng.random() < 0.6
      after += [CALLS if calls else turn('assistant', words('XYZ'))]
      after += [
        turn('tool' if calls else 'user', words('0123456789'))
        for _ in range(rng.randint(1, 3) if calls else 1)
      ]
    after += [turn('assistant', words('XYZ'))]
    found, stops, _, completion = coded(name, [turn('user', '7')], after)
    tokens, mask = completion
    assert len(tokens) == len(mask)
    chosen = [t for t, m in zip(tokens, mask) if m]
    trained = found.decode(chosen)
    given = found.decode([t for t, m in zip(tokens, mask) if not m])
    told = lambda role: ''.join(
      m.get('content', '') for m in after if m['role'] in role
    )
    only = lambda text, letters: ''.join(c for c in text if c in letters)
    assert only(trained, 'XYZ') == told(['assistant'])
    assert only(given, '0123456789') == told(['tool', 'user'])
    assert not only(given, 'XYZ') and not only(trained, '0123456789')
    turns = sum(m['role'] == 'assistant' for m in after)
    assert sum(t in stops for t in chosen) == turns
    assert trained.count('"name"') == after.count(CALLS)
    # In a batch the loss has its mask and attention its length, cut at the same place.
    room = rng.randint(60, 300)
    code = chat.coder(found, stops)
    encode = examples.Encoder(code, max_prompt=64, max_length=room)
    batch = encode([examples.Example([turn('user', '7')], [after], [1.0])]).batch
    assert batch.mask.shape == batch.completions.shape == (1, 1, room)
    assert batch.length.item() == min(len(tokens), room)
    padded = [*mask, *[0] * room][:room]
    assert batch.mask[0, 0].tolist() == padded


SAYS_NOTHING = '{% for m in messages if m.role == "user" %}{{ m.content }}{% endfor %}'
# Says what was said, and nothing of a tool's call.
CALLS_NOTHING = '{% for m in messages %}{{ m.content or "" }}<|im_end|>\n{% endfor %}'
REWRITING = (
  '{% for m in messages %}{{ m["content"] if loop.last else m["content"][:1] }}'
  '<|im_end|>{% endfor %}'
)


@pytest.mark.parametrize(
  ('template', 'after', 'words'),
  [
    (TEMPLATES['chatml'][1], [turn('user', 'x')], 'does not end with an assistant'),
    (TEMPLATES['chatml'][1], [turn('assistant', '')], 'assistant message is empty'),
    (TEMPLATES['chatml'][1], [turn('assistant', ' ')], 'assistant message is empty'),
    (TEMPLATES['chatml'][1], [], 'does not end with an assistant'),
    (SAYS_NOTHING, 'cd', 'leaves out'),
    (CALLS_NOTHING, TALKS['tool'][1], "does not show the tool calls .* call of 'f'"),
    (CALLS_NOTHING, [CALLS | {'content': 'well'}], 'does not show the tool calls'),
    (CALLS_NOTHING, [CALLS | {'tool_calls': ['f']}], 'leaves out'),
    (CALLS_NOTHING, 'c <|im_end|> d', r'contains the stop token .<\|im_end\|>.'),
    (REWRITING, TALKS['turns'][1], 'rewrites what came before message 0'),
    ('{{ raise_exception("no system") }}', 'cd', 'refuses the conversation: no system'),
    (None, 'cd', 'no chat template'),
  ],
)
def test_conversations_that_are_refused(template, after, words):
  """AT-41: among them those of which a mask would be empty."""
  found = tokenizer('chatml')
  code = chat.coder(found, pretrained.stop_ids(found))
  found.chat_template = template
  with pytest.raises(InputError, match=words):
    code.completion([turn('user', 'bb')], after)


def test_smollm2():
  """The real tokenizer: the template's own system message, one stop token a turn."""
  found = pretrained.load('smollm2').tokenizer
  code = chat.coder(found, pretrained.stop_ids(found))
  before, after = TALKS['turns']
  prompt, completion = code.prompt(before), code.completion(before, after)
  text = found.apply_chat_template([*before, *after], tokenize=False)
  assert found.decode(prompt + completion.tokens) + '\n' == text
  trained = [t for t, m in zip(completion.tokens, completion.mask) if m]
  assert found.decode(trained) == 'cd<|im_end|>f<|im_end|>'


def test_a_turn_may_end_in_another_token_than_the_usual():
  """Llama 3.1 ends calls of its own tools with <|eom_id|>, for the tool to answer."""
  found = tokenizer('llama3')
  found.add_special_tokens({'additional_special_tokens': ['<|eom_id|>']})
  call = "{% set end = '<|eom_id|>' if m.tool_calls else '<|eot_id|>' %}"
  found.chat_template = (
    '{% for m in messages %}' + call + '{{ m.role[0] + m.content + end }}{% endfor %}'
  )
  stops = pretrained.stop_ids(found)
  calls = turn('assistant', 'f') | {'tool_calls': [{'name': 'f'}]}
  after = [calls, turn('tool', 'r'), turn('assistant', 'cd')]
  ids = chat.coder(found, stops).completion([turn('user', 'b')], after)
  assert shown(found, [], ids) == '^«af<|eom_id|>»tr<|eot_id|>«acd<|eot_id|>»'


def test_a_prompt_that_an_assistant_ends_is_refused():
  """Its turn would be closed, and another one begun that asks nothing."""
  found = tokenizer('chatml')
  code = chat.coder(found, pretrained.stop_ids(found))
  with pytest.raises(InputError, match='the prompt ends with an assistant message'):
    code.prompt([turn('user', 'b'), turn('assistant', 'c')])


# ---- Boundaries ----------------------------------------------------------------------


def subwords(vocab, merges, normalizer=None):
  """A tokenizer of letters that merges some of them."""
  vocab = ['<unk>', '<s>', '</s>', *vocab, *(a + b for a, b in merges)]
  model = models.BPE({t: i for i, t in enumerate(vocab)}, merges, unk_token='<unk>')
  built = tokenizers.Tokenizer(model)
  if normalizer is not None:
    built.normalizer = normalizer
  built.add_special_tokens(['<s>', '</s>'])
  return PreTrainedTokenizerFast(
    tokenizer_object=built, bos_token='<s>', eos_token='</s>'
  )


@pytest.mark.parametrize(
  ('prompt', 'completion', 'merged'),
  [('a', 'b', True), ('a ', 'b', True), ('a', ' b', False), ('b', 'a', False)],
)
def test_a_boundary_lies_between_ids(prompt, completion, merged):
  """AT-42: a prompt that ends in a space or within a word has the ids it has alone."""
  found = subwords('ab ', [('a', 'b'), (' ', 'b')])
  code, end = chat.coder(found, (2,)), found.eos_token_id
  tokens, mask = code.completion(prompt, completion)
  assert code.prompt(prompt) == found.encode(prompt)
  assert tokens == [*found.encode(completion), end]
  assert mask == [1] * len(tokens)
  whole = found.encode(prompt + completion)
  assert ([*code.prompt(prompt), *tokens[:-1]] != whole) == merged
  assert chat.merges(found, prompt, completion) == merged


def test_a_text_survives_a_boundary_anywhere():
  """AT-42: no character is lost; tokens merge wherever the cut is within one."""
  found = pretrained.load('smollm2').tokenizer
  code = chat.coder(found, (found.eos_token_id,))
  text = 'The answer is unbelievable:\n\n  42, or so.'
  spans = found(text, return_offsets_mapping=True)['offset_mapping']
  borders = {start for start, _ in spans}
  for at in range(1, len(text)):
    before, after = text[:at], text[at:]
    tokens = [*code.prompt(before), *code.completion(before, after).tokens]
    assert found.decode(tokens[:-1]) == text
    assert chat.merges(found, before, after) == (at not in borders)


def test_no_space_is_made_up_within_a_text():
  """SentencePiece begins a text with a space; what follows a prompt is no beginning."""
  found = subwords(
    [*'bcd[]I/', '▁', '\n'],
    [('▁', 'c'), ('▁', 'b')],
    normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]),
  )
  found.chat_template = (
    "{% for m in messages %}{% if m.role == 'user' %}[I] {{ m.content }} [/I]"
    '{% else %} {{ m.content + eos_token }}{% endif %}{% endfor %}'
  )
  code = chat.coder(found, (2,))
  before, after = TALKS['turns'][0], TALKS['turns'][1][:1]
  text = found.apply_chat_template([*before, *after], tokenize=False)
  whole = found.encode(text, add_special_tokens=False)
  assert [*code.prompt(before), *code.completion(before, after).tokens] == whole
  assert code.completion('b', 'cd').tokens == found.convert_tokens_to_ids(
    [*'cd', '</s>']
  )
  assert not chat.merges(found, 'b', ' cd') and chat.merges(found, 'b ', 'cd')


def phi3_like():
  """SentencePiece as Phi-3 has it: its tokens take the space behind them."""
  found = subwords(
    [*'bcdef', '▁', '\n'],
    [('▁', x) for x in 'bcef'],
    normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]),
  )
  marks = ('<|user|>', '<|assistant|>', '<|end|>')
  marks = [tokenizers.AddedToken(t, rstrip=True, special=True) for t in marks]
  found.add_special_tokens({'additional_special_tokens': marks})
  found.chat_template = TEMPLATES['phi3'][1].replace('else eos_token', "else ''")
  return found


def test_what_follows_a_token_that_takes_the_space_behind_it():
  """As transformers encodes the whole conversation, and as the model says it."""
  found, (before, after) = phi3_like(), TALKS['turns']
  stops = pretrained.stop_ids(found)
  code = chat.coder(found, stops)
  text = found.apply_chat_template([*before, *after], tokenize=False)
  prompt, said = code.prompt(before), code.completion(before, after)
  assert prompt + said.tokens == found.encode(text, add_special_tokens=False)
  want = '<|user|>▁b<|end|><|assistant|>^«▁cd<|end|>»'
  assert (
    shown(found, prompt, said) == want + '<|user|>▁e<|end|><|assistant|>«▁f<|end|>»'
  )
  assert not code.merges(before, after)
  reply = chat.replier(found, stops)('e', found.encode('cd<|end|>'))
  assert found.convert_ids_to_tokens(reply) == [
    *('<|user|>', '▁e', '<|end|>', '<|assistant|>')
  ]
  marked = code.completion(before, chat.Steps(['cd', 'f']))
  assert found.convert_ids_to_tokens(marked.tokens) == ['▁c', 'd', '\n', 'f', '\n']
  assert marked.mask == [0, 0, 1, 0, 1]


def test_a_text_alone_begins_as_the_tokenizer_begins_a_text():
  found = phi3_like()
  said = chat.coder(found, (2,)).completion('', 'cd')
  assert said.tokens == found.encode('cd</s>')


@pytest.mark.parametrize('name', ['llama2', 'open'])
def test_text_that_says_its_own_bos_has_it_once(name):
  """AT-35: as data sets say it that are worded for a model, BOS and EOS included."""
  found = tokenizer(name)
  found.bos_token = '<s>' if name == 'llama2' else None
  code = chat.coder(found, pretrained.stop_ids(found))
  start, end = found.bos_token or found.eos_token, found.eos_token
  words = '[INST] b [/INST] cd' + end
  prompt, said = code.prompt(''), code.completion('', start + words)
  assert shown(found, prompt, said) == f'{start}^«{words}»'
  with pytest.raises(InputError, match='empty'):
    code.completion('', start)


def test_plain_text_has_one_bos_and_no_end():
  found = tokenizer('open')
  bos, end = found.bos_token_id, found.eos_token_id
  found._tokenizer.post_processor = processors.TemplateProcessing(
    single='<s> $A <eos>', special_tokens=[('<s>', bos), ('<eos>', end)]
  )
  a = found.convert_tokens_to_ids('a')
  assert chat.plain(found, 'a') == [bos, a]
  assert chat.plain(found, '<s>a') == [bos, a]
  assert chat.plain(found, '') == [bos]
  assert chat.coder(found, [end]).bos == bos
  assert chat.coder(pretrained.load('tiny').tokenizer, [96]).bos is None


@pytest.mark.parametrize('end', ['</s>', '<|im_end|>'])
def test_a_completion_that_ends_in_a_stop_token_gets_no_other(end):
  words = tokenizer('zephyr')
  code = chat.coder(words, words.convert_tokens_to_ids(['</s>', '<|im_end|>']))
  found, due = code.completion('b', f'y{end}'), ['y', end]
  assert words.convert_ids_to_tokens(found.tokens) == due
  assert found.mask == [1, 1]
  with pytest.raises(InputError, match='the completion is empty'):
    code.completion('b', end)
  with pytest.raises(InputError, match='contains the stop token'):
    code.completion('b', f'y{end}z')


def test_text_from_nothing_begins_after_an_end():
  assert chat.plain(pretrained.load('tiny').tokenizer, '') == [96]


def test_a_template_says_the_same_date_on_every_day():
  """Else a run that is resumed tomorrow has other ids."""
  found = tokenizer('chatml')
  found.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
  assert pretrained.render(found, [turn('user', 'hi')]) == '26 Jul 2024 hi'
