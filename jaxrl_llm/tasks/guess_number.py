"""Guess a number: after each wrong guess the policy hears 'higher' or 'lower'."""

import random
from typing import NamedTuple

from jaxrl_llm.rewards import extract, numbers
from jaxrl_llm.tasks import records
from jaxrl_llm.tasks.records import Env, Record, Task
from jaxrl_llm.types import InputError


class Game(NamedTuple):
  """A dialogue so far."""

  secret: int
  distance: float = 1.0  # Of the last guess, as a share of the range; 1 for no number.
  guesses: int = 0


def guess_number(
  *, low: int = 1, high: int = 3, question: str = '{low}-{high}', seed: int = 0
) -> Task:
  """The first number of what was said is the guess; config.source.turns how many.

  The score is 1 for the number itself. Half of the closeness of the last guess is paid
  otherwise, so that a model that writes no numbers yet hears what a number is worth.
  The question is the same for every number, so that nothing can be learned by heart,
  and the test is every number once.
  """
  if not low < high:
    raise InputError(f'guess_number: low={low}, high={high}; give low below high.')

  def record(secret: int) -> Record:
    asked = records.chat(question.format(low=low, high=high))
    return Record(secret - low, asked, str(secret), {})

  def train(index: int) -> Record:
    rng = random.Random(f'{seed}/train/{int(index)}')
    return record(rng.randint(low, high))

  def step(game: Game, said: str) -> tuple[Game, str | None]:
    guess = numbers.parse(extract.first_number(said))
    if guess is None or not low <= guess <= high:
      return Game(game.secret, 1.0, game.guesses + 1), '?'
    away = game.secret - guess
    game = Game(game.secret, float(abs(away) / (high - low)), game.guesses + 1)
    return game, None if not away else 'higher' if away > 0 else 'lower'

  def score(game: Game) -> tuple[float, dict[str, float]]:
    right = game.distance == 0
    total = 1.0 if right else (1.0 - game.distance) / 2
    return total, {'right': float(right), 'guesses': float(game.guesses)}

  env = Env(lambda r: (r.messages, Game(int(r.answer))), step, score)
  test = tuple(map(record, range(low, high + 1)))
  last = lambda text, r: float(numbers.equal(r.answer, extract.last_number(text)))
  return Task('guess_number', train, test, last, env=env)
