"""One sample asked of an engine, and what its answer is worth."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from ...runtime.errors import RequestInvalid
from ...schemas.base import Request
from ...schemas.evaluate import EvaluatedSample, SampleScore
from ...schemas.serve import Completion, Detokenize, FinishReason, Generate, Score, Tokenize
from .answers import exact_match, last_number, token_f1
from .asking import Exam
from .question import Kind, Question
from .windows import windows

R = TypeVar("R")

# As whom an engine knows us, and that whoever else asks it comes first.
CLIENT, PRIORITY = "evaluate", -1


class Engine(Protocol):
    """Who is asked. `adapter`: the LoRA adapter to ask with."""

    @property
    def adapter(self) -> str: ...

    @property
    def context_length(self) -> int: ...

    async def ask(self, request: Request[R]) -> R: ...


class Scorer:
    """Asks one model the questions of one exam."""

    def __init__(self, engine: Engine, exam: Exam) -> None:
        self._engine = engine
        self._exam = exam
        self._start: tuple[int, ...] | None = None

    async def sample(self, question: Question) -> EvaluatedSample:
        """A question that the engine refuses, being longer than the model's context say, is left out and says so."""
        ask = {
            Kind.CHOICE: self._choice,
            Kind.ANSWER: self._answer,
            Kind.LAST_WORD: self._last_word,
            Kind.TEXT: self._text,
        }
        try:
            sample = await ask[self._exam.format.kind](question)
        except RequestInvalid as error:
            return _left_out(question, str(error))
        if not all(math.isfinite(score.value) for score in sample.scores) or not all(
            map(math.isfinite, sample.logprobs)
        ):
            return _left_out(question, "the model's numbers are not finite")
        return sample

    async def _choice(self, question: Question) -> EvaluatedSample:
        if self._exam.chat:
            logprobs = await self._after_chat(question)
        else:
            before = self._exam.before(question)
            contexts = question.contexts or (question.prompt,) * len(question.choices)
            ends = tuple(question.ending or question.lead + choice for choice in question.choices)
            logprobs = [one[0] for one in await self._score([before + context for context in contexts], ends)]
        best = _place_of_highest(logprobs)
        scores = [SampleScore("acc", float(best == question.right))]
        if self._exam.format.by_length:
            lengths = [len(choice.encode()) for choice in question.choices]
            per_byte = [logprob / length for logprob, length in zip(logprobs, lengths, strict=True)]
            scores.append(SampleScore("acc_norm", float(_place_of_highest(per_byte) == question.right)))
        return EvaluatedSample(
            index=question.index,
            line=question.line,
            prompt=question.prompt,
            choices=question.choices,
            answers=(question.choices[question.right],),
            said=question.choices[best],
            logprobs=tuple(logprobs),
            scores=tuple(scores),
            is_right=best == question.right,
        )

    async def _score(self, contexts: Sequence[str], ends: Sequence[str]) -> list[tuple[float, bool]]:
        """(log-likelihood, whether each token was the likeliest) of each end behind its context."""
        scores = await self._engine.ask(
            Score(
                contexts=tuple(contexts),
                continuations=tuple(ends),
                adapter=self._engine.adapter,
                client=CLIENT,
                priority=PRIORITY,
            )
        )
        return [(one.logprob, one.is_greedy) for one in scores.texts]

    async def _after_chat(self, question: Question) -> list[float]:
        """Log-likelihoods of the choices as what an assistant answers. By tokens, since what a chat template writes is
        more than text."""
        before = (await self._engine.ask(Tokenize(messages=self._exam.turns(question)))).token_ids

        async def one(choice: str) -> float:
            after = (await self._engine.ask(Tokenize(text=choice, add_special=False))).token_ids
            return math.fsum((await self._logprobs((*before, *after)))[len(before) - 1 :])

        return list(await asyncio.gather(*map(one, question.choices)))

    async def _logprobs(self, token_ids: tuple[int, ...]) -> list[float]:
        """Of each token but the first."""
        done = await self._engine.ask(
            Generate(
                prompt_ids=token_ids,
                prompt_logprobs=0,
                max_tokens=1,
                adapter=self._engine.adapter,
                client=CLIENT,
                priority=PRIORITY,
            )
        )
        return [token.logprob for token in done.prompt_logprobs]

    async def _answer(self, question: Question) -> EvaluatedSample:
        done = await self._generate(question)
        said = done.text.strip()
        if self._exam.format.number:
            is_right = last_number(said) in question.answers
            scores = [SampleScore("exact_match", float(is_right))]
        else:
            is_right = exact_match(said, question.answers)
            f1 = token_f1(said, question.answers)
            scores = [SampleScore("exact_match", float(is_right)), SampleScore("f1", f1)]
        return EvaluatedSample(
            index=question.index,
            line=question.line,
            prompt=question.prompt,
            answers=question.answers,
            said=done.text,
            scores=tuple(scores),
            is_right=is_right,
            cut_short=done.finish_reason is FinishReason.LENGTH,
        )

    async def _generate(self, question: Question) -> Completion:
        exam = self._exam
        return await self._engine.ask(
            Generate(
                messages=exam.turns(question) if exam.chat else (),
                prompt="" if exam.chat else exam.before(question) + question.prompt,
                max_tokens=exam.max_tokens,
                stop=() if exam.chat else exam.format.stop,
                adapter=self._engine.adapter,
                client=CLIENT,
                priority=PRIORITY,
            )
        )

    async def _last_word(self, question: Question) -> EvaluatedSample:
        (word,) = question.choices
        context = self._exam.before(question) + question.prompt
        ((logprob, is_greedy),) = await self._score([context], [question.lead + word])
        return EvaluatedSample(
            index=question.index,
            line=question.line,
            prompt=question.prompt,
            answers=(word,),
            logprobs=(logprob,),
            scores=(SampleScore("acc", float(is_greedy)), SampleScore("word_perplexity", -logprob)),
            is_right=is_greedy,
        )

    async def _text(self, question: Question) -> EvaluatedSample:
        """Windows of the whole context, less the one token that an engine draws behind each."""
        text = question.prompt
        start = await self._start_tokens()
        own = (await self._engine.ask(Tokenize(text=text, add_special=False))).token_ids
        token_ids = (*start, *own)
        num_bytes = len(text.encode())
        if not start and own:  # nothing stands before the first token, so it is not scored
            num_bytes -= len((await self._engine.ask(Detokenize(own[:1]))).pieces[0])
        first = max(1, len(start))
        if len(token_ids) <= first or num_bytes < 1:
            raise RequestInvalid("the text has no token that another stands before")
        lost = 0.0
        for window in windows(len(token_ids), self._engine.context_length - 1, first):
            logprobs = await self._logprobs(token_ids[window.begin : window.end])
            lost -= math.fsum(logprobs[window.first - window.begin - 1 :])
        return EvaluatedSample(
            index=question.index,
            line=question.line,
            prompt=text,
            logprobs=(-lost,),
            scores=(
                SampleScore("token_perplexity", lost, len(token_ids) - first),
                SampleScore("bits_per_byte", lost / math.log(2), num_bytes),
            ),
        )

    async def _start_tokens(self) -> tuple[int, ...]:
        """What the model wants before a text."""
        if self._start is None:
            bare = (await self._engine.ask(Tokenize(text="a", add_special=False))).token_ids
            whole = (await self._engine.ask(Tokenize(text="a"))).token_ids
            first = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
            self._start = whole[:first]
        return self._start


def _place_of_highest(values: Sequence[float]) -> int:
    """The first of those that are equal."""
    return max(range(len(values)), key=values.__getitem__)


def _left_out(question: Question, reason: str) -> EvaluatedSample:
    return EvaluatedSample(
        index=question.index,
        line=question.line,
        prompt=question.prompt,
        choices=question.choices,
        answers=question.answers,
        left_out=reason,
    )
