"""Requests of each use: what the pictures will show, and how those at some positions are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.errors import UserError
from base.files import sha256_file
from base.hashing import stable_hash
from trainer.rng import SampleRandom

from . import uses
from .cascade import Cascade
from .inputs import box_mask, fitted, read_mask, read_picture, require_size, squared_mask
from .painting import inpaint, outpaint
from .principal import principal_directions
from .requests import Drawn, Request


def of_text(
    captions: Sequence[str], seed: int, candidates: int = 1, negative: str | None = None
) -> Request:
    """A picture a caption; of several candidates the one whose z_i is nearest to the caption's."""

    def draw(cascade: Cascade, positions: Sequence[int]) -> Drawn:
        some = [captions[position] for position in positions]
        drawn = [
            uses.text(cascade, some, _candidate(cascade, seed, number, positions), negative)
            for number in range(candidates)
        ]
        if cascade.image is None and candidates == 1:  # a CLIP that reads captions alone
            return Drawn(drawn[0])
        z_t = cascade.captions(some).embedding
        near = torch.stack([_cosines(cascade, each, z_t) for each in drawn]).cpu()  # [N, B]
        best = near.argmax(dim=0)  # [B]
        rows = torch.arange(len(some))
        told = zip(best.tolist(), near[best, rows].tolist(), strict=True)
        notes = [{"candidate": chosen, "similarity": round(value, 4)} for chosen, value in told]
        return Drawn(torch.stack(drawn)[best, rows], notes)

    settings: dict[str, Any] = {"candidates": candidates, "negative": negative}
    return Request("text", seed, [{"caption": text} for text in captions], draw, settings)


def of_variations(
    pictures: Sequence[Path], count: int, eta: float, invert: bool, seed: int
) -> Request:
    """`count` pictures of the same content for each."""
    shown = [path for path in pictures for _ in range(count)]

    def draw(cascade: Cascade, positions: Sequence[int]) -> Drawn:
        given = _pictures(cascade, [shown[position] for position in positions])
        random = cascade.random(seed, positions)
        return Drawn(uses.variations(cascade, given, random, eta, invert))

    settings = {"eta": eta, "invert": invert}
    return Request("variations", seed, _of_files(shown), draw, settings, columns=max(count, 2))


def of_reconstruction(pictures: Sequence[Path], seed: int) -> Request:
    """Each picture again."""

    def draw(cascade: Cascade, positions: Sequence[int]) -> Drawn:
        given = _pictures(cascade, [pictures[position] for position in positions])
        return Drawn(uses.reconstruct(cascade, given, cascade.random(seed, positions)))

    return Request("reconstruct", seed, _of_files(pictures), draw)


def of_interpolation(start: Path, end: Path, frames: int, seed: int) -> Request:
    """Pictures between two; all share the upsamplers' noise."""
    shares = _shares(frames, 1.0)
    first, last = _of_files([start, end])

    def draw(cascade: Cascade, positions: Sequence[int]) -> Drawn:
        count = len(positions)
        one, other = (_pictures(cascade, [path] * count) for path in (start, end))
        random = cascade.random(seed, [0] * count)
        return Drawn(uses.interpolate(cascade, one, other, shares[list(positions)], random))

    about = _of_shares(shares)
    return Request("interpolate", seed, about, draw, {"start": first, "end": last}, columns=frames)


def of_text_interpolation(start: str, end: str, frames: int, seed: int) -> Request:
    """Pictures between two captions; all share their noise."""
    shares = _shares(frames, 1.0)

    def draw(cascade: Cascade, positions: Sequence[int]) -> Drawn:
        count = len(positions)
        random = cascade.random(seed, [0] * count)
        between = shares[list(positions)]
        captions = ([start] * count, [end] * count)
        return Drawn(uses.interpolate_texts(cascade, *captions, between, random))

    about = _of_shares(shares)
    return Request("interpolate", seed, about, draw, {"start": start, "end": end}, columns=frames)


def of_text_diff(
    picture: Path, before: str, after: str, frames: int, most: float, seed: int
) -> Request:
    """A picture on its way from one caption to another."""
    if before.strip() == after.strip():
        raise UserError(f"captions: got {before!r} twice, expected a change")
    shares = _shares(frames, most)

    def draw(cascade: Cascade, positions: Sequence[int]) -> Drawn:
        count = len(positions)
        given = _pictures(cascade, [picture] * count)
        random = cascade.random(seed, [0] * count)
        captions = ([before] * count, [after] * count)
        some = shares[list(positions)]
        return Drawn(uses.text_diff(cascade, given, *captions, some, random))

    about = _of_shares(shares)
    settings = {**_of_files([picture])[0], "before": before, "after": after}
    return Request("text-diff", seed, about, draw, settings, columns=frames)


def of_inpainting(
    picture: Path, where: Path | tuple[int, int, int, int], caption: str, count: int, seed: int
) -> Request:
    """`count` pictures of which a part is new: a mask's, or a box (left, top, right, bottom)."""
    whole = read_picture(picture)
    hole = read_mask(where, whole) if isinstance(where, Path) else box_mask(where, whole)

    def draw(cascade: Cascade, positions: Sequence[int]) -> Drawn:
        side, rows = cascade.side, len(positions)
        known = fitted(whole[None], side).expand(rows, -1, -1, -1)
        new = squared_mask(hole, side).expand(rows, 1, -1, -1)
        random = cascade.random(seed, positions)
        return Drawn(inpaint(cascade, known, new, [caption] * rows, random))

    about = [{"caption": caption}] * count
    told = sha256_file(where) if isinstance(where, Path) else list(where)
    settings = {**_of_files([picture])[0], "mask": told}
    return Request("inpaint", seed, about, draw, settings)


def of_outpainting(
    picture: Path, caption: str | None, size: tuple[int, int], count: int, seed: int
) -> Request:
    """`count` pictures of `size` (height, width) around a picture."""
    require_size(size)
    whole = read_picture(picture)

    def draw(cascade: Cascade, positions: Sequence[int]) -> Drawn:
        rows = len(positions)
        known = fitted(whole[None], cascade.side).expand(rows, -1, -1, -1)
        captions = None if caption is None else [caption] * rows
        return Drawn(outpaint(cascade, known, size, captions, cascade.random(seed, positions)))

    about = [{"caption": caption or picture.name}] * count
    settings = {**_of_files([picture])[0], "height": size[0], "width": size[1]}
    return Request("outpaint", seed, about, draw, settings, columns=2)


def of_pca(pictures: Sequence[Path], data: Path, dims: Sequence[int], seed: int) -> Request:
    """Each picture with more and more of CLIP's principal directions left."""
    mean, directions = principal_directions(data, max(dims))
    shown = [(path, count) for path in pictures for count in dims]

    def draw(cascade: Cascade, positions: Sequence[int]) -> Drawn:
        made = []
        for position in positions:  # each with directions of its own
            path, count = shown[position]
            given = _pictures(cascade, [path])
            random = cascade.random(seed, [position // len(dims)])
            made.append(uses.pca(cascade, given, mean, directions[:count], random))
        return Drawn(torch.cat(made))

    told = _of_files([path for path, _ in shown])
    about = [
        {**item, "caption": f"{count} of {item['caption']}", "directions": count}
        for item, (_, count) in zip(told, shown, strict=True)
    ]
    return Request("pca", seed, about, draw, {"data": str(data)}, columns=len(dims))


def _cosines(cascade: Cascade, pictures: Tensor, z_t: Tensor) -> Tensor:
    """Of pictures as CLIP sees them with captions' embeddings. [B]"""
    space = cascade.space
    return (space.directions(cascade.look(pictures)) * space.directions(z_t)).sum(-1)


def _candidate(cascade: Cascade, seed: int, number: int, positions: Sequence[int]) -> SampleRandom:
    """The first candidate is the picture that there is without others."""
    return cascade.random(stable_hash(seed, "candidate", number) if number else seed, positions)


def _pictures(cascade: Cascade, paths: Sequence[Path]) -> Tensor:
    """Squares as large as the cascade's pictures. uint8 [B, 3, S, S]"""
    read = {path: fitted(read_picture(path)[None], cascade.side)[0] for path in set(paths)}
    return torch.stack([read[path] for path in paths])


def _of_files(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Files by their contents: another picture of the same name is another request."""
    hashes = {}
    for path in set(paths):
        read_picture(path)  # before anything else: what cannot be read is told at once
        hashes[path] = sha256_file(path)
    return [{"caption": path.name, "picture": hashes[path]} for path in paths]


def _shares(frames: int, most: float) -> Tensor:
    return torch.linspace(0, most, frames)


def _of_shares(shares: Tensor) -> list[dict[str, Any]]:
    return [{"caption": f"{share:.2f}", "share": share} for share in shares.tolist()]
