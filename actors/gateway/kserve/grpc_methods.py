"""What holds for every method of a gRPC service: who may call it, that it is counted, and errors as statuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from ....runtime.errors import CallboardError
from ....runtime.log import log
from ..endpoints import named
from ..errors import NotRead, retry_after, status_of, words
from ..site import Site
from ..traced import HEADER, traced
from ..visit import visited
from .grpc_keys import Doorkeeper
from .grpc_meters import CallMeter

Context = grpc.aio.ServicerContext[Any, Any]
Whole = Callable[[Any, Context], Awaitable[Message]]
Streamed = Callable[[Any, Context], Awaitable[None]]

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(error: CallboardError) -> grpc.StatusCode:
    return _CODES.get(status_of(error), grpc.StatusCode.INTERNAL)


class Methods:
    """The methods of one service, each with what does its work.

    Work that takes a stream of requests writes its answers itself. A call that its client cancels, or whose deadline
    passes, cancels the work.
    """

    def __init__(self, site: Site, doorkeeper: Doorkeeper, meter: CallMeter, service: ServiceDescriptor) -> None:
        self.service = service
        self._site = site
        self._doorkeeper = doorkeeper
        self._meter = meter
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def add(self, name: str, work: Whole) -> None:
        async def run(request: Any, context: Context) -> Message:
            return await self._run(work, request, name, context)

        self._handlers[name] = grpc.unary_unary_rpc_method_handler(run, *self._codecs(name))  # pyright: ignore[reportArgumentType]

    def add_stream(self, name: str, work: Streamed) -> None:
        """For a method with one answer to each request or several, of requests one or several."""

        async def run(requests: Any, context: Context) -> None:
            await self._run(work, requests, name, context)

        method = self.service.methods_by_name[name]
        made = (
            grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_stream_rpc_method_handler
        )
        self._handlers[name] = made(run, *self._codecs(name))  # pyright: ignore[reportArgumentType]

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(self.service.full_name, self._handlers)

    def _codecs(self, name: str) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
        method = self.service.methods_by_name[name]
        return GetMessageClass(method.input_type).FromString, GetMessageClass(method.output_type).SerializeToString

    async def _run(
        self, work: Callable[[Any, Context], Awaitable[Any]], asked: Any, name: str, context: Context
    ) -> Any:
        counts = self._site.counts
        counts.requests += 1
        counts.open += 1
        began = time.perf_counter()
        code = grpc.StatusCode.CANCELLED  # unless it comes to an end
        try:
            metadata = dict(context.invocation_metadata() or ())
            path = f"{self.service.full_name}/{name}"
            with (
                visited(self._doorkeeper.visit(f"/{path}", metadata)),
                traced(self._site, str(metadata.get(HEADER, "")), path) as trace,
            ):
                if trace is not None:
                    await context.send_initial_metadata(((HEADER, str(trace)),))
                done = await work(asked, context)
                code = grpc.StatusCode.OK
                return done
        except CallboardError as error:
            refusal = named(error, {})
            code = code_of(error)
        except grpc.aio.AbortError:
            code = context.code() or grpc.StatusCode.UNKNOWN
            raise
        except Exception as error:
            log.error("%s failed", name, exc_info=error)
            refusal = CallboardError("the gateway failed over this request", hint="its log says why")
            code = code_of(refusal)
        finally:
            counts.open -= 1
            self._meter.ended(name, code.name, time.perf_counter() - began)
        if isinstance(refusal, NotRead):  # what it does not take is in the way of a status too
            log.info("a call is given up: %s", refusal)
            raise asyncio.CancelledError
        counts.failed += status_of(refusal) >= 500
        seconds = retry_after(refusal)
        metadata = () if seconds is None else (("retry-after", str(seconds)),)
        await context.abort(code, words(refusal), metadata)
