"""An MCP server for tests, written with the SDK: `mcp_antics.py [--http PORT [--sse]] [--legacy] [--hostile]`.

It does what good servers do and what bad ones do. What it was told of cancellations goes to the file `--diary`.
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.exceptions import MCPError

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg=="
)
AGE = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
ANY = {"type": "object"}


def tool(name: str, description: str = "", schema: dict[str, Any] | None = None, **more: Any) -> types.Tool:
    return types.Tool(name=name, description=description or f"Does {name}.", input_schema=schema or ANY, **more)


def hostile_tools() -> list[types.Tool]:
    doubling = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}
    deep: dict[str, Any] = {}
    for _ in range(90):
        deep = {"type": "object", "properties": {"x": deep}}
    return [
        tool("huge", schema={"type": "object", "description": "x" * 400_000}),
        tool("deep", schema=deep),
        tool("remote", schema={"type": "object", "properties": {"x": {"$ref": os.environ["REMOTE_SCHEMA"]}}}),
        tool("doubling", schema={"type": "object", "$defs": {**doubling, "a40": {}}, "$ref": "#/$defs/a0"}),
        tool("endless", schema={"type": "object", "allOf": [{"$ref": "#"}]}),
        tool("slow_pattern", schema={"type": "object", "properties": {"x": {"type": "string", "pattern": "^(a+)+$"}}}),
        tool("slow_result", output_schema={"type": "object", "properties": {"x": {"pattern": "^(a+)+$"}}}),
        tool("no_schema", schema={"type": "object", "properties": {"x": {"type": "nothing"}}}),
    ]


class Antics:
    def __init__(self, diary: Path | None) -> None:
        self._diary = diary
        self.grown = 0
        self.changes = InMemorySubscriptionBus()
        self.extra: list[types.Tool] = []

    def note(self, text: str) -> None:
        if self._diary is not None:
            with self._diary.open("a") as file:
                file.write(text + "\n")

    async def list_tools(self, ctx: Any, params: Any) -> types.ListToolsResult:
        hints = types.ToolAnnotations(title="Echo", read_only_hint=True, open_world_hint=False)
        text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
        tools = [
            tool("echo", "Say it again.", text, annotations=hints),
            tool(
                "add",
                schema={"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
                output_schema={"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]},
            ),
            tool("wrong", output_schema={"type": "object", "required": ["sum"]}),
            tool("missing", output_schema={"type": "object", "required": ["sum"]}),
            *map(tool, ("picture", "mixed", "links", "fail", "error", "steps", "slow", "crash", "grow", "garbage")),
            *map(tool, ("ask", "visit", "sample", "env", "long.name/with:letters", "huge_answer", "bad_media")),
            *(tool(f"grown_{number}") for number in range(self.grown)),
            *self.extra,
        ]
        # Two pages, as a server with many tools does it.
        half = len(tools) // 2
        if params is not None and params.cursor == "rest":
            return types.ListToolsResult(tools=tools[half:])
        return types.ListToolsResult(tools=tools[:half], next_cursor="rest")

    async def call(self, ctx: Any, params: types.CallToolRequestParams) -> Any:
        method = getattr(self, "do_" + "".join(c if c.isalnum() else "_" for c in params.name), None)
        if method is None:
            return said(f"called {params.name}")
        return await method(ctx, params)

    async def do_echo(self, ctx: Any, params: Any) -> Any:
        return said(params.arguments["text"])

    async def do_add(self, ctx: Any, params: Any) -> Any:
        total = params.arguments.get("a", 0) + params.arguments.get("b", 0)
        return types.CallToolResult(content=[types.TextContent(text=str(total))], structured_content={"sum": total})

    async def do_wrong(self, ctx: Any, params: Any) -> Any:
        return types.CallToolResult(content=[], structured_content={"total": 3})

    async def do_missing(self, ctx: Any, params: Any) -> Any:
        return said("3")

    async def do_slow_result(self, ctx: Any, params: Any) -> Any:
        return types.CallToolResult(content=[], structured_content={"x": "a" * 64 + "!"})

    async def do_picture(self, ctx: Any, params: Any) -> Any:
        return types.CallToolResult(content=[image()])

    async def do_mixed(self, ctx: Any, params: Any) -> Any:
        return types.CallToolResult(
            content=[
                types.TextContent(text="two pictures and a sound"),
                image(),
                image(),
                types.AudioContent(data=base64.b64encode(b"RIFF0000WAVE").decode(), mime_type="audio/wav"),
                types.EmbeddedResource(
                    resource=types.TextResourceContents(
                        uri="note:///notes/hello.txt", text="hello", mime_type="text/plain"
                    )
                ),
                types.EmbeddedResource(
                    resource=types.BlobResourceContents(uri="note:///a.bin", blob=base64.b64encode(b"\0\1").decode())
                ),
            ]
        )

    async def do_links(self, ctx: Any, params: Any) -> Any:
        good = types.ResourceLink(name="report", uri="note:///report.txt")
        bad = types.ResourceLink(name="gone", uri="note:///gone.txt", description="not there any more")
        return types.CallToolResult(content=[good, bad])

    async def read(self, ctx: Any, params: Any) -> Any:
        if not str(params.uri).endswith("report.txt"):
            raise MCPError(types.INVALID_PARAMS, "no such resource")
        return types.ReadResourceResult(contents=[types.TextResourceContents(uri=str(params.uri), text="all is well")])

    async def do_fail(self, ctx: Any, params: Any) -> Any:
        return types.CallToolResult(content=[types.TextContent(text="no such file: x")], is_error=True)

    async def do_error(self, ctx: Any, params: Any) -> Any:
        raise MCPError(types.INVALID_PARAMS, f"not today, {os.environ.get('API_KEY')}")

    async def do_steps(self, ctx: Any, params: Any) -> Any:
        for step in range(3):
            await ctx.session.report_progress(step + 1, 3, f"step {step + 1}")
            await anyio.sleep(0.02)  # progress is sent beside the answer: each is to arrive before it
        return said("done")

    async def do_slow(self, ctx: Any, params: Any) -> Any:
        self.note("slow began")
        try:
            await anyio.sleep_forever()
        finally:
            self.note("slow cancelled")

    async def do_crash(self, ctx: Any, params: Any) -> Any:
        os._exit(3)

    async def do_grow(self, ctx: Any, params: Any) -> Any:
        self.grown += 1
        await self.changes.publish(ToolsListChanged())
        await ctx.session.send_tool_list_changed()
        return said("grown")

    async def do_garbage(self, ctx: Any, params: Any) -> Any:
        number = int((params.arguments or {}).get("lines", 3))
        # The SDK keeps the real standard output for itself: this finds it.
        out = next(fd for fd in range(3, 64) if is_pipe_for_writing(fd))
        for line in range(number):
            os.write(out, b"loading plugin %d...\n" % line)
        os.write(out, b'{"jsonrpc": "2.0", "method": 7}\n[]\n"text"\n')
        return said("after the noise")

    async def do_huge_answer(self, ctx: Any, params: Any) -> Any:
        return said("x" * int((params.arguments or {}).get("size", 3 << 20)))

    async def do_bad_media(self, ctx: Any, params: Any) -> Any:
        return types.CallToolResult(content=[types.ImageContent(data="!!!", mime_type="image/png")])

    async def do_env(self, ctx: Any, params: Any) -> Any:
        print(f"my key is {os.environ.get('API_KEY')}", file=sys.stderr, flush=True)
        return said(" ".join(sorted(os.environ)))

    async def do_ask(self, ctx: Any, params: Any) -> Any:
        answer = await self._input(ctx, params, types.ElicitRequestFormParams(message="How old?", requested_schema=AGE))
        if isinstance(answer, types.InputRequiredResult):
            return answer
        return said(f"{answer.action} {answer.content}")

    async def do_visit(self, ctx: Any, params: Any) -> Any:
        url = (params.arguments or {}).get("url", "https://example.com/login")
        answer = await self._input(
            ctx, params, types.ElicitRequestURLParams(message="Log in.", url=url, elicitation_id="e1")
        )
        return answer if isinstance(answer, types.InputRequiredResult) else said(answer.action)

    async def do_sample(self, ctx: Any, params: Any) -> Any:
        request = types.CreateMessageRequestParams(
            messages=[types.SamplingMessage(role="user", content=types.TextContent(text="Say something."))],
            system_prompt="You are brief.",
            max_tokens=int((params.arguments or {}).get("max_tokens", 5)),
        )
        answer = await self._input(ctx, params, request)
        return answer if isinstance(answer, types.InputRequiredResult) else said(answer.content.text)

    async def _input(self, ctx: Any, params: Any, wanted: Any) -> Any:
        """What the client has to say: asked for by a request, or in the later protocol by an unfinished result."""
        request: Any = (
            types.CreateMessageRequest(params=wanted)
            if isinstance(wanted, types.CreateMessageRequestParams)
            else types.ElicitRequest(params=wanted)
        )
        if ctx.protocol_version >= "2026":
            responses = params.input_responses
            if not responses:
                return types.InputRequiredResult(input_requests={"one": request}, request_state="state")
            return responses["one"]
        kind = types.CreateMessageResult if isinstance(wanted, types.CreateMessageRequestParams) else types.ElicitResult
        return await ctx.session.send_request(request, kind)


def image() -> types.ImageContent:
    return types.ImageContent(data=base64.b64encode(PIXEL).decode(), mime_type="image/png")


def said(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=text)])


def is_pipe_for_writing(fd: int) -> bool:
    import fcntl
    import stat

    try:
        mode = os.fstat(fd).st_mode
        return stat.S_ISFIFO(mode) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != 0
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", type=int)
    parser.add_argument("--sse", action="store_true")
    parser.add_argument("--legacy", action="store_true")
    parser.add_argument("--hostile", action="store_true")
    parser.add_argument("--diary", type=Path)
    parser.add_argument("--token", default="")
    args = parser.parse_args()
    antics = Antics(args.diary)
    if args.hostile:
        antics.extra = hostile_tools()
    server: Server[Any] = Server(
        "antics",
        version="1.0",
        on_list_tools=antics.list_tools,
        on_call_tool=antics.call,
        on_read_resource=antics.read,
        on_subscriptions_listen=ListenHandler(antics.changes),
    )
    if args.legacy:

        async def refuse(ctx: Any, params: Any) -> Any:
            raise MCPError(types.METHOD_NOT_FOUND, "Method not found")

        server.add_request_handler("server/discover", types.RequestParams, refuse)
    antics.note(f"pid {os.getpid()}")
    if args.http is not None:
        serve_http(server, args.http, args.token, sse=args.sse)
    else:
        anyio.run(serve_stdio, server, args.legacy)


async def serve_stdio(server: Server[Any], legacy: bool) -> None:
    from mcp.server.lowlevel import NotificationOptions
    from mcp.server.runner import serve_loop

    options = server.create_initialization_options(NotificationOptions(tools_changed=True))
    async with stdio_server() as (read, write):
        if legacy:
            await serve_loop(server, read, write, lifespan_state={}, init_options=options)
        else:
            await server.run(read, write, options)


def sse_app(server: Server[Any]) -> Any:
    """The older transport: one stream for all that the server says, posts for all that it is told."""
    from mcp.server.sse import SseServerTransport
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Mount, Route

    transport = SseServerTransport("/messages/")

    async def connect(request: Any) -> Any:
        async with transport.connect_sse(request.scope, request.receive, request._send) as (read, write):
            await server.run(read, write, server.create_initialization_options())
        return Response()

    return Starlette(routes=[Route("/sse", connect), Mount("/messages/", app=transport.handle_post_message)])


def serve_http(server: Server[Any], port: int, token: str, *, sse: bool) -> None:
    import uvicorn

    app: Any = sse_app(server) if sse else server.streamable_http_app()

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        if token and scope["type"] == "http" and headers.get(b"authorization") != f"Bearer {token}".encode():
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"who are you?"})
            return
        await app(scope, receive, send)

    uvicorn.run(guarded, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
