"""The CLIPs that embeddings can come from, named by a string; weights are loaded safely."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from PIL import Image

from base.config import fingerprint
from base.errors import UserError
from base.files import sha256_file
from data_pipeline.clip_spec import FORMS, ClipSpec, find_clip
from data_pipeline.schema.dataset import ClipInfo

_CONTEXT = 77
_RANDOM_MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": _CONTEXT, "width": 64, "heads": 2, "layers": 2},
}


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP with its own preprocessing."""

    info: ClipInfo
    model: torch.nn.Module
    preprocess: Callable[[Image.Image], torch.Tensor]
    tokenize: Callable[[list[str]], torch.Tensor]
    device: torch.device

    def images(self, pictures: list[npt.NDArray[np.uint8]]) -> torch.Tensor:
        """Raw image features of RGB pictures [H, W, 3], float32 [n, D]."""
        batch = torch.stack([self.preprocess(Image.fromarray(item)) for item in pictures])
        features: torch.Tensor = self.model.encode_image(batch.to(self.device))  # type: ignore[operator]
        return features.float()

    def texts(self, captions: list[str]) -> torch.Tensor:
        """Raw text features, float32 [n, D]."""
        tokens = self.tokenize(captions).to(self.device)
        features: torch.Tensor = self.model.encode_text(tokens)  # type: ignore[operator]
        return features.float()


def load_clip(text: str, device: str = "cpu") -> Clip:
    """The CLIP that `text` names, in eval mode and float32.

    Raises:
        UserError: `text` has no known form, or its files are missing, unsafe or do not fit.
    """
    spec = find_clip(text)
    if spec.kind == "random":
        return _random(spec, device)
    return _from_folder(spec, device) if spec.kind == "folder" else _named(spec, device)


def _random(spec: ClipSpec, device: str) -> Clip:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(spec.label.removeprefix("random:")))
        model = open_clip.CLIP(**_RANDOM_MODEL)
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    tokenizer = open_clip.SimpleTokenizer(context_length=_CONTEXT)
    config = asdict(open_clip.transform.PreprocessCfg(size=64))
    return _clip(spec, model, tokenizer, config, digest.hexdigest(), device)


def _from_folder(spec: ClipSpec, device: str) -> Clip:
    assert spec.weights is not None
    name = f"local-dir:{spec.weights.parent}"
    model = _created(name, lambda: open_clip.create_model(name, weights_only=True))
    tokenizer = open_clip.get_tokenizer(name)
    digest = sha256_file(spec.weights)
    return _clip(spec, model, tokenizer, model.visual.preprocess_cfg, digest, device)


def _named(spec: ClipSpec, device: str) -> Clip:
    name = spec.model
    if name not in open_clip.list_models():
        raise UserError(f"clip: open_clip has no model {name!r}; expected {FORMS}")
    path = spec.weights
    if path is None:
        entry = open_clip.get_pretrained_cfg(name, spec.label)
        if not entry:
            raise UserError(
                f"clip: {spec.label}: no such file, and open_clip knows no such tag of {name}"
            )
        path = Path(_created(spec.label, lambda: open_clip.download_pretrained(entry)))
    model = _created(
        str(path), lambda: open_clip.create_model(name, pretrained=str(path), weights_only=True)
    )
    tokenizer = open_clip.get_tokenizer(name)
    digest = sha256_file(path)
    return _clip(spec, model, tokenizer, model.visual.preprocess_cfg, digest, device)


def _created(spec: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:  # open_clip, safetensors and torch.load raise what they like
        first = " ".join(str(error).split())[:300]
        raise UserError(f"clip: {spec}: cannot be loaded ({first})") from error


def _clip(
    spec: ClipSpec,
    model: Any,
    tokenizer: Any,
    preprocess_config: Any,
    weights_sha256: str,
    device: str,
) -> Clip:
    config = dict(preprocess_config)
    preprocess = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**config), is_train=False
    )
    model = model.eval().float().to(device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    dim = _text_dim(model, tokenizer, device)
    info = ClipInfo(spec.model, spec.label, weights_sha256, fingerprint(config), dim)
    return Clip(info, model, preprocess, tokenizer, torch.device(device))


def _text_dim(model: Any, tokenizer: Any, device: str) -> int:
    with torch.inference_mode():
        return int(model.encode_text(tokenizer(["x"]).to(device)).shape[1])
