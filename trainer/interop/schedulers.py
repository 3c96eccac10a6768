"""UnCLIPScheduler of diffusers: what it says of a part's diffusion and of how it is sampled.

It is ancestral sampling over evenly spaced timesteps, as ours, with predictions kept in a range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from trainer.diffusion.process import DiffusionConfig

from .settings import Kind, expect

_KIND = Kind(
    "UnCLIPScheduler",
    free={
        "num_train_timesteps": 1000,
        "variance_type": "fixed_small_log",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "prediction_type": "epsilon",
    },
    fixed={"beta_schedule": ("squaredcos_cap_v2", "squaredcos_cap_v2")},
)
_PREDICTS = {"epsilon": "epsilon", "sample": "x0"}
_VARIANCE = {"fixed_small_log": False, "learned_range": True}


class Schedule(NamedTuple):
    """A part's diffusion, and the range in which its predictions are kept (None: in none)."""

    diffusion: DiffusionConfig
    limit: float | None


def read_scheduler(config: Mapping[str, Any]) -> Schedule:
    """Read a scheduler_config.json.

    Raises:
        ValueError: it has what ours cannot express.
    """
    expect(f"{_KIND.name}._class_name", config.get("_class_name"), _KIND.name)
    got = _KIND.read(config)
    for name, known in (("prediction_type", _PREDICTS), ("variance_type", _VARIANCE)):
        if got[name] not in known:
            raise ValueError(
                f"{_KIND.name}.{name}: got {got[name]!r}, expected {' or '.join(known)}"
            )
    diffusion = DiffusionConfig(
        schedule="cosine",
        steps=got["num_train_timesteps"],
        predicts="x0" if got["prediction_type"] == "sample" else "epsilon",
        learned_variance=_VARIANCE[got["variance_type"]],
    )
    return Schedule(diffusion, float(got["clip_sample_range"]) if got["clip_sample"] else None)


def write_scheduler(schedule: Schedule) -> dict[str, Any]:
    """The scheduler_config.json of a part.

    Raises:
        ValueError: theirs cannot express it.
    """
    diffusion = schedule.diffusion
    expect("objective.diffusion.schedule", diffusion.schedule, "cosine")
    expect("objective.diffusion.zero_terminal_snr", diffusion.zero_terminal_snr, False)
    if diffusion.predicts == "v":
        raise ValueError("objective.diffusion.predicts: got 'v', expected 'epsilon' or 'x0'")
    names = {ours: theirs for theirs, ours in _PREDICTS.items()}
    return _KIND.write(
        {
            "num_train_timesteps": diffusion.steps,
            "variance_type": "learned_range" if diffusion.learned_variance else "fixed_small_log",
            "clip_sample": schedule.limit is not None,
            "clip_sample_range": 1.0 if schedule.limit is None else schedule.limit,
            "prediction_type": names[diffusion.predicts],
        }
    )
