"""Many questions to one judge: several at a time, each answered once, everything that failed counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow_ft_judge.engine import parallel, prompts, verdicts
from mlflow_ft_judge.engine.cache import Cache, key_of
from mlflow_ft_judge.engine.endpoint import Endpoint, NotJudgedError, Reply
from mlflow_ft_judge.engine.prompts import Question
from mlflow_ft_judge.engine.verdicts import Verdict
from mlflow_ft_judge.settings import JudgeAt, JudgeOptions

PATIENCE = 8
"""Failures in a row, each after all repetitions, after which an endpoint is not asked any more."""
SHOWN_REASONS = 3
MALFORMED = "no verdict in the judge's reply, asked twice"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The answer to one question."""

    value: Any = None
    """The verdict; None if there is none."""
    reason: str = ""
    """The judge's reason, or why there is no verdict."""


@dataclass(kw_only=True)
class Account:
    """What judging has cost, and what failed; may be added to by several threads."""

    requests: int = 0
    """Requests that were answered, without repetitions."""
    cached: int = 0
    """Replies that were on the disk."""
    retried: int = 0
    asked_again: int = 0
    """Replies without a verdict, after which the judge was asked once more."""
    tokens_in: int = 0
    """Read by the judge for the replies that were not on the disk."""
    tokens_out: int = 0
    cached_in: int = 0
    """Read for the replies that were on the disk, when they were asked for."""
    cached_out: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Questions without a verdict, by the reason."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, reply: Reply) -> None:
        """Count an answered request."""
        with self.lock:
            self.requests += 1
            self.retried += reply.retried
            self.tokens_in += reply.tokens_in
            self.tokens_out += reply.tokens_out

    def add_kept(self, kept: Mapping[str, Any]) -> None:
        """Count a reply that was on the disk."""
        with self.lock:
            self.cached += 1
            self.cached_in += int(kept.get("tokens_in") or 0)
            self.cached_out += int(kept.get("tokens_out") or 0)


class Asked:
    """A judge that is asked: cache, endpoint and account."""

    def __init__(self, judge: JudgeAt, options: JudgeOptions, *, cache: Cache | None = None) -> None:
        self.judge = judge
        self.account = Account()
        self._options = options
        self.endpoint = Endpoint(judge, options)
        self._cache = (cache or Cache()) if options.cache else None
        self._failed_in_a_row = 0
        self._gave_up = ""

    def close(self) -> None:
        """Close the connections."""
        self.endpoint.close()

    def all(
        self, questions: Sequence[Question], *, repeat: int = 0, done: Callable[[], object] = lambda: None
    ) -> list[Judgement]:
        """The answers in the order of the questions; `done` is called after each.

        `repeat` numbers repetitions of the same questions, which are asked again. After a signal nothing is waited for.
        """

        def ask(question: Question) -> Judgement:
            judgement = self.ask(question, repeat=repeat)
            done()
            return judgement

        return parallel.over(ask, questions, workers=self._options.workers)

    def ask(self, question: Question, *, repeat: int = 0) -> Judgement:
        """The judge's verdict on one question; without one, the reason is counted."""
        try:
            verdict = self._verdict(question, repeat)
        except NotJudgedError as error:
            return self._failed(error)
        self._failed_in_a_row = 0
        if verdict is None:
            with self.account.lock:
                self.account.failures[MALFORMED] += 1
            return Judgement(reason=MALFORMED)
        return Judgement(value=verdict.value, reason=verdict.reason)

    def _verdict(self, question: Question, repeat: int) -> Verdict | None:
        """The verdict that is on the disk, else the judge's, which is asked once more if its reply has none."""
        key = self._key(question, repeat)
        kept = self._cache.get(key) if self._cache else None
        if kept and (verdict := verdicts.read(kept["text"], question)):
            self.account.add_kept(kept)
            return verdict
        replies = [reply := self._reply(question.messages, question)]
        verdict = verdicts.read(reply.text, question)
        if verdict is None:
            with self.account.lock:
                self.account.asked_again += 1
            replies.append(reply := self._reply(prompts.again(question, reply.text), question))
            verdict = verdicts.read(reply.text, question)
        if verdict and self._cache:
            read, written = sum(each.tokens_in for each in replies), sum(each.tokens_out for each in replies)
            tokens = {"tokens_in": read, "tokens_out": written}
            self._cache.put(key, {"text": reply.text, "model": self.judge.model, **tokens})
        return verdict

    def _reply(self, messages: Sequence[Mapping[str, str]], question: Question) -> Reply:
        if self._gave_up:
            raise NotJudgedError(self._gave_up)
        reply = self.endpoint.complete(messages, schema=question.schema)
        self.account.add(reply)
        return reply

    def _key(self, question: Question, repeat: int) -> str:
        asked = {"endpoint": self.judge.endpoint, "model": self.judge.model, "messages": list(question.messages)}
        sampling = {"temperature": self._options.temperature, "max_tokens": self._options.max_tokens}
        return key_of(asked | sampling | {"repeat": repeat})

    def _failed(self, error: NotJudgedError) -> Judgement:
        with self.account.lock:
            self.account.failures[error.reason] += 1
            self._failed_in_a_row += 1
            if error.hopeless or self._failed_in_a_row >= PATIENCE:
                self._gave_up = self._gave_up or error.reason
        return Judgement(reason=error.reason)


def reasons(accounts: Iterable[Account]) -> str:
    """The most frequent reasons why questions have no verdict, with their numbers."""
    common = sum((account.failures for account in accounts), Counter[str]()).most_common()
    shown = ", ".join(f"{reason}: {count}" for reason, count in common[:SHOWN_REASONS])
    return shown + (f", and {len(common) - SHOWN_REASONS} more reasons" if len(common) > SHOWN_REASONS else "")
