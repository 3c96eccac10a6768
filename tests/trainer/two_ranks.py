"""A checkpoint as two ranks would have written it, made from one of a single rank."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.checkpoint.manifest import MANIFEST, join_ranges, rank_file, sealed, slice_key
from trainer.checkpoint.read import SliceReader, open_checkpoint
from trainer.checkpoint.tensors import entry_of, write_tensors
from trainer.engine.base import owned_range


def cut_in_two(folder: Path) -> None:
    """Give each of two ranks a half of every tensor."""
    checkpoint = open_checkpoint(folder)
    manifest, reader = checkpoint.manifest, SliceReader(checkpoint)
    entries: list[list[Any]] = [[], []]
    pieces: list[dict[str, Any]] = [{}, {}]
    for name, record in manifest.tensors.items():
        for rank in range(2):
            start, count = owned_range(record.count, rank, 2)
            pieces[rank][name] = (record.shape, start, count)
            entries[rank] += [
                entry_of(slice_key(kind, name), reader(kind, name, start, count))
                for kind in manifest.kinds
            ]
    entries[0] += [
        entry_of(slice_key("fixed", name), reader.fixed(name).reshape(-1))
        for name in manifest.fixed
    ]
    files = {name: file for name, file in manifest.files.items() if "slices" not in name}
    for rank in range(2):
        files[rank_file(rank)] = write_tensors(folder / rank_file(rank), entries[rank])
    tensors = join_ranges(pieces)
    changed = replace(manifest, world_size=2, tensors=tensors, files=files)
    (folder / MANIFEST).write_text(json.dumps(sealed(changed.to_json())) + "\n")
