"""The actor that quantizes a group of layers: it gets the stream before the first, and gives back each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ...runtime.actor import Actor, NoConfig, handler
from ...runtime.errors import RequestInvalid
from ...schemas.blob import Blob
from ...schemas.quantize import LayerKept, LayerQuantized, LayersQuantized, ProductError, QuantizeLayers
from .recipe import Recipe
from .run import LayerDone, quantize_layers
from .source import open_source
from .stream import Stream


class LayerGroup(Actor[NoConfig]):
    """Torch runs in a thread of its own, so the process answers meanwhile. A request that is cancelled ends after the
    layer in hand.

    Raises NoSuchModel, ModelDamaged, UnsupportedModel, RequestInvalid.
    """

    async def started(self) -> None:
        self._held: dict[int, tuple[Blob, Blob]] = {}

    @handler
    async def kept(self, message: LayerKept) -> None:
        for blob in self._held.pop(message.layer, ()):
            await self.blobs.release(blob)

    @handler(concurrent=True)
    async def quantize(self, message: QuantizeLayers) -> AsyncIterator[LayerQuantized | LayersQuantized]:
        recipe = msgspec.json.decode(message.recipe, type=Recipe)
        stream = unpack(await self.blobs.get(message.hidden))
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="quantize") as thread:
            source = await loop.run_in_executor(thread, open_source, Path(message.model))
            try:
                if not 0 <= message.first < message.last <= source.config.num_layers:
                    raise RequestInvalid(
                        f"the model has {source.config.num_layers} layers, not {message.first} to {message.last - 1}"
                    )
                layers = quantize_layers(source, range(message.first, message.last), recipe, stream)

                def work() -> tuple[LayerDone, bytes, bytes] | None:
                    with torch.inference_mode():
                        done = next(layers, None)
                        return done and (done, save(done.tensors), save(done.stream.tensors()))

                while (found := await loop.run_in_executor(thread, work)) is not None:
                    done, tensors, after = found
                    blobs = await self.blobs.put(tensors), await self.blobs.put(after)
                    self._held[done.index] = blobs
                    errors = tuple(ProductError(done.index, name, share) for name, share in done.errors.items())
                    yield LayerQuantized(done.index, blobs[0], blobs[1], errors)
                yield LayersQuantized(message.last - message.first)
            finally:
                await loop.run_in_executor(thread, source.close)


def unpack(data: bytes) -> Stream:
    """The stream in the bytes of a blob. Raises RequestInvalid."""
    try:
        return Stream.of({name: tensor.clone() for name, tensor in load(data).items()})
    except (SafetensorError, KeyError) as error:
        raise RequestInvalid(f"the hidden states are damaged: {error}") from error
