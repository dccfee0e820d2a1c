"""Reward functions for problems whose answer is a number: is it right, and can a program find it in the text?"""

import re

STATED = re.compile(r"answer is:?\s*(-?\d[\d,]*(?:\.\d+)?)", re.IGNORECASE)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def final_number(text):
    """The number after "answer is", or else the last one of the text; None if there is none."""
    numbers = STATED.findall(text) or NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def correct(completions, answer, **_):
    """1 if the final number is the row's `answer`, else 0."""
    texts = [turns[-1]["content"] for turns in completions]
    return [float(final_number(text) == float(wanted)) for text, wanted in zip(texts, answer, strict=True)]


def states_it(completions, **_):
    """1 if the answer says "the answer is NUMBER"."""
    return [float(bool(STATED.search(turns[-1]["content"]))) for turns in completions]
