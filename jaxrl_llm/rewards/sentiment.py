"""How positive a completion sounds, by the words that it holds.

VADER (Hutto and Gilbert, 2014), https://github.com/cjhutto/vaderSentiment: a lexicon of
7,500 rated words, and rules for negation, degree, capitals and punctuation.
"""

from jaxrl_llm.rewards.sample import Reward, Sample
from jaxrl_llm.types import InputError


def sentiment() -> Reward:
  """VADER's compound score, from -1 to 1; 0 where no word is in the lexicon.
  Emoji are not read.

  Raises:
    InputError: the package is missing.
  """
  try:
    from vaderSentiment import vaderSentiment
  except ImportError:
    raise InputError(
      "reward sentiment needs a package; run: pip install -e '.[tasks]'"
    ) from None
  analyzer = vaderSentiment.SentimentIntensityAnalyzer()
  analyzer.emojis = {}  # To describe them takes the square of how many there are.

  def reward(sample: Sample) -> float:
    return analyzer.polarity_scores(sample.completion)['compound']

  return reward
