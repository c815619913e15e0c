"""The gRPC reflection service: what this server's services and messages are, for grpcurl and its like."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import grpc
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor

from ..site import Site
from .grpc_keys import Doorkeeper
from .grpc_meters import CallMeter
from .grpc_methods import Context, Methods
from .proto import reflection_pb2 as pb
from .proto.pool import POOL

SERVICE = pb.DESCRIPTOR.services_by_name["ServerReflection"]


def reflection_methods(
    site: Site, doorkeeper: Doorkeeper, meter: CallMeter, services: Sequence[ServiceDescriptor]
) -> Methods:
    listed = pb.ListServiceResponse(
        service=[pb.ServiceResponse(name=service.full_name) for service in (*services, SERVICE)]
    )

    def answer(request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        response = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
        kind = request.WhichOneof("message_request")
        try:
            if kind == "list_services":
                response.list_services_response.CopyFrom(listed)
            elif kind == "file_by_filename":
                _describe(response, POOL.FindFileByName(request.file_by_filename))
            elif kind == "file_containing_symbol":
                _describe(response, POOL.FindFileContainingSymbol(request.file_containing_symbol))
            else:
                _refuse(response, grpc.StatusCode.UNIMPLEMENTED, "no message here has extensions")
        except KeyError as error:
            _refuse(response, grpc.StatusCode.NOT_FOUND, str(error.args[0]))
        return response

    async def info(requests: AsyncIterator[pb.ServerReflectionRequest], context: Context) -> None:
        async for request in requests:
            await context.write(answer(request))

    methods = Methods(site, doorkeeper, meter, SERVICE)
    methods.add_stream("ServerReflectionInfo", info)
    return methods


def _describe(response: pb.ServerReflectionResponse, file: FileDescriptor) -> None:
    """No file here needs another."""
    response.file_descriptor_response.file_descriptor_proto.append(file.serialized_pb)


def _refuse(response: pb.ServerReflectionResponse, code: grpc.StatusCode, message: str) -> None:
    number, _ = code.value
    response.error_response.error_code = number
    response.error_response.error_message = message
