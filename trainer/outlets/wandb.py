"""Weights & Biases, where the config asks for it; the package is an extra."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from base.errors import UserError
from trainer.config import WandbConfig


class WandB:
    """One W&B run per RUN: every session goes on with the same one."""

    def __init__(self, run: Path, settings: WandbConfig, config: dict[str, Any]) -> None:
        """Raises UserError when the package is not there."""
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise UserError(
                "log.wandb: the package wandb is not installed; "
                "run: pip install -c constraints.txt -e '.[wandb]'"
            ) from error
        self._image: Any = wandb.Image
        self._run: Any = wandb.init(
            project=settings.project,
            name=run.absolute().name,
            id=hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:16],
            mode=settings.mode,
            dir=str(run),
            config=config,
            resume="allow" if settings.mode == "online" else None,
        )
        # A picture comes after later lines, and a resumed run tells some lines again.
        self._run.define_metric("*", step_metric="samples")

    def write(self, samples: int, values: Mapping[str, float]) -> None:
        self._run.log({"samples": samples, **values})

    def show(self, picture: Tensor, samples: int) -> None:
        shown = picture.permute(1, 2, 0).cpu().numpy()
        self._run.log({"samples": samples, "pictures": self._image(shown)})

    def close(self) -> None:
        self._run.finish()
