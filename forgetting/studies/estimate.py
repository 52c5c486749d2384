"""An estimate of what is left of a plan, from Table 11 of the paper and from the times of finished jobs."""

import statistics
from collections import Counter
from collections.abc import Sequence

from forgetting.studies.jobs import STAGES, Job, class_path, needs_store
from forgetting.studies.results import minutes

MINUTES = {
    "reference": (36, 52),
    "score": (47, 73),
    "full": (205, 347),
    "ignoring": (166, 282),
    "forgetting": (187, 311),
}
"""Table 11: minutes of each stage for the 3B and the 8B model on four L40S."""

FULL_MINUTES = {
    "meta-llama/Llama-3.2-1B": 120,  # §5.1.3: about 2 hours
    "meta-llama/Llama-3.2-3B": 205,
    "meta-llama/Llama-3.1-8B": 347,
    "meta-llama/Llama-2-13b-hf": 490,  # on the line through 3B and 8B
    "Qwen/Qwen2.5-3B": 205,
    "EleutherAI/gpt-neo-2.7B": 205,
}
"""A Full Tokens run of 50,000 examples; other stages take Table 11's fraction of it."""

COST_STAGES = {"reference": "fit", "evaluate_base": "evaluate"}
"""Stages that `cost.json` calls otherwise."""


def paper_minutes(job: Job) -> float | None:
    """Minutes of a job on the paper's machine, by Table 11's fractions; None where it says nothing."""
    backbone = (job.config.get("model") or {}).get("backbone")
    if job.stage not in ("reference", "score", "fit") or backbone not in FULL_MINUTES:
        return None
    method = job.stage
    if job.stage == "fit":
        name = class_path(job.config["model"]["objective"])
        unlearns = name.rsplit(".", 1)[-1] == "Forgetting"
        method = "forgetting" if unlearns else "ignoring" if needs_store(job.config) else "full"
    corpus = job.config["data"]["corpus"]
    scale = corpus["num_reference"] / 10_000 if job.stage == "reference" else corpus["num_train"] / 50_000
    return stage_minutes(backbone, method) * scale


def stage_minutes(backbone: str, stage: str) -> float:
    """Minutes of a stage of MINUTES on four L40S, with the paper's corpus, for a backbone of FULL_MINUTES."""
    full = FULL_MINUTES[backbone]
    size = 1 if full >= FULL_MINUTES["meta-llama/Llama-3.1-8B"] else 0
    return MINUTES[stage][size] / MINUTES["full"][size] * full


def measured_minutes(job: Job) -> float | None:
    """Minutes that a finished job took here; None where nothing says it."""
    return minutes(job.folder, COST_STAGES.get(job.stage, job.stage))


def estimate(left: Sequence[Job], done: Sequence[Job]) -> str:
    """Say how many jobs of each stage are left, and about how long they take.

    A stage that the paper timed takes the paper's minutes, scaled by how fast such stages were here; another one takes
    the mean of its kind here. What neither covers is not counted, and named.
    """
    counts = Counter(job.stage for job in left)
    if not counts:
        return "Nothing is left."
    listed = ", ".join(f"{counts[stage]} {stage}" for stage in STAGES if counts[stage])
    measured = [(job, minutes) for job in done if (minutes := measured_minutes(job)) is not None]
    ratios = [minutes / paper for job, minutes in measured if (paper := paper_minutes(job))]
    scale = statistics.median(ratios) if ratios else 1.0
    total, uncounted = 0.0, list[str]()
    for job in left:
        same = [minutes for other, minutes in measured if other.stage == job.stage]
        if (paper := paper_minutes(job)) is not None:
            total += paper * scale
        elif same:
            total += statistics.fmean(same)
        elif job.stage not in uncounted:
            uncounted.append(job.stage)
    if not total:
        return f"Left: {listed}."
    time = f"{total / 60:,.0f} hours" if total >= 120 else f"{total:,.0f} minutes"
    whose = (
        f"at the speed of {len(measured)} finished stages here" if measured else "on four L40S, by Table 11's fractions"
    )
    missing = [stage for stage in STAGES if stage in uncounted]
    return f"Left: {listed}. About {time} one after another {whose}" + (
        f"; not counted: {', '.join(missing)}." if missing else "."
    )
