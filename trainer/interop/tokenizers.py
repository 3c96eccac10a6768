"""CLIP's vocabulary in the files of transformers' CLIPTokenizer, compared with open_clip's.

Ours is open_clip's tokenizer, which knows no other vocabulary; captions are filled up with id 0,
which is "!", to 77 tokens, as those of Karlo are.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from base.errors import UserError
from base.files import read_json, write_json

_SPECIAL = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}


def require_clip_vocabulary(folder: Path) -> None:
    """Refuse a tokenizer's folder that numbers tokens otherwise than CLIP does.

    Raises:
        UserError: it does, or has no vocabulary.
    """
    path = folder / "vocab.json"
    if path.is_file():
        found: Any = read_json(path)
    else:
        path = folder / "tokenizer.json"
        whole = read_json(path)
        model = whole.get("model") if isinstance(whole, dict) else None
        found = model.get("vocab") if isinstance(model, dict) else None
    wanted = _vocabulary()
    if not isinstance(found, dict) or found != wanted:
        count = len(found) if isinstance(found, dict) else 0
        raise UserError(
            f"{path}: got a vocabulary of {count} tokens, expected CLIP's {len(wanted)}"
        )


def write_tokenizer(folder: Path, length: int) -> None:
    """CLIP's tokenizer as transformers reads it; `length`: tokens of a caption."""
    names = {"unk_token": "<|endoftext|>", "bos_token": "<|startoftext|>"}
    names |= {"eos_token": "<|endoftext|>", "pad_token": "!"}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", _vocabulary())
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(_merges()) + "\n", "utf-8")
    write_json(folder / "special_tokens_map.json", names)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **names}
    write_json(folder / "tokenizer_config.json", {**config, "do_lower_case": True})


def _vocabulary() -> dict[str, int]:
    from open_clip.tokenizer import SimpleTokenizer  # slow to import

    return {_SPECIAL.get(name, name): place for name, place in SimpleTokenizer().encoder.items()}


def _merges() -> list[str]:
    from open_clip.tokenizer import default_bpe

    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    return lines[1 : len(_vocabulary()) - 512 - len(_SPECIAL) + 1]
