"""Uses a gateway through LangChain's OpenAI classes. Run as `use_langchain-openai.py URL MODEL`; prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Literal

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

URL, MODEL = sys.argv[1:]


@tool
def weather(city: Literal["Delft", "Oslo"]) -> str:
    """What the weather is like."""
    return f"It rains in {city}."


class Town(BaseModel):
    name: Literal["Delft", "Oslo"]
    large: bool


def chat_model(**options: Any) -> ChatOpenAI:
    given = {"model": MODEL, "max_tokens": 12, "temperature": 0, "seed": 1, **options}
    return ChatOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=60, **given)


async def main() -> None:
    turns = [SystemMessage("Be brief."), HumanMessage("hello")]
    chat = chat_model()
    whole = chat.invoke(turns)
    pieces = [piece async for piece in chat.astream(turns, stream_usage=True)]
    joined = pieces[0]
    for piece in pieces[1:]:
        joined += piece
    batch = await chat.abatch([turns, [HumanMessage("all")]])

    caller = chat_model(max_tokens=100).bind_tools([weather], tool_choice="weather")
    called = caller.invoke("How is Oslo?")
    call = called.tool_calls[0]
    result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    after = chat_model(max_tokens=6).bind_tools([weather]).invoke([HumanMessage("How is Oslo?"), called, result])

    town = chat_model(max_tokens=200).with_structured_output(Town, method="json_schema").invoke("A town.")
    texts = OpenAI(base_url=f"{URL}/v1", api_key="none", model=MODEL, max_tokens=8, temperature=0, max_retries=0)
    embeddings = OpenAIEmbeddings(base_url=f"{URL}/v1", api_key="none", model=MODEL, check_embedding_ctx_length=False)
    try:
        chat_model(model=f"{MODEL}-none").invoke("hello")
        refused = ""
    except Exception as error:
        refused = f"{type(error).__name__}: {error}"
    assert isinstance(whole, AIMessage)
    found = {
        "whole": whole.content,
        "reason": whole.response_metadata["finish_reason"],
        "usage": whole.usage_metadata,
        "streamed": joined.content,
        "pieces": sum(bool(piece.content) for piece in pieces),
        "streamed_usage": joined.usage_metadata,
        "batch": [one.content for one in batch],
        "call": call,
        "after_tokens": [called.usage_metadata["input_tokens"], after.usage_metadata["input_tokens"]],
        "town": town.model_dump(),
        "text": texts.invoke("hello"),
        "vectors": embeddings.embed_documents(["hello", "all"]),
        "refused": refused,
    }
    print(json.dumps(found))


asyncio.run(main())
