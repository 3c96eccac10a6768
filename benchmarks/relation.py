"""How a relation gets from z_i into a picture: `python -m benchmarks.relation runs/demo`.

Of a finished demo of scenes. CLIP is asked whether a true z_i is nearer to its own caption
than to those that say another relation of the same objects. The decoder draws all held-out and
unseen pairs, and some single objects, by their true z_i and by the prior's; the verifier reads its
pictures after bicubic enlargement, so that no upsampler has a part in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from base.progress import Progress
from benchmarks.findings.figures import mean, share
from benchmarks.findings.judging import judge, near
from benchmarks.findings.tables import Row, Table
from data_pipeline.schema.captions import RELATION_PHRASES
from trainer.diffusion.degradations import enlarge
from trainer.evaluation.pairs import Pairs, distinct, read_pairs
from trainer.evaluation.scenes.canvas import SIDE
from trainer.objectives.conditions import to_pixels
from trainer.sampling.cascade import Cascade, load_cascade
from trainer.sampling.config import load_cascade_config

_SINGLES = 128
_BATCH = 32
_ORDER = ("left of", "above", "right of", "below")  # the opposite of each is two further on
_OTHERS = {"the opposite": 2, "the other axis": 1, "the other axis, turned": 3}


def contradicted(caption: str, relation: str, steps: int) -> str:
    """A caption that says another relation: the one so many steps further in a fixed order."""
    phrase = max((each for each in RELATION_PHRASES[relation] if each in caption), key=len)
    index = _ORDER.index(relation)
    # Left and above are one order of two objects, right and below the other.
    other = _ORDER[(index + (steps if index % 2 == 0 else -steps)) % len(_ORDER)]
    return caption.replace(phrase, RELATION_PHRASES[other][0], 1)


def preferences(cascade: Cascade, pairs: Pairs) -> Table:
    """Whether a true z_i is nearer to its own caption, and by how much, over the pairs."""
    own, rows = pairs.text_embedding, []
    assert pairs.truths is not None
    for name, steps in _OTHERS.items():
        told = [
            contradicted(caption, str(truth.relation), steps)
            for caption, truth in zip(pairs.captions, pairs.truths, strict=True)
        ]
        batches = (told[first : first + _BATCH] for first in range(0, len(told), _BATCH))
        other = torch.cat([cascade.captions(batch).embedding for batch in batches]).cpu()
        margin = (pairs.image_embedding * (own - other)).sum(dim=1).double().numpy()
        rows.append(Row(name, {"own preferred": share(margin > 0), "cosine": mean(margin)}))
    return Table("Cosine of a true z_i with its own caption", "less that with", rows)


def drawings(cascade: Cascade, sets: dict[str, Pairs]) -> Table:
    """What the verifier reads in the decoder's pictures, by the true z_i and by the prior's."""
    rows = []
    with Progress("pictures", 2 * sum(map(len, sets.values())), "pictures") as bar:
        for name, pairs in sets.items():
            for source in ("true", "the prior's"):
                z, pictures = _drawn(cascade, pairs, source == "true", bar)
                found = judge(pictures, torch.zeros_like(z), pairs)
                asked = [n for n in found.names if n != "CLIP score" and len(found.values(n))]
                figures = {each: share(found.values(each)) for each in asked}
                figures |= near(z, pairs.image_embedding)
                rows.append(Row(f"{name}, {source} z_i", figures))
    return Table("The decoder's pictures after bicubic enlargement", "drawn", rows)


def _drawn(cascade: Cascade, pairs: Pairs, true: bool, bar: Progress) -> tuple[Tensor, Tensor]:
    made, given = [], []
    for first in range(0, len(pairs), _BATCH):
        few = pairs.take(range(first, min(first + _BATCH, len(pairs))))
        random, text = few.random(0, cascade.device), cascade.captions(few.captions)
        z = few.image_embedding.to(cascade.device) if true else cascade.sample_prior(text, random)
        small = cascade.decode(z, text, random, True)
        made.append(to_pixels(enlarge(small, SIDE // small.shape[-1])).cpu())
        given.append(z.cpu())
        bar.advance(len(few))
    return torch.cat(given), torch.cat(made)


def measure(demo: Path) -> Iterator[Table]:
    """The tables of a demo."""
    cascade = load_cascade(load_cascade_config(demo))
    heldout, unseen = (distinct(read_pairs(demo / "data" / name)) for name in ("heldout", "unseen"))
    pairs = _of(heldout, 2)
    yield preferences(cascade, pairs)
    singles = _of(heldout, 1)
    singles = singles.take(range(min(_SINGLES, len(singles))))
    yield drawings(cascade, {"pairs": pairs, "unseen pairs": _of(unseen, 2), "single": singles})


def _of(pairs: Pairs, objects: int) -> Pairs:
    assert pairs.truths is not None
    return pairs.take([i for i, truth in enumerate(pairs.truths) if len(truth.objects) == objects])


def main(words: list[str]) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relation", description=__doc__)
    parser.add_argument("demo", type=Path, help="the folder of a finished `unclip demo`")
    for table in measure(parser.parse_args(words).demo):
        print(table.markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
