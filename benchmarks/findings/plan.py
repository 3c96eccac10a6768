"""Which pictures the comparisons need, of how many captions each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from benchmarks.findings.drawings import Drawing

GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0)
FEWER = (1.0, 2.0, 4.0)  # of the decoder without z_i, and of the prior
TOGETHER = 4  # pictures of one caption whose variety is measured
USUAL = "z_i of the diffusion prior"


class Counts(NamedTuple):
    """Captions of each comparison."""

    captions: int = 256
    swept: int = 128
    varied: int = 48
    candidates: int = 8  # pictures of one caption to choose from
    enlarged: int = 64  # true pictures of each upsampler

    def within(self, pairs: int) -> Counts:
        """No more captions than there are."""
        captions, swept, varied, candidates, enlarged = self
        own = [min(count, pairs) for count in (captions, swept, varied)]
        return Counts(own[0], own[1], own[2], candidates, min(enlarged, pairs))


@dataclass(frozen=True)
class Plan:
    """What is compared; arms whose network is not among `extras` are left out."""

    usual: Drawing
    counts: Counts
    extras: tuple[str, ...]

    def conditions(self) -> dict[str, Drawing]:
        """What the decoder is given in the place of z_i (paper section 5.1), the usual first."""
        usual = self.usual
        found = {USUAL: usual}
        if "ar_prior" in self.extras:
            found["z_i of the AR prior"] = replace(usual, source="ar_prior")
        if "decoder_text" in self.extras:
            trained = replace(usual, source="text", decoder="decoder_text")
            found["z_t, decoder trained for it"] = trained
        found["z_t in the place of z_i"] = replace(usual, source="text")
        found["none: the caption alone"] = replace(usual, source="none")
        found["the true z_i"] = replace(usual, source="true")
        return found

    def sweeps(self) -> dict[str, dict[float, Drawing]]:
        """Scales of guidance: of the decoder with z_i, of the decoder without it, of the prior."""
        usual, alone = self.usual, replace(self.usual, source="none")
        return {
            "the decoder's guidance": {s: replace(usual, guidance=s) for s in GUIDANCE},
            "the decoder's, the caption alone": {s: replace(alone, guidance=s) for s in FEWER},
            "the prior's guidance": {s: replace(usual, prior_guidance=s) for s in FEWER},
        }

    def count(self, drawing: Drawing) -> int:
        """Captions of a drawing."""
        if drawing in self.conditions().values():
            return self.counts.captions
        if drawing.seed == 0 or replace(drawing, seed=0) == self.usual:
            return self.counts.swept
        return self.counts.varied

    def drawings(self) -> list[Drawing]:
        """All, each once."""
        found = list(self.conditions().values())
        for sweep in self.sweeps().values():
            found += [replace(d, seed=seed) for d in sweep.values() for seed in range(TOGETHER)]
        found += [replace(self.usual, seed=seed) for seed in range(self.counts.candidates)]
        return list(dict.fromkeys(found))
