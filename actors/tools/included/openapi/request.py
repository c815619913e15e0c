"""From arguments to a request, as the document's styles say, and from the answer to a value."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from ...errors import ToolArguments, ToolError
from ...values import Audio, File, Image, kind_of, sniffed_mime
from ..files.text import encoding_of
from ..net.client import Answer
from ..web.readable import file_name
from .operations import Operation, Parameter

_DELIMITERS = {"form": ",", "spaceDelimited": " ", "pipeDelimited": "|", "simple": ","}
MAX_ERROR = 2000
_ACCEPT = "application/json, text/*;q=0.9, */*;q=0.5"


class OperationFailed(ToolError):
    """The API answered with an error. Its own words are in the message."""

    code = "tool.openapi"


@dataclass(frozen=True, slots=True)
class Prepared:
    method: str
    url: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    content: bytes | None


def prepared(operation: Operation, base: str, arguments: Mapping[str, Any]) -> Prepared:
    """The request that the arguments ask for. Raises ToolArguments."""
    path = operation.path
    query: list[tuple[str, str]] = []
    headers = {"accept": _ACCEPT}
    cookies: list[str] = []
    for parameter in operation.parameters:
        if parameter.key not in arguments or arguments[parameter.key] is None:
            continue
        value = arguments[parameter.key]
        if parameter.where == "path":
            path = path.replace(f"{{{parameter.name}}}", _in_path(parameter, value))
        elif parameter.where == "query":
            query.extend(_in_query(parameter, value))
        elif parameter.where == "header":
            headers[parameter.name] = _one_line(parameter, _joined(parameter, value))
        else:
            cookies.append(f"{quote(parameter.name)}={quote(_joined(parameter, value))}")
    if cookies:
        headers["cookie"] = "; ".join(cookies)
    content = None
    if "body" in arguments and operation.body_mime:
        content, headers["content-type"] = _body(operation.body_mime, arguments["body"])
    return Prepared(operation.method, base + path, query, headers, content)


def _text(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case None:
            return ""
        case str():
            return value
        case dict() | list():
            return json.dumps(value, ensure_ascii=False)
    return str(value)


def _joined(parameter: Parameter, value: Any) -> str:
    if parameter.as_json:
        return json.dumps(value, ensure_ascii=False)
    delimiter = _DELIMITERS.get(parameter.style, ",")
    if isinstance(value, list):
        return delimiter.join(map(_text, value))
    if isinstance(value, dict):
        pairs = [(str(name), _text(each)) for name, each in value.items()]
        if parameter.explode:
            return ",".join(f"{name}={each}" for name, each in pairs)
        return delimiter.join(part for pair in pairs for part in pair)
    return _text(value)


def _in_path(parameter: Parameter, value: Any) -> str:
    """One segment of the path, whatever is in it: a value does not lead to another operation."""
    text = _joined(parameter, value)
    if text in ("", ".", ".."):
        raise ToolArguments(f"`{parameter.key}`: '{text}' cannot be part of a path")
    encoded = quote(text, safe=",=" if isinstance(value, (list, dict)) else "")
    prefix = {"label": ".", "matrix": f";{parameter.name}="}.get(parameter.style, "")
    return prefix + encoded


def _in_query(parameter: Parameter, value: Any) -> list[tuple[str, str]]:
    name = parameter.name
    if isinstance(value, dict) and parameter.style == "deepObject":
        return [(f"{name}[{key}]", _text(each)) for key, each in value.items()]
    if parameter.explode and not parameter.as_json:
        if isinstance(value, list):
            return [(name, _text(each)) for each in value]
        if isinstance(value, dict):
            return [(str(key), _text(each)) for key, each in value.items()]
    return [(name, _joined(parameter, value))]


def _one_line(parameter: Parameter, value: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ToolArguments(f"`{parameter.key}`: a header has no line breaks and no control characters")
    return value if value.isascii() else quote(value, safe=" ,;:=/()[]{}@?&+-_.!~*'\"")


def _body(mime: str, value: Any) -> tuple[bytes, str]:
    if mime.endswith("json"):
        return msgspec.json.encode(value), mime
    if mime == "application/x-www-form-urlencoded":
        pairs = [(name, _text(one)) for name, each in dict(value).items() for one in _listed(each)]
        return urlencode(pairs).encode(), mime
    if mime == "multipart/form-data":
        return _multipart(value)
    if isinstance(value, File):
        return value.bytes(), value.mime if mime in ("*/*", "application/octet-stream") else mime
    return _text(value).encode(), f"{mime}; charset=utf-8"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _multipart(value: Mapping[str, Any]) -> tuple[bytes, str]:
    boundary = secrets.token_hex(16)
    body = b""
    for name, each in value.items():
        for one in _listed(each):
            head = f'content-disposition: form-data; name="{quote(name, safe=" []._-")}"'
            if isinstance(one, File):
                head += f'; filename="{quote(one.file_name, safe=" ._-")}"\r\ncontent-type: {one.mime}'
                data = one.bytes()
            else:
                data = _text(one).encode()
            body += f"--{boundary}\r\n{head}\r\n\r\n".encode() + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def value_of(operation: Operation, answer: Answer) -> Any:
    """JSON, a text, or a medium. Raises OperationFailed for an error that the API reports."""
    if answer.status >= 300:
        raise _failure(operation, answer)
    if not answer.body:
        return None
    if answer.mime.endswith("json") or not answer.mime:
        try:
            return msgspec.json.decode(answer.body)
        except msgspec.DecodeError as error:
            if answer.mime:
                raise OperationFailed(f"{operation.name}: the API answers with damaged JSON: {error}") from error
    mime = sniffed_mime(answer.body[:16]) or answer.mime
    family = kind_of(mime).value if mime else "file"
    if family == "file" and not mime.startswith(("application/pdf", "application/zip")):
        encoding = encoding_of(answer.body)
        if encoding is not None:
            return answer.body.decode(
                answer.charset if answer.charset in ("latin-1", "iso-8859-1") else encoding, "replace"
            )
    kind = {"image": Image, "audio": Audio}.get(family, File)
    return kind.from_bytes(answer.body, mime, file_name(answer.url))


def _failure(operation: Operation, answer: Answer) -> OperationFailed:
    said = answer.body[: MAX_ERROR * 4].decode("utf-8", "replace").strip()[:MAX_ERROR]
    hints = {
        400: "the arguments are not what the API wants: change them as it says",
        401: "the key is missing or wrong: whoever runs this tool must set it",
        403: "the key may not do this",
        404: "there is nothing under these arguments",
        409: "it clashes with what is there",
        422: "the arguments are not what the API wants: change them as it says",
        429: "too many requests: wait before the next one",
    }
    hint = hints.get(answer.status, "the API has trouble: try again later" if answer.status >= 500 else "")
    if 300 <= answer.status < 400:
        hint = "the API has moved: `base_url` of its options must change"
    return OperationFailed(
        f"{operation.name} failed with status {answer.status}{f': {said}' if said else ''}", hint=hint
    )
