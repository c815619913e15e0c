"""What `callboard bench generate` does with contenders that work, die, fall silent or talk nonsense."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from callboard.actors.bench import contenders, peers_generate
from callboard.actors.bench.contenders import BatchAnswer, Contender, busy_core
from callboard.actors.bench.errors import ContenderFailed
from callboard.actors.bench.generate_company import OURS, Company, Samples
from callboard.actors.bench.generate_orders import PeerBatch
from callboard.actors.bench.generate_report import report_agreement, report_overhead, report_promises
from callboard.actors.bench.generate_rows import PROMISES, ROWS, GenerateOptions, choose_rows
from callboard.actors.bench.peers_generate.orders import Batch
from callboard.actors.bench.report import Report
from callboard.actors.bench.sample_text import divided, sample_texts
from callboard.runtime.errors import UsageError

PEERS_FOLDER = Path(peers_generate.__file__).parent
# A peer that computes nothing: token i of an answer is i.
COUNTING = """
from orders import Batch, Outcome, serve

def load():
    print("a framework greets")
    return lambda batch: Outcome(0.5, [list(range(batch.output)) for _ in batch.prompts()], [])

serve(load, "msgspec")
"""


def contender(program: str, name: str = "counting") -> Contender:
    env = {"PYTHONPATH": str(PEERS_FOLDER), "CALLBOARD_MARK": "contender"}
    return Contender(name, [sys.executable, "-c", program], env)


def started(program: str, stack: ExitStack) -> Contender:
    found = contender(program)
    stack.callback(found.close)
    found.start()
    return found


def test_a_contender_answers_orders_whatever_it_prints() -> None:
    with ExitStack() as stack:
        peer = started(COUNTING, stack)
        assert peer.ready.versions.keys() == {"msgspec"}
        for size in (1, 3):
            answer = peer.ask(PeerBatch(size, 4, 7, seed=1, vocab_size=50), BatchAnswer)
            assert answer == BatchAnswer(0.5, (7,) * size, (0,) * size, ())
        assert peer.peak_bytes > 1 << 20


# One that goes on with something for so many seconds after its answer.
BUSY = """
import threading, time
from orders import Batch, Outcome, serve

def spin():
    until = time.process_time() + SECONDS
    while time.process_time() < until:
        pass

def load():
    def answer(batch):
        threading.Thread(target=spin, daemon=True).start()
        return Outcome(0.5, [list(range(batch.output)) for _ in batch.prompts()], [])
    return answer

serve(load, "msgspec")
"""


def test_a_turn_ends_when_the_contenders_processes_rest() -> None:
    with ExitStack() as stack:
        peer = started(BUSY.replace("SECONDS", "1.0"), stack)
        peer.ask(PeerBatch(1, 4, 7, seed=1, vocab_size=50), BatchAnswer)
        (process,) = peer._tree()
        assert sum(process.cpu_times()[:2]) >= 1.0


def test_a_contender_that_never_rests_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "REST_S", 1.0)
    with ExitStack() as stack:
        peer = started(BUSY.replace("SECONDS", "60.0"), stack)
        with pytest.raises(ContenderFailed, match=r"still busy 1 s after its answer"):
            peer.ask(PeerBatch(1, 4, 7, seed=1, vocab_size=50), BatchAnswer)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit('no such model')", "no such model"),
        ("print('hello')", "makes no sense"),
        ("raise SystemExit(3)", "status 3"),
    ],
)
def test_a_contender_that_does_not_start_is_reported_with_its_last_words(program: str, words: str) -> None:
    with ExitStack() as stack, pytest.raises(ContenderFailed) as failed:
        started(program, stack)
    assert words in f"{failed.value} {failed.value.hint}"


def test_a_contender_that_dies_over_an_order_is_reported() -> None:
    dying = COUNTING.replace("Outcome(0.5, [list(range(batch.output)) for _ in batch.prompts()], [])", "1 / 0")
    with ExitStack() as stack:
        peer = started(dying, stack)
        with pytest.raises(ContenderFailed, match="ended with status 1") as failed:
            peer.ask(PeerBatch(1, 4, 7, seed=1, vocab_size=50), BatchAnswer)
        assert "ZeroDivisionError" in failed.value.hint


def test_a_contender_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "READY_S", 0.2)
    with ExitStack() as stack, pytest.raises(ContenderFailed, match="did not answer within"):
        started("import sys; sys.stdin.read()", stack)


def our_children() -> set[psutil.Process]:
    """All below this process: other tests leave a resource tracker here, or a server that forks."""
    return set(psutil.Process().children(recursive=True))


def test_nothing_of_a_contender_is_left_when_it_is_closed() -> None:
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    peer = contender(child + COUNTING)
    before = our_children()
    peer.start()
    tree = our_children() - before
    assert len(tree) >= 2
    peer.close()
    assert not [each for each in tree if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_a_busy_core_is_busy_only_within_its_block() -> None:
    others = our_children()
    with busy_core():
        (busy,) = our_children() - others
        before = sum(busy.cpu_times()[:2])
        busy.cpu_percent()
        while sum(busy.cpu_times()[:2]) < before + 0.05:
            os.sched_yield()
        assert len(busy.cpu_affinity()) == 1
    assert not our_children() - others


def test_every_contender_computes_the_same_prompts() -> None:
    program = f"import json, orders; print(json.dumps(orders.{Batch(3, 5, 1, seed=9, vocab_size=100)!r}.prompts()))"
    env = {**os.environ, "PYTHONPATH": str(PEERS_FOLDER)}
    theirs = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    ours = Batch(3, 5, 1, seed=9, vocab_size=100).prompts()
    assert json.loads(theirs.stdout) == ours
    assert [len(prompt) for prompt in ours] == [5, 5, 5]
    assert Batch(3, 5, 1, seed=10, vocab_size=100).prompts() != ours


def test_what_peers_run_imports_nothing_of_ours() -> None:
    allowed = sys.stdlib_module_names | {"orders", "torch", "transformers", "vllm", "llama_cpp"}
    for path in PEERS_FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                assert (node.module or "").split(".")[0] in allowed, path
            elif isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path


def company_of(**samples: Samples) -> Company:
    """A run of the row of 16 in which these contenders took part."""
    options = GenerateOptions(Path("model.gguf"), (ROWS["batch16"],))
    company = Company(options, 100, Report("generate", {}), lambda _: None)
    for name, found in samples.items():
        company.contenders[name] = contender("", name)
        company.samples["batch16"][name] = found
    return company


def test_ratios_are_taken_in_each_round() -> None:
    company = company_of(
        ours_int8=Samples(rate=[300.0, 100.0, 220.0]),
        ours_bfloat16=Samples(rate=[100.0, 50.0, 100.0]),
        vllm=Samples(rate=[100.0, 100.0, 100.0]),
    )
    report_promises(company)
    report = company.report
    assert report.targets["batch16_over_vllm"].value == 2.2
    assert report.targets["batch16_over_vllm"].met
    assert report.targets["batch16_bf16_over_vllm"].met
    assert set(report.targets) == {promise.name for promise in PROMISES}
    assert report.targets["batch16_over_transformers"].why.startswith("transformers was left out")
    assert report.targets["prefill_over_vllm"].why == "the row prefill was left out"


def test_a_contender_that_was_lost_takes_its_figures_along_and_leaves_the_reason() -> None:
    company = company_of(ours_int8=Samples(rate=[300.0]), vllm=Samples(rate=[100.0]))
    company.lose("vllm", ContenderFailed("the contender vllm failed: out of memory", hint="more memory"))
    report_promises(company)
    target = company.report.targets["batch16_over_vllm"]
    assert target.value is None
    assert target.why == "the contender vllm failed: out of memory"
    assert company.report.notes == ["the contender vllm failed: out of memory; more memory"]
    assert "vllm" not in company.samples["batch16"]


def test_a_contender_that_leaves_tokens_out_has_failed() -> None:
    short = COUNTING.replace("range(batch.output)", "range(batch.output - 1)")
    with ExitStack() as stack:
        company = company_of()
        peer = started(short, stack)
        with pytest.raises(ContenderFailed, match="where each should have 7"):
            company.batch(peer, ROWS["batch16"], output=7, seed=1)


def test_overhead_is_the_share_of_the_busy_time_in_which_nothing_was_computed() -> None:
    times = contenders.StepTimes(10, step_seconds=0.99, compute_seconds=0.95, plan_seconds=0.02, busy_seconds=1.0)
    company = company_of(ours_int8=Samples(rate=[1.0], times=[times]))
    report_overhead(company)
    target = company.report.targets["engine_overhead_share_batch16"]
    assert target.value == pytest.approx(0.05)
    assert company.report.results["batch16_compute_per_step"].value == pytest.approx(95.0)


def test_agreement_says_how_many_answers_begin_as_ours_do() -> None:
    company = company_of(ours_bfloat16=Samples(first_tokens=[1, 2, 3, 4]), vllm=Samples(first_tokens=[1, 2, 3, 9]))
    report_agreement(company)
    assert company.report.results["same_first_token.vllm"].value == 0.75
    assert f"same_first_token.{OURS}bfloat16" not in company.report.results


def test_rows_are_chosen_by_name_and_formats_by_row() -> None:
    rows = choose_rows(["batch16", "prefill"], ["int4", "batch16=bfloat16,int8", "batch64=nf4"])
    assert [(row.name, row.weights) for row in rows] == [("batch16", ("bfloat16", "int8")), ("prefill", ("int4",))]
    assert [row.name for row in choose_rows([], [])] == list(ROWS)
    for names, weights in ((["batch17"], []), ([], ["int3"]), ([], ["batch17=int8"])):
        with pytest.raises(UsageError):
            choose_rows(names, weights)


def test_the_text_for_perplexities_is_long_enough_and_says_nothing_twice() -> None:
    texts = sample_texts(24_000, 1_500)
    assert {len(text) for text in texts} == {1_500}
    assert sum(map(len, texts)) == 24_000
    assert len(set(texts)) == len(texts)
    assert sample_texts(24_000, 1_500) == texts


def test_text_that_is_divided_has_no_paragraph_on_both_sides() -> None:
    some, rest = (text.split("\n\n") for text in divided(4))
    long = {paragraph for paragraph in some if len(paragraph) > 200}
    assert long
    assert long.isdisjoint(rest)
    assert sum(map(len, rest)) > 2 * sum(map(len, some))
