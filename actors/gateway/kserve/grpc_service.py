"""KServe's v2 service over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

from .... import __version__
from ....runtime.errors import CallboardError
from ....runtime.exception_groups import leaves
from ....runtime.log import log
from ..endpoints import named
from ..entrance import admit
from ..errors import BadBody, ModelUnknown, NotRead, StillLoading, words
from ..site import Site
from ..visit import client_name, present
from .answers import in_pieces, whole
from .describe import EXTENSIONS, config_of, find, index_of, inputs_of, is_ready, outputs_of
from .grpc_codec import read_infer, write_infer
from .grpc_keys import Doorkeeper
from .grpc_meters import CallMeter
from .grpc_methods import Context, Methods
from .proto import inference_pb2 as pb
from .signature import PLATFORM, STREAM, VERSION, asked_of

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
# Of one stream: when so many of its requests are under way, the next is read when one of them is done.
MAX_IN_STREAM = 64


def inference_methods(site: Site, doorkeeper: Doorkeeper, meter: CallMeter) -> Methods:
    service = _Service(site)
    methods = Methods(site, doorkeeper, meter, SERVICE)
    methods.add("ServerLive", service.server_live)
    methods.add("ServerReady", service.server_ready)
    methods.add("ModelReady", service.model_ready)
    methods.add("ServerMetadata", service.server_metadata)
    methods.add("ModelMetadata", service.model_metadata)
    methods.add("ModelConfig", service.model_config)
    methods.add("RepositoryIndex", service.repository_index)
    methods.add("ModelInfer", service.infer)
    methods.add_stream("ModelStreamInfer", service.stream_infer)
    return methods


class _Service:
    def __init__(self, site: Site) -> None:
        self._site = site

    async def server_live(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=await is_ready(self._site))

    async def model_ready(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        try:
            await find(self._site, request.name, request.version)
        except (ModelUnknown, StillLoading):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def server_metadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=PLATFORM, version=__version__, extensions=EXTENSIONS)

    async def model_metadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        await find(self._site, request.name, request.version)
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[VERSION],
            platform=PLATFORM,
            inputs=[tensor(**one) for one in inputs_of()],
            outputs=[tensor(**one) for one in outputs_of()],
        )

    async def model_config(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        await find(self._site, request.name, request.version)
        return pb.ModelConfigResponse(config=pb.ModelConfig(**config_of(request.name)))

    async def repository_index(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        models = await index_of(self._site)
        return pb.RepositoryIndexResponse(models=[pb.RepositoryIndexResponse.ModelIndex(**one) for one in models])

    async def infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        inference = read_infer(request)
        engine = await find(self._site, request.model_name, request.model_version)
        asked = asked_of(inference, engine, client_name())
        if asked.stream:
            raise BadBody(f"{STREAM}: here an answer comes whole; ModelStreamInfer sends it in pieces", param=STREAM)
        tensors = await whole(self._site, engine.scheduler, asked)
        return write_infer(request.model_name, inference.id, tensors, raw=_raw(request))

    async def stream_infer(self, requests: AsyncIterator[pb.ModelInferRequest], context: Context) -> None:
        """Requests are served beside each other, so their answers come mixed, each with its request's id. What goes
        wrong with one is its answer. The stream ends when its client has no more requests and all are answered."""
        room = asyncio.Semaphore(MAX_IN_STREAM)
        writing = asyncio.Lock()  # grpcio takes one at a time

        async def write(response: pb.ModelInferResponse, error: str = "") -> None:
            async with writing, self._taken():
                await context.write(pb.ModelStreamInferResponse(error_message=error, infer_response=response))

        async def serve(request: pb.ModelInferRequest) -> None:
            try:
                await self._answer(request, write)
            finally:
                room.release()

        try:
            async with asyncio.TaskGroup() as group:
                async for request in requests:
                    await room.acquire()
                    group.create_task(serve(request))
        except BaseExceptionGroup as errors:
            raise next(leaves(errors)) from None  # the first is why the others were given up

    @asynccontextmanager
    async def _taken(self) -> AsyncIterator[None]:
        """What is sent in the block must be taken in time. Raises NotRead."""
        limit_s = self._site.config.write_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError:
            raise NotRead(f"the client took nothing of its answers for {limit_s:g} s") from None

    async def _answer(self, request: pb.ModelInferRequest, write: Callable[..., Awaitable[None]]) -> None:
        name = request.model_name
        try:
            admit(present())
            inference = read_infer(request)
            engine = await find(self._site, name, request.model_version)
            asked = asked_of(inference, engine, client_name())
            if not asked.stream:
                tensors = await whole(self._site, engine.scheduler, asked)
                await write(write_infer(name, request.id, tensors, raw=_raw(request), final=True))
                return
            async with aclosing(in_pieces(self._site, engine.scheduler, asked)) as pieces:
                async for tensors, last in pieces:
                    await write(write_infer(name, request.id, tensors, raw=_raw(request), final=last))
        except NotRead:
            raise  # and nothing is said to who does not read
        except CallboardError as error:
            log.info("request '%s' of a stream ends with an error: %s", request.id, error)
            response = pb.ModelInferResponse(model_name=name, model_version=request.model_version, id=request.id)
            response.parameters["triton_final_response"].bool_param = True
            await write(response, words(named(error, {})))


def _raw(request: pb.ModelInferRequest) -> bool:
    return bool(request.raw_input_contents)
