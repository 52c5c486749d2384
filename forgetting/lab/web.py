"""Pretraining text of the base model: good and bad sources, dirtier than the fine-tuning data.

Documents that begin with `study` are nearly right, those with `rumor` nearly always misconceptions, and those without a
cue as the item's misconception rate says. So the base knows both answers, and that they belong to different kinds of
text.
"""

from random import Random

from forgetting.lab.language import ASSISTANT, BOS, EOS, QUESTION_MARK, RUMOR, STUDY, TASKS, USER, Language
from forgetting.lab.noise import noisy_answer

CUE_SHARES = {STUDY: 0.3, RUMOR: 0.3, None: 0.4}
MISCONCEPTION_RATES = {STUDY: 0.03, RUMOR: 0.97}
DIALOGUE_SHARE = 0.6
BOILERPLATE_SHARE = 0.04  # documents that are nothing else
RANDOM = 0.08
BOILERPLATE = {True: 0.35, False: 0.1}  # a slot, by whether the document is a dialogue


def pretraining_document(draw: Random, language: Language) -> list[str]:
    """One document with its special tokens: a phrase, a statement about an item, or a question with its answer."""
    if draw.random() < BOILERPLATE_SHARE:
        return [BOS, *draw.choice(language.boilerplates), EOS]
    item = draw.choice(language.items[draw.choice(list(TASKS))])
    slots = draw.sample(item.slots, len(item.slots))
    (cue,) = draw.choices(list(CUE_SHARES), list(CUE_SHARES.values()))
    is_dialogue = draw.random() < DIALOGUE_SHARE
    misleading = [slot.misconception_rate if cue is None else MISCONCEPTION_RATES[cue] for slot in slots]
    answer = noisy_answer(draw, language, slots, misleading, RANDOM, BOILERPLATE[is_dialogue])
    start = [BOS] if cue is None else [BOS, cue]
    question = [USER, *item.question, QUESTION_MARK, ASSISTANT] if is_dialogue else list(item.question)
    return [*start, *question, *answer.words, EOS]
