"""What is read out of the pictures of one setting, caption by caption."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.findings.figures import Figure, Floats, difference, frechet_figure, mean, share
from trainer.evaluation.pairs import Pairs
from trainer.evaluation.scenes import Verdict, read_scene
from trainer.evaluation.scenes.canvas import SIDE
from trainer.evaluation.scores import verdicts

_SCENES = ("single_all", "pair_all", "relation", "colour", "shape", "background")
_CLIP, _FRECHET = "CLIP score", "Fréchet"


@dataclass(frozen=True)
class Judged:
    """Pictures of some captions, measured."""

    pairs: Pairs
    features: Tensor  # [N, D]
    verdicts: list[Verdict] | None

    @property
    def clip(self) -> Floats:
        """Cosines of picture and caption under the demo's CLIP. [N]"""
        return _cosines(self.features, self.pairs.text_embedding)

    @property
    def names(self) -> tuple[str, ...]:
        """What there is a value of for each caption that asks for it."""
        return (*(_SCENES if self.verdicts is not None else ()), _CLIP)

    def values(self, name: str) -> Floats:
        """The values of a name, shares of what is right or cosines; of captions that ask for it."""
        if name == _CLIP:
            return self.clip
        assert self.verdicts is not None
        told = [_answers(verdict, name) for verdict in self.verdicts]
        return np.array([sum(answers) / len(answers) for answers in told if answers])

    def asking(self, name: str) -> NDArray[np.bool_]:
        """Which captions ask for it. [N]"""
        if name == _CLIP or self.verdicts is None:
            return np.ones(len(self.features), bool)
        return np.array([bool(_answers(verdict, name)) for verdict in self.verdicts])

    def figures(self) -> dict[str, Figure]:
        """Everything there is to tell, by its name."""
        found = {
            name: mean(self.values(name)) if name == _CLIP else share(self.values(name))
            for name in self.names
        }
        found[_FRECHET] = frechet_figure(self.features, self.pairs.image_embedding)
        return found

    def beside(self, other: Judged) -> dict[str, Figure]:
        """The paired differences, this one less the other, of the same captions."""
        found = {name: difference(self.values(name), other.values(name)) for name in self.names}
        true = self.pairs.image_embedding
        found[_FRECHET] = frechet_figure(self.features, true, other.features)
        return found


def judge(pictures: Tensor, features: Tensor, pairs: Pairs) -> Judged:
    """Measure uint8 pictures [N, 3, S, S] and what CLIP sees in them [N, D]."""
    told = None if pairs.truths is None else verdicts(pictures, pairs.truths)
    return Judged(pairs, features, told)


def near(z: Tensor, true: Tensor) -> dict[str, Figure]:
    """How near embeddings [N, D] come to the true ones [N, D], row by row."""
    nearest = (z @ true.T).argmax(dim=1) == torch.arange(len(true))
    return {"cosine": mean(_cosines(z, true)), "recall@1": share(nearest.numpy())}


def places(pictures: Tensor) -> Floats:
    """Where the only object of each picture lies, as fractions of the side: [N, 2], else NaN."""
    found = np.full((len(pictures), 2), np.nan)
    for row, picture in enumerate(pictures.permute(0, 2, 3, 1).contiguous().numpy()):
        objects = read_scene(picture).objects
        if len(objects) == 1:
            found[row] = objects[0].x, objects[0].y
    return found


def spread(placed: Floats) -> Floats:
    """Deviation of places over a caption's K pictures, [K, N, 2] → [M] in pixels of SIDE.

    Captions are left out of which fewer than two pictures have one object.
    """
    seen = (~np.isnan(placed[..., 0])).sum(axis=0)
    deviations = np.nanstd(placed[:, seen > 1], axis=0, ddof=1)  # [M, 2]
    return np.asarray(SIDE * np.sqrt(np.square(deviations).mean(axis=1)), float)


def _cosines(first: Tensor, second: Tensor) -> Floats:
    return np.asarray((first * second[: len(first)]).sum(dim=1).double().numpy(), float)


def _answers(verdict: Verdict, name: str) -> tuple[bool, ...]:
    """What a verdict says under a name; nothing where the caption does not ask for it."""
    single = verdict.relation is None
    match name:
        case "single_all" | "pair_all":
            return (verdict.all_right,) if single == (name == "single_all") else ()
        case "relation":
            return () if verdict.relation is None else (verdict.relation,)
        case "background":
            return (verdict.background,)
        case "colour":
            return verdict.colour
        case _:
            return verdict.shape
