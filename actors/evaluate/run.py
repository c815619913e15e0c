"""One request carried out: each model's samples are asked or found in its record, then all models are compared."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import ObjectSendStream

from ...runtime.actor import Actor
from ...runtime.errors import CallboardError, UsageError
from ...runtime.exception_groups import leaves
from ...schemas.evaluate import (
    Evaluate,
    EvaluatedSample,
    EvaluateProgress,
    EvaluationReport,
    LeftOut,
    ModelEvaluation,
)
from ..models.evaluations import RecordHead, evaluations_root
from ..models.store import ModelStore
from .asking import Exam, prepare
from .question import Kind, Question
from .record import Record, RecordBusy
from .scoring import Scorer
from .statistics import differences, metrics_of
from .subject import ServedEngine, Subject, engine_of, find_subject

# Samples that an engine works on at once, or waits with: enough for a full batch, and for choices to share prefixes.
IN_FLIGHT = 16
# A text is a whole context of tokens, of which an engine gives back each one's likelihood.
TEXTS_IN_FLIGHT = 2
# How long an evaluator may take to end, and how often it is looked whether it has.
BUSY_S, BUSY_LOOK_S = 5.0, 0.1
# Of the samples that are left out, a report names so many.
_NAMED = 20
_ID_CHARACTERS = 12


class Run:
    """`progress` is closed at the end, whatever that is."""

    def __init__(
        self,
        actor: Actor[Any],
        store: ModelStore,
        models_folder: str,
        request: Evaluate,
        progress: ObjectSendStream[EvaluateProgress],
    ) -> None:
        self._actor = actor
        self._store = store
        self._models_folder = models_folder
        self._request = request
        self._progress = progress

    async def whole(self) -> EvaluationReport:
        async with self._progress:
            await self._progress.send(EvaluateProgress("", "reading"))
            exam = await anyio.to_thread.run_sync(prepare, self._request)
            subjects = [
                await find_subject(self._actor, self._store, name, self._request.engine)
                for name in self._request.models
            ]
            done = [await self._one(exam, subject) for subject in subjects]
        return _report(self._request, exam, done)

    async def _one(self, exam: Exam, subject: Subject) -> tuple[ModelEvaluation, list[EvaluatedSample]]:
        """What a model came to, by itself."""
        head = _head(self._request, exam, subject)
        record = await self._record(head)
        try:
            if record.report is None:
                await self._fill(exam, subject, record)
            assert record.report is not None
            (model,) = record.report.models
            # The same files may have been asked under another name.
            model = msgspec.structs.replace(model, model=subject.name)
            return model, sorted(record.samples.values(), key=lambda sample: sample.index)
        finally:
            record.close()

    async def _record(self, head: RecordHead) -> Record:
        """Waits for an evaluator whose daemon was killed to let go of it: nothing tells when it has."""
        root, deadline = evaluations_root(self._store), anyio.current_time() + BUSY_S
        while True:
            try:
                return await anyio.to_thread.run_sync(lambda: Record(root, head, again=self._request.again))
            except RecordBusy:
                if anyio.current_time() > deadline:
                    raise
                await anyio.sleep(BUSY_LOOK_S)

    async def _fill(self, exam: Exam, subject: Subject, record: Record) -> None:
        began, resumed = time.monotonic(), len(record.samples)
        waiting = [question for question in exam.questions if question.index not in record.samples]
        if waiting:
            await self._progress.send(EvaluateProgress(subject.name, "starting", resumed, record.head.total))
            async with engine_of(self._actor, subject, self._request.engine, self._models_folder) as engine:
                await self._ask_all(exam, subject, engine, waiting, record)
        samples = sorted(record.samples.values(), key=lambda sample: sample.index)
        counted = [sample for sample in samples if not sample.left_out]
        if not counted:
            raise UsageError(
                f"no sample could be asked of {subject.name}; of the first: {samples[0].left_out}",
                hint="serve it with a longer context, or take shorter samples",
            )
        evaluation = ModelEvaluation(
            id=record.head.id,
            model=subject.name,
            digest=subject.digest,
            dtype=subject.dtype,
            context_length=subject.context_length,
            compute_dtype=subject.compute_dtype,
            kv_cache=subject.kv_cache,
            metrics=metrics_of(counted),
            samples=len(counted),
            resumed=resumed,
            cut_short=sum(sample.cut_short for sample in counted),
            seconds=time.monotonic() - began,
            finished=time.time(),
        )
        report = _report(self._request, exam, [(evaluation, samples)])
        await anyio.to_thread.run_sync(record.finish, report)

    async def _ask_all(
        self, exam: Exam, subject: Subject, engine: ServedEngine, waiting: Sequence[Question], record: Record
    ) -> None:
        if exam.chat and not engine.model.has_chat_template:
            raise UsageError(f"{subject.name} has no chat template", hint="leave --chat away")
        scorer = Scorer(engine, exam)
        questions = iter(waiting)

        async def ask_some() -> None:
            for question in questions:
                record.add(await scorer.sample(question))
                progress = EvaluateProgress(subject.name, "asking", len(record.samples), record.head.total)
                await self._progress.send(progress)

        try:
            async with anyio.create_task_group() as group:
                for _ in range(TEXTS_IN_FLIGHT if exam.format.kind is Kind.TEXT else IN_FLIGHT):
                    group.start_soon(ask_some)
        except BaseExceptionGroup as errors:
            found = list(leaves(errors))
            raise next((one for one in found if isinstance(one, CallboardError)), found[0]) from None


def _head(request: Evaluate, exam: Exam, subject: Subject) -> RecordHead:
    questions = exam.digest
    numbers = (subject.digest, subject.dtype, subject.compute_dtype, subject.kv_cache, subject.context_length)
    key = hashlib.sha256(msgspec.json.encode((questions, *numbers))).hexdigest()
    return RecordHead(
        id=key[:_ID_CHARACTERS],
        model=subject.name,
        digest=subject.digest,
        dtype=subject.dtype,
        compute_dtype=subject.compute_dtype,
        kv_cache=subject.kv_cache,
        context_length=subject.context_length,
        questions=questions,
        task=exam.format.name,
        data=exam.test_set.path.name,
        data_sha256=exam.test_set.sha256,
        shots=request.shots,
        shots_from=request.shots_from,
        limit=request.limit,
        seed=request.seed,
        chat=exam.chat,
        max_tokens=exam.max_tokens,
        total=len(exam.questions),
        left_out=exam.left_out,
        started=time.time(),
    )


def _report(
    request: Evaluate, exam: Exam, done: Sequence[tuple[ModelEvaluation, list[EvaluatedSample]]]
) -> EvaluationReport:
    """Of the samples that every model could be asked: only these can be compared."""
    left_out = {
        sample.index: LeftOut(sample.line, sample.left_out, model.model)
        for model, samples in done
        for sample in samples
        if sample.left_out
    }
    counted = [[sample for sample in samples if sample.index not in left_out] for _, samples in done]
    if not counted[0]:
        raise UsageError("there is no sample that all of these models could be asked", hint="evaluate them one by one")
    if len(done) == 1:
        models = [model for model, _ in done]
    else:
        models = [
            msgspec.structs.replace(
                model,
                metrics=metrics_of(samples),
                samples=len(samples),
                cut_short=sum(sample.cut_short for sample in samples),
            )
            for (model, _), samples in zip(done, counted, strict=True)
        ]
    omitted = (*exam.left_out, *(left_out[index] for index in sorted(left_out)))
    return EvaluationReport(
        task=exam.format.name,
        data=exam.test_set.path.name,
        data_sha256=exam.test_set.sha256,
        shots=request.shots,
        shots_from=request.shots_from,
        limit=request.limit,
        seed=request.seed,
        chat=exam.chat,
        max_tokens=exam.max_tokens,
        samples=len(counted[0]),
        num_left_out=len(omitted),
        left_out=omitted[:_NAMED],
        models=tuple(models),
        differences=tuple(
            difference
            for model, samples in zip(models[1:], counted[1:], strict=True)
            for difference in differences(model.model, samples, counted[0])
        ),
    )
