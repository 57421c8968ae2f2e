"""What every metric means. python -m jaxrl_llm.glossary prints it for the README."""

# A name that ends in '/' is a prefix: 'lr/' explains lr/policy, lr/critic and so on.
GLOSSARY: dict[str, str] = {
  'reward': 'Weighted sum of rewards, mean over all completions that were sampled.',
  'reward/': 'Mean over completions of one reward alone, before its weight.',
  'reward_std': 'Standard deviation of the reward within a group, mean over groups.',
  'reward_greedy': "Mean reward of the policy's greedy completions, remax's baseline.",
  'reward_anchor': "Mean reward of the tasks' own answers, taken as completions.",
  'cost': 'Weighted sum of costs, mean over all completions that were sampled.',
  'cost/': 'Mean over completions of one cost alone, before its weight.',
  'feasible': 'Share of completions of which no cost is above 0.',
  'groups_tied': 'Share of groups whose rewards are all equal: they teach nothing.',
  'paired': 'Share of groups of which two completions make a pair to learn from.',
  'groups_hard': 'Share of groups without one right completion.',
  'groups_rescued': 'Share of groups where a hinted completion replaced a failed one.',
  'replayed': 'Groups of this batch that an earlier step sampled.',
  'staleness': 'Steps between the parameters that sampled and those that learn.',
  'lag_k3': 'KL between these two by k3, in nats per token, with source.ahead.',
  'length': 'Mean length of a completion, in tokens, the stop token included.',
  'truncated': 'Share of completions that ended for want of room.',
  'tokens': 'Completion tokens of this step, those thrown away included.',
  'rollouts': 'Completions sampled since the start, those thrown away included.',
  'turns': "The policy's turns in an episode, mean.",
  'episode/': "Mean over episodes of a part of the environment's score.",
  'dropped': 'Groups of this batch left out for a prompt or completion too long.',
  'cut': 'Completions of this batch cut to the room they have.',
  'filled': 'Share of the completion slots of a batch that hold a trained token.',
  'epoch': 'Passes over the data set since the start.',
  'loss': 'What the optimizer minimises; on policy its value is near 0, its slope not.',
  'gain': 'The advantage-weighted part of the objective, which is maximised.',
  'ratio': 'Mean of pi / pi_old, per token, or per completion if the method has it so.',
  'max/ratio': 'Largest pi / pi_old of the step.',
  'clipped': 'Share of tokens or completions whose gradient the clip removes or caps.',
  'kl_ref': 'KL from the policy to the reference by k3, in nats per token.',
  'kl_ref_seq': 'log pi / ref summed over a completion, mean, in nats per completion.',
  'care_bonus': 'Mean bonus of completions for an answer that follows from reasoning.',
  'answer_likelihood': "Mean probability of an answer's tokens to the slow average.",
  'gdro_rollouts/': 'Completions that each prompt of one difficulty bin gets.',
  'gdro_loss/': 'Mean loss of the prompts of one difficulty bin; 0 is the hardest.',
  'entropy': "Mean entropy of the policy's next token, in nats.",
  'entropy_coef': 'Coefficient of the entropy bonus in this step.',
  'divergence': 'Mean divergence from teacher or reference, of distributions, in nats.',
  'kl_cov': 'Mean |log pi / pi_old| of the tokens that kl_cov penalises.',
  'mismatch': 'Mean gap between the log-probs of sampler and trainer, same parameters.',
  'max/mismatch': 'The largest such difference of the step.',
  'mismatch_k3': 'KL from the sampler to the trainer by k3, in nats per token.',
  'kept_mass': 'Mean share of the distribution that top-k, top-p and min-p keep.',
  'value_loss': 'Half the squared error of the critic, clipped, per token.',
  'cost_value_loss': 'As value_loss, of the critic of costs.',
  'baseline_loss': "Huber's error of the soft minimum of two critics, per completion.",
  'kl_threshold': 'KL to the reference, per token, above which safe makes it cost.',
  'kl_price': 'What a nat of KL per token costs in this step (safe).',
  'multiplier': 'What a unit of cost weighs against a unit of reward in this step.',
  'nll': 'Negative log-likelihood: nats per token, or per pair for a reward model.',
  'nll_pretrain': 'Negative log-likelihood of the demonstrations of config.pretrain.',
  'kept': 'Share of stored completions with a reward above the value of their prompt.',
  'nll_two': 'As nll of rlbff, of the two words Yes and No alone.',
  'judged': 'Share of completions that end with a verdict (rlbff_generative).',
  'verdict_margin': 'Mean log odds of the right verdict, where there is one.',
  'verdict_accuracy': 'Share of verdicts to which the right word is the likelier one.',
  'reward_yes': 'Mean log odds of Yes over answers that keep their principle.',
  'reward_no': 'Mean log odds of Yes over answers that do not.',
  'ece': 'Expected calibration error: ten bins of p, mean |p - share of yes|.',
  'solution_accuracy': 'Share of solutions where prm says rightly if all is right.',
  'squared_error': 'Mean squared error of a reward model on ratings that are there.',
  'squared_error/': 'The same of one attribute.',
  'within_half': 'Share of ratings that a reward model meets within 0.5.',
  'right_class': 'Share of ratings whose class multitask_ratings holds most likely.',
  'decided': 'Share of pairs that a factor of heron decides.',
  'accuracy_single': 'Mean accuracy of the single models of an ensemble.',
  'accuracy_both': 'As accuracy of odin, of quality and length heads together.',
  'length_rho/': 'Correlation of a head of odin with length, over a minibatch.',
  'heads_cosine': 'Cosine of the two heads of odin; 0 is what it is held to.',
  'sigma': 'Mean deviation that the surest head of brme gives its score.',
  'heads_apart': 'Standard deviation of the scores of the heads of brme, mean.',
  'gate/': 'Mean weight of an attribute in the score of armo.',
  'nll_anybody': 'As nll of p_rlhf, without a word of whose pairs they are.',
  'contrast': 'By how much the tokens of the chosen have the better rewards in t_reg.',
  'kl_user': 'KL from what vpl holds of a user to N(0, 1), in nats.',
  'disagreement': "Standard deviation of an ensemble's margins, mean over pairs.",
  'margin': 'Mean logit by which the chosen completion beats the rejected one.',
  'accuracy': "Share of a prompt's pairs whose chosen scores higher; a tie is half.",
  'reward_chosen': 'Mean implicit reward, beta log pi / ref, of chosen completions.',
  'reward_rejected': 'Mean implicit reward, beta log pi / ref, of rejected ones.',
  'delta': 'Half-way between the mean implicit rewards of good and bad, for bco.',
  'pair_weight': 'Mean weight of a pair in wpo; of text of its own the policy has 1.',
  'prm_loss': 'Cross-entropy of the implicit reward model of prime, per completion.',
  'prm_accuracy': 'Share of completions whose outcome that model says.',
  'odds_loss': 'Negative log-sigmoid of the log odds ratio, per pair.',
  'value_kto': 'Mean of sigmoid(+-beta (log pi / ref - z0)), between 0 and 1.',
  'z0': 'Baseline of kto: estimated KL to the reference, in nats per completion.',
  'grad_norm/': "Global norm of a role's gradient before clipping.",
  'lr/': "Learning rate of a role at this step's first update.",
  'applied': 'Optimizer updates since the start.',
  'skipped': 'Updates left out since the start because the gradient was not finite.',
  'tokens_per_second': 'Completion tokens over the time to sample, score and update.',
  'seconds/rollout': 'Time to sample, in seconds.',
  'seconds/reward': 'Time to decode and score, in seconds.',
  'seconds/update': 'Time of the update, in seconds; the first compiles.',
  'seconds/eval': 'Time of the held-out evaluation, in seconds.',
  'eval/accuracy': 'Share of held-out answers wholly right; of pairs, as above.',
  'eval/low': 'Lower end of its 95 % Wilson interval.',
  'eval/high': 'Upper end of its 95 % Wilson interval.',
  'eval/dropped': 'Held-out groups left out for a prompt or completion too long.',
  'eval/cut': 'Held-out completions cut to the room they have.',
  'eval/longer': 'Share of held-out comparisons that the longer completion wins.',
  'eval/score': 'Mean held-out score, partial credit included.',
  'eval/reward': 'Mean reward of held-out answers, where the task cannot check them.',
  'eval/length': 'Mean length of a held-out answer, in tokens.',
  'eval/turns': "The policy's turns in a held-out episode, mean.",
  'eval/episode/': "Mean over held-out episodes of a part of the environment's score.",
  'eval/cost': 'Weighted sum of costs, mean over held-out answers.',
  'eval/cost/': 'Mean over held-out answers of one cost alone, before its weight.',
  'eval/feasible': 'Share of held-out answers of which no cost is above 0.',
  'eval/safety_cost': 'Mean cost of completions of the questions of the safety test.',
  'eval/safety_bound': 'Upper bound of the mean cost, at confidence 1 - safety.delta.',
  'eval/safe': '1 where that bound is at most safety.threshold: the policy passes.',
  'eval/': "A metric of the method's loss, on held-out rows.",
}


def explain(name: str) -> str:
  """The sentence for a metric: its own, or that of the longest prefix of its name.

  Raises:
    KeyError: it has none.
  """
  prefixes = [k for k in GLOSSARY if k.endswith('/') and name.startswith(k)]
  known = [k for k in (name, max(prefixes, key=len, default='')) if k in GLOSSARY]
  if not known:
    raise KeyError(f'{name!r} is in no line of jaxrl_llm/glossary.py.')
  return GLOSSARY[known[0]]


def table() -> str:
  """The glossary as a markdown table."""
  show = lambda name: f'`{name}*`' if name.endswith('/') else f'`{name}`'
  rows = [f'| {show(name)} | {words} |' for name, words in GLOSSARY.items()]
  return '\n'.join(['| metric | meaning |', '|---|---|', *rows])


if __name__ == '__main__':
  print(table())
