"""`callboard chat`: ask the model once, or talk with it."""

from __future__ import annotations

import contextlib
import secrets
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.command import Command, add_bus_options, add_json_option, run_async, settings_of, tls_of
from ...runtime.errors import CallboardError, UsageError

if TYPE_CHECKING:
    from ...runtime.blocking import SyncRef
    from ...schemas.serve import ChatMessage, Completion, Generate, Grammar
    from .engine import EngineConfig


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("-p", "--prompt", help="ask this and print the answer; without it, standard input is read")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told to be")
    parser.add_argument("--model", help="a model's name, or the path of a .gguf file or a folder (CALLBOARD_MODEL)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N, if this starts the engine")
    add_json_option(parser)
    parser.add_argument("--trace", action="store_true", help="trace one prompt: `callboard trace ID` then draws it")
    sampling = parser.add_argument_group("the answer")
    sampling.add_argument("--max-tokens", type=int, metavar="N", help="its length at most (default: the engine's)")
    sampling.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 (the default): always the likeliest token"
    )
    sampling.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest (0: all)")
    sampling.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the share P (1: all)")
    sampling.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="draw from those at least P times as likely as the best"
    )
    sampling.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: rather not what occurred already"
    )
    sampling.add_argument("--seed", type=int, metavar="N", help="the same seed draws the same answer")
    sampling.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this; repeatable")
    sampling.add_argument("--adapter", default="", metavar="NAME", help="answer with this LoRA adapter of the engine")
    shape = parser.add_argument_group("its shape").add_mutually_exclusive_group()
    shape.add_argument(
        "--json-schema", metavar="SCHEMA", help="JSON that fits this schema: a file, or the schema itself"
    )
    shape.add_argument("--regex", metavar="PATTERN", help="a text that this regular expression matches")
    shape.add_argument("--choice", action="append", default=[], metavar="TEXT", help="one of these; repeatable")
    parser.add_argument(
        "--session", default="", metavar="ID", help="keep what was computed for the next question with the same ID"
    )
    add_bus_options(parser)


def _run(args: Namespace) -> int:
    if args.model:
        from ..models.store import is_path

        # The engine's process stands in another folder.
        args.model = str(Path(args.model).expanduser().absolute()) if is_path(args.model) else args.model
    if args.prompt is None and sys.stdin.isatty():
        if args.trace:
            raise UsageError("--trace follows one prompt", hint="give it with -p or on standard input")
        if args.json:
            raise UsageError("--json answers one prompt", hint="give it with -p or on standard input")
        return _talk(args)
    prompt = args.prompt if args.prompt is not None else sys.stdin.read()
    return run_async(_answer, args, prompt)


chat = Command(
    "ask the model, or talk with it",
    _configure,
    _run,
    details="The answer goes to standard output, how fast it came to standard error. In a conversation\n"
    "Ctrl-C stops the answer, twice leaves, and so does Ctrl-D.",
)


async def _answer(args: Namespace, prompt: str) -> int:
    """One prompt, one answer, streamed as it comes unless it is to be JSON."""
    import msgspec

    from ...runtime.client import connect
    from .starting import ensure_engine

    async with connect(args.nats or "", args.creds or "", state_dir=args.state_dir, tls=tls_of(args)) as bus:
        scheduler = await ensure_engine(bus, lambda: _engine_config(args), _say_starting)
        request = _request(args, _messages(args, prompt))
        with bus.trace("chat") if args.trace else contextlib.nullcontext() as trace:
            if trace is not None:
                print(f"trace {trace}", file=sys.stderr, flush=True)
            async with scheduler.stream(request) as pieces:
                async for piece in pieces:
                    if not args.json:
                        print(piece.text, end="", flush=True)
                completion = pieces.result
    if args.json:
        print(msgspec.json.encode(_documented(completion)).decode())
    else:
        print()
        _say_speed(completion)
    return 0


def _documented(completion: Completion) -> dict[str, object]:
    """What scripts may rely on, and nothing else."""
    usage, timings = completion.usage, completion.timings
    return {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "usage": {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens},
        "timings": {"ttft_ms": timings.ttft_ms, "tokens_per_s": timings.tokens_per_s},
    }


async def _start(args: Namespace) -> int:
    from ...runtime.client import connect
    from .starting import ensure_engine

    async with connect(args.nats or "", args.creds or "", state_dir=args.state_dir, tls=tls_of(args)) as bus:
        await ensure_engine(bus, lambda: _engine_config(args), _say_starting)
    return 0


def _talk(args: Namespace) -> int:
    """A conversation. It runs in the main thread, where Ctrl-C arrives; the bus has a thread of its own.

    The engine keeps what it computed for it, unless it was given a name only until it is over.
    """
    from ...runtime.blocking import connect_sync
    from ...schemas.serve import CloseSession
    from .starting import SCHEDULER

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() edits lines and remembers them once it is imported)
    run_async(_start, args)
    is_named = bool(args.session)
    args.session = args.session or f"chat-{secrets.token_hex(8)}"
    with connect_sync(args.nats or "", args.creds or "", state_dir=args.state_dir) as bus:
        try:
            return _converse(args, bus.actor(SCHEDULER))
        finally:
            if not is_named:
                with contextlib.suppress(CallboardError):  # its time to live ends it too
                    bus.actor(SCHEDULER).ask(CloseSession(args.session))


def _converse(args: Namespace, scheduler: SyncRef) -> int:
    from ...schemas.serve import ChatMessage

    messages = list(_messages(args))
    interrupted = False
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            print("\n(Ctrl-C again leaves)", file=sys.stderr)
            continue
        interrupted = False
        if not text:
            continue
        messages.append(ChatMessage("user", text))
        answer = ""
        try:
            with scheduler.stream(_request(args, tuple(messages))) as pieces:
                for piece in pieces:
                    answer += piece.text
                    print(piece.text, end="", flush=True)
            print()
            _say_speed(pieces.result)
        except KeyboardInterrupt:
            interrupted = True
            print("\n(stopped; Ctrl-C again leaves)", file=sys.stderr)
        except CallboardError as error:
            # The conversation is still here, and the engine may be back for the next question.
            print(f"\ncallboard: {error}\n  {error.hint}".rstrip(), file=sys.stderr)
        messages.append(ChatMessage("assistant", answer))


def _messages(args: Namespace, prompt: str = "") -> tuple[ChatMessage, ...]:
    from ...schemas.serve import ChatMessage

    system = [ChatMessage("system", args.system)] if args.system else []
    return (*system, ChatMessage("user", prompt)) if prompt else tuple(system)


def _request(args: Namespace, messages: tuple[ChatMessage, ...]) -> Generate:
    from ...schemas.serve import Generate

    if not any(message.role == "user" for message in messages):
        raise UsageError("the prompt is empty")
    return Generate(
        messages=messages,
        model=args.model or "",
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        stop=tuple(args.stop),
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        grammar=_grammar(args),
        adapter=args.adapter,
        session=args.session,
    )


def _grammar(args: Namespace) -> Grammar | None:
    import msgspec

    from ...schemas.serve import Grammar, GrammarKind

    if args.json_schema is not None:
        return Grammar(GrammarKind.JSON_SCHEMA, _schema(args.json_schema))
    if args.regex is not None:
        return Grammar(GrammarKind.REGEX, args.regex)
    if args.choice:
        return Grammar(GrammarKind.CHOICE, msgspec.json.encode(args.choice).decode())
    return None


def _schema(given: str) -> str:
    """The text of a schema that is given itself or as a file."""
    if given.lstrip().startswith("{"):
        return given
    try:
        return Path(given).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the schema {given} cannot be read: {error}", hint="give a file, or the schema itself: '{\"type\": ...}'"
        ) from error


def _engine_config(args: Namespace) -> EngineConfig:
    """For an engine that is not there yet: table `[engine]` of the settings, and the model and device asked for."""
    import msgspec

    from ...runtime.errors import ConfigError
    from .engine import EngineConfig

    settings = settings_of(args, model=args.model)
    options = {"model": settings.model, **settings.engine}
    if args.device is not None:
        options["device"] = args.device
    try:
        return msgspec.convert(options, EngineConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"[engine] does not fit: {error}", hint="see the table [engine] of the settings") from error


def _say_starting() -> None:
    print("starting the engine ...", file=sys.stderr, flush=True)


def _say_speed(completion: Completion) -> None:
    timings = completion.timings
    parts = (
        f"{completion.usage.completion_tokens} tokens",
        f"{timings.tokens_per_s:.1f} tokens/s",
        f"first after {timings.ttft_ms:.0f} ms",
    )
    print(f"[{', '.join(parts)}]", file=sys.stderr)
