"""`/v1/files`: what clients upload, to train on it say."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Literal, get_args

import anyio.to_thread
import msgspec
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from .bodies import decode_query, too_large
from .endpoints import answer
from .errors import BadBody
from .file_store import Purpose
from .openai_routes import endpoint
from .pages import page
from .site import Site

MIN_TTL_S, MAX_TTL_S = 3600, 2592000


class FilesQuery(msgspec.Struct, kw_only=True):
    limit: Annotated[int, msgspec.Meta(ge=1, le=10000)] = 10000
    order: Literal["asc", "desc"] = "desc"
    after: str = ""
    purpose: str = ""


async def upload(site: Site, request: Request) -> Response:
    form = await _form(request, site.config.max_file_mib << 20)
    try:
        file, purpose = form.get("file"), _purpose(form)
        if not isinstance(file, UploadFile):
            raise BadBody("file: missing required field", param="file")
        name, ttl_s = file.filename or "file", _ttl(form)
        made = await anyio.to_thread.run_sync(site.files.add, file.file, name, purpose, ttl_s)
    finally:
        await form.close()
    return answer(made)


def _purpose(form: FormData) -> Purpose:
    purpose, purposes = form.get("purpose"), get_args(Purpose)
    if purpose not in purposes:
        raise BadBody(f"purpose: expected one of {', '.join(purposes)}", param="purpose")
    return msgspec.convert(purpose, Purpose)


def _ttl(form: FormData) -> int | None:
    seconds = form.get("expires_after[seconds]")
    if seconds is None:
        return None
    if not isinstance(seconds, str) or not seconds.isdecimal() or not MIN_TTL_S <= int(seconds) <= MAX_TTL_S:
        raise BadBody(f"expires_after.seconds: expected {MIN_TTL_S} to {MAX_TTL_S}", param="expires_after.seconds")
    return int(seconds)


async def _form(request: Request, max_bytes: int) -> FormData:
    """Raises BadBody, BodyTooLarge."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise BadBody("the body: expected multipart/form-data, with `file` and `purpose`")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large(max_bytes, "max_file_mib")

    async def bounded() -> AsyncGenerator[bytes, None]:
        size = 0
        async for piece in request.stream():
            size += len(piece)
            if size > max_bytes:
                raise too_large(max_bytes, "max_file_mib")
            yield piece

    try:
        return await MultiPartParser(request.headers, bounded(), max_files=1, max_fields=16).parse()
    except MultiPartException as error:
        raise BadBody(f"the body: {error.message}") from error
    except ClientDisconnect:
        raise BadBody("the body of the request ends before it is whole") from None


async def list_files(site: Site, request: Request) -> Response:
    asked = decode_query(request, FilesQuery)
    files = await anyio.to_thread.run_sync(site.files.list)
    wanted = [file for file in files if asked.purpose in ("", file.purpose)]
    return answer(page(wanted, limit=asked.limit, order=asked.order, after=asked.after))


async def retrieve(site: Site, request: Request) -> Response:
    return answer(await anyio.to_thread.run_sync(site.files.get, request.path_params["file_id"]))


async def content(site: Site, request: Request) -> Response:
    path = await anyio.to_thread.run_sync(site.files.path, request.path_params["file_id"])
    return FileResponse(path, media_type="application/octet-stream")


async def delete(site: Site, request: Request) -> Response:
    name = request.path_params["file_id"]
    await anyio.to_thread.run_sync(site.files.delete, name)
    return answer({"id": name, "object": "file", "deleted": True})


def files_routes(site: Site) -> list[Route]:
    one = "/v1/files/{file_id}"
    return [
        Route("/v1/files", endpoint(upload, site), methods=["POST"]),
        Route("/v1/files", endpoint(list_files, site), methods=["GET"]),
        Route(one, endpoint(retrieve, site), methods=["GET"]),
        Route(one, endpoint(delete, site), methods=["DELETE"]),
        Route(f"{one}/content", endpoint(content, site), methods=["GET"]),
    ]
