"""What the page of models shows: columns, the cells of models and jobs, and all that is known of one."""

from __future__ import annotations

from rich.text import Text

from ...schemas.models import InstalledModel, StoreJob, StoreJobState, StoreListing, StoreWork
from ..census import short_size, short_time
from ..widgets.live_table import Column
from ..widgets.safe_text import plain

BAR_WIDTH = 16

MODELS = (
    Column("model"),
    Column("size", right=True, show=short_size, width=6),
    Column("state", width=9),
    Column("license"),
    Column("files", right=True),
    Column("description"),
)
JOBS = (
    Column("job", right=True),
    Column("work"),
    Column("model"),
    Column("state"),
    Column("progress", width=BAR_WIDTH + 6),
    Column("stage"),
    Column("of", right=True),
    Column("time", right=True, show=short_time, width=7),
    Column("left", right=True, show=short_time, width=7),
)


def installed_cells(model: InstalledModel, marked: bool) -> tuple[str | int, ...]:
    return (
        model.name,
        model.size,
        "here \u2713" if marked else "here",
        model.license,
        len(model.files),
        model.description,
    )


def rows_to_be_had(listing: StoreListing) -> dict[str, tuple[str | int | Text | None, ...]]:
    """What could be pulled by name, and what is just being made."""
    rows: dict[str, tuple[str | int | Text | None, ...]] = {
        known.name: (known.name, known.size, "to pull", known.license, None, known.description)
        for known in listing.known
    }
    there = {model.name for model in listing.models}
    for job in listing.jobs:
        if job.state is StoreJobState.RUNNING and job.name not in there:
            size = job.total if job.work is StoreWork.PULL else None
            rows[job.name] = (job.name, size or None, "coming", "", None, f"{job.work} of {job.model}")
    return rows


def job_cells(job: StoreJob, now: float) -> tuple[str | int | float | None, ...]:
    running = job.state is StoreJobState.RUNNING
    took = (now if running else job.ended) - job.started
    part = job.done / job.total if job.total else (0.0 if running or job.error else 1.0)
    left = took * (1 - part) / part if running and part > 0.02 else None
    of = ""
    if job.total:
        counts = (job.done, job.total)
        done, total = map(short_size, counts) if job.work is StoreWork.PULL else map(str, counts)
        of = f"{done} of {total}"
    what = job.model if job.model == job.name else f"{job.model} \u2192 {job.name}"
    return (job.job, job.work.value, what, job.state.value, bar(part), job.stage, of, int(took), left)


def bar(part: float, width: int = BAR_WIDTH) -> str:
    """`████░░░░  50%`."""
    done = round(min(max(part, 0.0), 1.0) * width)
    return "\u2588" * done + "\u2591" * (width - done) + f" {100 * part:3.0f}%"


def about_model(model: InstalledModel) -> Text:
    text = plain(f"{model.description}\n")
    for label, value in (("license", model.license), ("from", model.source), ("size", f"{model.size:,} bytes")):
        text.append(f"{label:<9}", "dim")
        text.append_text(plain(f"{value}\n"))
    text.append("\n")
    for file in model.files:
        text.append_text(plain(f"{short_size(file.size):>6}  {file.name}\n"))
        text.append_text(plain(f"        {file.sha256}\n", "dim"))
    return text


def about_job(job: StoreJob) -> Text:
    text = plain(f"{job.work} {job.model}, {job.state}\n")
    if job.error is not None:
        text.append_text(plain(f"\n{job.error.message}\n", "bold"))
        text.append_text(plain(f"{job.error.hint}\n"))
        if job.error.detail:
            text.append_text(plain(f"\n{job.error.detail}", "dim"))
    report = job.report
    if report is not None:
        for label, value in (
            ("method", f"{report.method}, {report.bits} bits in groups of {report.group_size}"),
            ("size", f"{short_size(report.bytes_before)} \u2192 {short_size(report.bytes_after)}"),
            ("bits", f"{report.bits_per_weight:.2f} a weight"),
            ("perplexity", f"{report.perplexity_before:.2f} \u2192 {report.perplexity_after:.2f}"),
            ("agreement", f"{100 * report.token_agreement:.1f}% of next tokens"),
            ("tokens", f"{report.calibration_tokens:,} of {report.calibration}"),
        ):
            text.append(f"\n{label:<11}", "dim")
            text.append_text(plain(value))
    return text
