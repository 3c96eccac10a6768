"""The CLIPs that embeddings can come from, named by a string; weights are loaded safely."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch

from base.config import fingerprint
from base.errors import UserError, one_line
from base.files import sha256_file
from data_pipeline.clip_spec import FORMS, ClipSpec, find_clip
from data_pipeline.config import Precision
from data_pipeline.crop import Crop
from data_pipeline.normalise import Normaliser
from data_pipeline.schema.dataset import ClipInfo
from data_pipeline.short_texts import TextTower

_CONTEXT = 77
_CPU_ROWS = 32  # at once: what lies between two layers should fit the caches
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
    text_tower: TextTower
    crop: Crop  # the first half of the preprocessing: pixels of the sides that the model takes
    mean: torch.Tensor  # [3, 1, 1]
    std: torch.Tensor  # [3, 1, 1]
    normalise: Normaliser  # both of them, on a CPU
    tokenize: Callable[[list[str]], torch.Tensor]
    device: torch.device

    @property
    def device_kind(self) -> str:
        """What computes: cpu, or the GPU's name."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return self.device.type

    def images(self, pictures: list[npt.NDArray[np.uint8]]) -> torch.Tensor:
        """Raw image features of RGB pictures [H, W, 3], float32 [n, D]."""
        return self.crops(np.stack([self.crop(picture) for picture in pictures]))

    def crops(self, crops: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Raw image features of pictures as `crop` gives them [n, H, W, 3], float32 [n, D]."""
        if self.device.type == "cpu":
            parts = (crops[i : i + _CPU_ROWS] for i in range(0, len(crops), _CPU_ROWS))
            return torch.cat([self._features(self.normalise(part)) for part in parts])
        pixels = torch.from_numpy(crops).to(self.device).permute(0, 3, 1, 2)  # [n, 3, H, W]
        return self._features(pixels.to(torch.float32).div(255).sub_(self.mean).div_(self.std))

    def _features(self, batch: torch.Tensor) -> torch.Tensor:
        """Of normalised pictures [n, 3, H, W], float32 [n, D]."""
        dtype = open_clip.get_input_dtype(self.info.precision)
        with self._casting():
            features: torch.Tensor = self.model.encode_image(batch.to(dtype))  # type: ignore[operator]
        return features.float()

    def texts(self, captions: list[str]) -> torch.Tensor:
        """Raw text features, float32 [n, D]."""
        with self._casting():
            return self.text_tower.short(self.tokenize(captions), self.device).float()

    def _casting(self) -> AbstractContextManager[Any]:
        """What open_clip's amp precisions mean: weights stay float32, products do not."""
        if not self.info.precision.startswith("amp"):
            return nullcontext()
        low = torch.bfloat16 if self.info.precision == "amp_bf16" else torch.float16
        return torch.autocast(self.device.type, low)


def load_clip(text: str, device: str = "cpu", precision: Precision = "fp32") -> Clip:
    """The CLIP that `text` names, in eval mode.

    Raises:
        UserError: `text` has no known form, or its files are missing, unsafe or do not fit.
    """
    spec = find_clip(text)
    if spec.kind == "published":
        raise UserError(f"clip: {text} says whose embeddings are; there are no weights to load")
    load = {"random": _random, "folder": _from_folder, "named": _named}[spec.kind]
    model, tokenizer, config, digest = load(spec, precision)
    model.eval().to(device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    dim = _text_dim(model, tokenizer, device)
    config = dict(config)
    info = ClipInfo(spec.model, spec.label, digest, fingerprint(config), dim, precision)
    mean, std = (_channels(config[name]) for name in ("mean", "std"))
    place = torch.device(device)
    return Clip(
        info=info,
        model=model,
        text_tower=TextTower(model),
        crop=Crop.of(config),
        mean=mean.to(place),
        std=std.to(place),
        normalise=Normaliser(mean, std),
        tokenize=tokenizer,
        device=place,
    )


# Model, tokenizer, preprocessing config, SHA-256 of the weights.
_Loaded = tuple[Any, Any, Mapping[str, Any], str]


def _random(spec: ClipSpec, precision: Precision) -> _Loaded:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(spec.label.removeprefix("random:")))
        cast = open_clip.get_cast_dtype(precision)
        model = open_clip.CLIP(**_RANDOM_MODEL, cast_dtype=cast)
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    low = open_clip.get_input_dtype(precision)
    if precision.startswith("pure"):
        model.to(low)
    elif low is not None:
        open_clip.model.convert_weights_to_lp(model, low)
    tokenizer = open_clip.SimpleTokenizer(context_length=_CONTEXT)
    config = asdict(open_clip.transform.PreprocessCfg(size=64))
    return model, tokenizer, config, digest.hexdigest()


def _from_folder(spec: ClipSpec, precision: Precision) -> _Loaded:
    assert spec.weights is not None
    name = f"local-dir:{spec.weights.parent}"
    model = _created(
        name, lambda: open_clip.create_model(name, precision=precision, weights_only=True)
    )
    tokenizer = open_clip.get_tokenizer(name)
    return model, tokenizer, model.visual.preprocess_cfg, sha256_file(spec.weights)


def _named(spec: ClipSpec, precision: Precision) -> _Loaded:
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
        str(path),
        lambda: open_clip.create_model(
            name, pretrained=str(path), precision=precision, weights_only=True
        ),
    )
    tokenizer = open_clip.get_tokenizer(name)
    return model, tokenizer, model.visual.preprocess_cfg, sha256_file(path)


def _created(spec: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:  # open_clip, safetensors and torch.load raise what they like
        first = one_line(error)[:300]
        raise UserError(f"clip: {spec}: cannot be loaded ({first})") from error


def _channels(value: Any) -> torch.Tensor:
    """A number, or one for each channel, as [3, 1, 1]."""
    return torch.tensor(np.broadcast_to(value, 3).astype(np.float32))[:, None, None]


def _text_dim(model: Any, tokenizer: Any, device: str) -> int:
    with torch.inference_mode():
        return int(model.encode_text(tokenizer(["x"]).to(device)).shape[1])
