"""llama.cpp through llama-cpp-python, one stream: `python serve_llamacpp.py FILE.gguf CACHE_MIB MAX_LENGTH`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from llama_cpp import Llama
from orders import Batch, Outcome, serve


def load() -> Callable[[Batch], Outcome]:
    path, max_length = sys.argv[1], int(sys.argv[3])
    cores = len(os.sched_getaffinity(0))
    # Left alone it takes half of the cores to decode; all of them are faster here.
    llama = Llama(path, n_ctx=max_length, n_threads=cores, n_threads_batch=cores, verbose=False)

    def generate(batch: Batch) -> Outcome:
        outputs, firsts = [], []
        began = time.perf_counter()
        for prompt in batch.prompts():
            llama.reset()
            tokens: list[int] = []
            started = time.perf_counter()
            for token in llama.generate(prompt, temp=0.0, top_k=1):
                if not tokens:
                    firsts.append(time.perf_counter() - started)
                tokens.append(token)
                llama.detokenize([token])
                if len(tokens) == batch.output:
                    break
            outputs.append(tokens)
        return Outcome(time.perf_counter() - began, outputs, firsts)

    return generate


if __name__ == "__main__":
    serve(load, "llama-cpp-python")
