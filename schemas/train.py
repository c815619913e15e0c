"""Training: what a run is made of, what it says on its way, and what its shards are asked.

A configuration is one value, the same in a TOML file, in a message, and in a job's folder. Each group of settings says
what builds the thing it configures.
"""

from __future__ import annotations

import enum

import msgspec

from .base import ErrorInfo, Message, Request, StreamRequest


class Task(enum.StrEnum):
    SFT = "sft"
    """Next tokens where the data's loss mask says so: chats, tool use, and documents, which carry loss all over."""
    DPO = "dpo"
    ORPO = "orpo"
    SIMPO = "simpo"
    KTO = "kto"
    REWARD = "reward"


class Method(enum.StrEnum):
    FULL = "full"
    LORA = "lora"
    QLORA = "qlora"


class Packing(enum.StrEnum):
    PACKED = "packed"
    """Samples lie end to end; attention and positions stay within each."""
    SORTED = "sorted"
    """Samples of like lengths are rows of one batch, padded to the longest."""


class LoraSettings(msgspec.Struct, frozen=True):
    """As PEFT's `LoraConfig`. `targets`: ends of module names, or `all-linear`."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)
    dora: bool = False
    rslora: bool = False


class PreferenceSettings(msgspec.Struct, frozen=True):
    """`beta`: how strongly the model is held to the reference (DPO, KTO), the weight of the odds ratio (ORPO), the
    scale of rewards (SimPO). `margin`: SimPO's target margin over beta. `label_smoothing`: the share of pairs that is
    taken to be the wrong way round (DPO). `sft`: the weight of the chosen answer's own loss beside DPO's or SimPO's."""

    beta: float = 0.1
    margin: float = 0.5
    label_smoothing: float = 0.0
    sft: float = 0.0


class BatchSettings(msgspec.Struct, frozen=True):
    """`samples`: of one optimizer step, over all shards. `max_tokens`: of one sample, 0 for the model's context length.
    `micro_tokens`: that go through the model at once on one shard, 0 to choose by the memory that is free."""

    samples: int = 16
    max_tokens: int = 1024
    micro_tokens: int = 0
    packing: Packing = Packing.PACKED
    too_long: str = "truncate"
    skip_bad: bool = False
    template: str = ""


class OptimizerSettings(msgspec.Struct, frozen=True):
    """AdamW and its schedule. `warmup`: a share of all steps below 1, else a number of steps. `min_lr`: what is left of
    `lr` at the end, as a share. `decay`: the share of all steps in which `wsd` goes down. `bits`: of the moments, 32 or
    8. `ema`: the decay of an average of the weights that is saved in their place, 0 for none. `stochastic_rounding`:
    16-bit weights without a float32 master."""

    lr: float = 2e-4
    schedule: str = "cosine"
    warmup: float = 0.03
    min_lr: float = 0.0
    decay: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    bits: int = 32
    paged: bool = False
    ema: float = 0.0
    stochastic_rounding: bool = False


class ShardSettings(msgspec.Struct, frozen=True):
    """`count` processes share the work; `zero`: what they share, 1 optimizer state, 2 also gradients, 3 also
    parameters. `sequence_parallel` of them share each sequence. `labels`: of the nodes they go to; with none, processes
    of the coordinator's machine. `min_count`: as few as the run may go on with when nodes are lost."""

    count: int = 1
    zero: int = 1
    offload: bool = False
    sequence_parallel: int = 1
    labels: tuple[str, ...] = ()
    min_count: int = 1


class ComputeSettings(msgspec.Struct, frozen=True):
    """`precision`: float32, bfloat16, float16 or auto. `checkpointing` of activations: none, full (all of a layer but
    its input is computed again), or selective (so in every second layer). `device`: cpu, cuda or auto. `threads`: of a
    shard, 0 for its share of the machine's. `deterministic`: a run that goes on from a checkpoint ends in the very bits
    of one that never stopped."""

    precision: str = "auto"
    checkpointing: str = "none"
    device: str = "auto"
    threads: int = 0
    deterministic: bool = True


class CheckpointSettings(msgspec.Struct, frozen=True):
    """Every so many steps (0: at the end alone), the last `keep` and the best by evaluation loss."""

    every: int = 100
    keep: int = 2
    keep_best: bool = True


class EvaluationSettings(msgspec.Struct, frozen=True):
    """On `data`, or on a `share` of the training data that is then not trained on. `patience`: evaluations without a
    better loss after which the run ends, 0 for never."""

    data: str = ""
    share: float = 0.0
    every: int = 0
    samples: int = 256
    patience: int = 0


class SampleSettings(msgspec.Struct, frozen=True):
    """Every so many steps the model answers these prompts."""

    prompts: tuple[str, ...] = ()
    every: int = 0
    max_tokens: int = 64


class GuardSettings(msgspec.Struct, frozen=True):
    """A step whose loss or gradient is not finite, or whose gradient's norm is over `spike` times its running median
    (0: not looked at), changes nothing and is reported; after `max_skips` in a row the run fails."""

    spike: float = 0.0
    max_skips: int = 20


class HookSettings(msgspec.Struct, frozen=True):
    """`kind`: a class as `package.module:Class`; `options`: its configuration, JSON."""

    kind: str
    options: str = "{}"


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`model`: a name of the store, or a path. `data`: as `callboard data check` takes it. `out`: the folder for what
    comes of it. `trainable`, `frozen`: with the method `full`, patterns (as of `fnmatch`) of parameter names; all are
    trained where both are empty. `steps`: 0 for `epochs` passes over the data."""

    model: str
    data: str
    out: str
    task: Task = Task.SFT
    method: Method = Method.LORA
    trainable: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    steps: int = 0
    epochs: float = 1.0
    seed: int = 0
    tensorboard: bool = True
    lora: LoraSettings = LoraSettings()
    preference: PreferenceSettings = PreferenceSettings()
    batch: BatchSettings = BatchSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    shards: ShardSettings = ShardSettings()
    compute: ComputeSettings = ComputeSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    samples: SampleSettings = SampleSettings()
    guards: GuardSettings = GuardSettings()
    hooks: tuple[HookSettings, ...] = ()


class TrainProgress(Message, frozen=True, kw_only=True, tag="train.progress"):
    """An optimizer step that was taken, published on `topic.train.progress.<job>` too.

    `loss`: the mean over the step's tokens with loss; of preferences, over its pairs. `grad_norm` before clipping. Each
    is none where it was no finite number.
    `tokens`: of the step, those without loss too. `mfu`: the share of the device's measured matrix rate, 0 where it was
    not measured. `skipped`: why nothing was changed, empty where it was. `metrics`: what a task has beside its loss.
    """

    job: str
    step: int
    num_steps: int
    loss: float | None
    lr: float
    grad_norm: float | None
    tokens: int
    loss_tokens: int
    tokens_per_s: float
    memory_bytes: int
    eta_s: float
    mfu: float = 0.0
    skipped: str = ""
    metrics: tuple[tuple[str, float], ...] = ()


class TrainEvaluated(Message, frozen=True, tag="train.evaluated"):
    job: str
    step: int
    loss: float
    best: bool


class TrainSampled(Message, frozen=True, tag="train.sampled"):
    """What the model answers to a prompt at this step."""

    job: str
    step: int
    prompt: str
    text: str


class TrainCheckpointed(Message, frozen=True, tag="train.checkpointed"):
    job: str
    step: int
    path: str
    seconds: float


class TrainNote(Message, frozen=True, tag="train.note"):
    """What people should know: shards that died, a new number of them, samples left out."""

    job: str
    step: int
    text: str


TrainEvent = TrainProgress | TrainEvaluated | TrainSampled | TrainCheckpointed | TrainNote


class JobState(enum.StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TrainJob(Message, frozen=True, kw_only=True, tag="train.job"):
    """`folder`: the job's own, with its events and checkpoints; `out`: what came of it, once it is finished. `ended`:
    when it was over or paused, in seconds since 1970, 0 while it is not."""

    job: str
    state: JobState
    folder: str
    out: str
    model: str
    data: str
    step: int = 0
    num_steps: int = 0
    loss: float = 0.0
    started: float = 0.0
    error: ErrorInfo | None = None
    ended: float = 0.0


class TrainJobs(Message, frozen=True, tag="train.jobs"):
    jobs: tuple[TrainJob, ...]


class RunTraining(Request[TrainJob], frozen=True, tag="train.run"):
    """Start a run, answered once it is written down: from then on it is finished whatever dies. `job`: its name, made
    up where it is empty; a job that is there already is answered as it is."""

    config: TrainConfig
    job: str = ""


class ListTraining(Request[TrainJobs], frozen=True, tag="train.list"):
    """The jobs, the latest last."""


class AskTraining(Request[TrainJob], frozen=True, tag="train.ask"):
    job: str


class TrainDrawing(Message, frozen=True, tag="train.drawing"):
    """`svg`: an image of the curves, empty where no step was taken yet."""

    svg: str = ""


class DrawTraining(Request[TrainDrawing], frozen=True, tag="train.draw"):
    """Draw what jobs measured so far, over each other where they are several.

    `smoothing`: from 0 to below 1; the values as they are lie faint behind what is smoothed. `log`: losses and gradient
    norms on a logarithmic axis.
    """

    jobs: tuple[str, ...]
    smoothing: float = 0.8
    log: bool = False


class DataProblem(msgspec.Struct, frozen=True):
    """A record that cannot be used: its line, and why."""

    line: int
    reason: str


class CheckedFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at the beginning of a file found. `complete`: that was all of it.

    `format` is empty where none was recognised. `kinds`: conversation, document, preference. `num_too_long`:
    samples over the limit of tokens; those three are 0 where no model was named. `sample`: the first one as text,
    what carries loss between ⟦ and ⟧ where a model was named. `problems`: the first of `num_bad`.
    """

    file: str
    format: str = ""
    container: str = ""
    complete: bool = False
    num_records: int = 0
    num_samples: int = 0
    num_bad: int = 0
    kinds: tuple[str, ...] = ()
    num_tokens: int = 0
    num_loss_tokens: int = 0
    num_too_long: int = 0
    sample: str = ""
    problems: tuple[DataProblem, ...] = ()


class DataChecked(Message, frozen=True, tag="train.data_checked"):
    """`unfetched`: data sets of a hub, which are fetched when the run begins and were not looked at."""

    files: tuple[CheckedFile, ...]
    unfetched: tuple[str, ...] = ()


class CheckData(Request[DataChecked], frozen=True, kw_only=True, tag="train.check_data"):
    """Look at training data while a run is being set up, where the run would read it.

    `data` as in `TrainConfig`. At most `max_records` of each file are read, and for at most `seconds` in all, so the
    answer comes while somebody waits for it. With `model` they are rendered and counted in tokens, against
    `max_tokens` (0: no limit). `task`: records that it cannot learn from count as bad. Errors: `data.*`, `models.*`.
    """

    data: str
    model: str = ""
    task: Task = Task.SFT
    template: str = ""
    max_tokens: int = 0
    max_records: int = 500
    seconds: float = 5.0


class PauseTraining(Request[TrainJob], frozen=True, tag="train.pause"):
    """Answered when its checkpoint is written and its shards have ended."""

    job: str


class ResumeTraining(Request[TrainJob], frozen=True, tag="train.resume"):
    """Go on with a run that is paused, failed or cancelled from its last checkpoint."""

    job: str


class CancelTraining(Request[TrainJob], frozen=True, tag="train.cancel"):
    """End a run; its checkpoints stay."""

    job: str


class FollowTraining(StreamRequest[TrainEvent, TrainJob], frozen=True, tag="train.follow"):
    """The run's events after step `after`, from its first to its last, answered with how it ended or stopped."""

    job: str
    after: int = -1


class ShardReady(Message, frozen=True, tag="train.shard_ready"):
    """`step`: that were taken before."""

    step: int
    num_steps: int


class ShardPlace(Message, frozen=True, tag="train.shard_place"):
    """Where a shard is: an address that others reach it at, a port that is free there, and which machine it is."""

    host: str
    port: int
    machine: str


class AskShardPlace(Request[ShardPlace], frozen=True, tag="train.ask_shard_place"):
    """Asked of every shard of a group before it is started: they meet at rank 0's, and share a machine's threads and
    cards with those that are on it too."""


class StartShard(Request[ShardReady], frozen=True, kw_only=True, tag="train.start_shard"):
    """Load the model and join the group that meets at `host`:`port`; then go on from `checkpoint`, a folder, or begin.

    A shard is started once in its life: a new group is made of new processes. Asked again while it starts, after the
    bus was away say, it answers the same. `attempt`: the group's number, higher than those of all before it.
    `local_rank` of `local_count` shards on its machine.
    """

    config: TrainConfig
    job: str
    folder: str
    rank: int
    world_size: int
    host: str
    port: int
    checkpoint: str = ""
    attempt: int = 0
    local_rank: int = 0
    local_count: int = 1


class ShardEnd(enum.StrEnum):
    FINISHED = "finished"
    STOPPED = "stopped"


class ShardEnded(Message, frozen=True, tag="train.shard_ended"):
    how: ShardEnd
    step: int


class RunShard(StreamRequest[TrainEvent, ShardEnded], frozen=True, tag="train.run_shard"):
    """Train to the end, or until `StopShard`. Only rank 0 has anything to say on the way. Asked again, it goes on to
    tell from the event after the first `after` of this shard; training does not depend on who listens."""

    after: int = 0


class StopShard(Message, frozen=True, tag="train.stop_shard"):
    """Told to rank 0: the group ends together after the step in hand. `checkpoint`: and writes one."""

    checkpoint: bool = True
