"""A folder of Karlo's original files, at a small size, with a CLIP of transformers' beside it."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from base.errors import UserError
from trainer.builders import load_clip, load_encoders
from trainer.checkpoint.export import read_weights
from trainer.interop import karlo
from trainer.interop.importing import import_cascade
from trainer.interop.karlo_source import read_karlo
from trainer.models.decoder import Decoder, DecoderConfig
from trainer.models.prior import DiffusionPrior, PriorConfig
from trainer.models.unet import UNetConfig
from trainer.models.upsampler import Upsampler, UpsamplerConfig
from trainer.sampling.config import load_cascade_config
from trainer.stages import load_train_config

DIM = 16
SIZES: dict[str, Any] = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "norm_groups": 32}
PRIOR = PriorConfig(DIM, DIM, layers=1, heads=2, head_width=8)
DECODER = DecoderConfig(
    UNetConfig(**SIZES, out_channels=6, attention_levels=(1,), head_width=16, context_width=20),
    DIM,
    DIM,
    text_in_time=True,
)
UP = UpsamplerConfig(UNetConfig(**SIZES, in_channels=6, scale_shift=False))
PRIOR_FILE = "prior-ckpt-step=01000000-of-01000000.ckpt"
DECODER_FILE = "decoder-ckpt-step%3D01000000-of-01000000.ckpt"  # as wget leaves it
UP_FILE = "improved-sr-ckpt-step=1.2M.ckpt"


def renamed(weights: Mapping[str, Tensor], name: Any) -> dict[str, Tensor]:
    """Random weights under Karlo's names; that these are its names, test_karlo_original shows."""
    return {name(key): torch.randn(value.shape) for key, value in weights.items()}


def decoder_name(places: Any, key: str) -> str:
    part, _, inner = key.partition(".")
    found = karlo._unet_name(inner, places) if part == "unet" else karlo._conditioner_name(inner)
    return f"model.{found}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("karlo")
    torch.manual_seed(0)
    prior = {k: v for k, v in DiffusionPrior(PRIOR).state_dict().items() if "clip_" not in k}
    states = {
        PRIOR_FILE: renamed(prior, lambda key: f"model.{karlo._prior_name(key)}"),
        DECODER_FILE: renamed(
            Decoder(DECODER).state_dict(), partial(decoder_name, karlo._places(DECODER.unet))
        ),
    }
    states[DECODER_FILE]["model.cf_param"] = torch.randn(DIM)
    places = karlo._places(UP.unet)
    states[UP_FILE] = {}
    for steps in ("first_steps", "last_step"):
        states[UP_FILE] |= renamed(
            Upsampler(UP).state_dict(),
            lambda key, at=steps: f"model_{at}.{karlo._unet_name(key[len('unet.') :], places)}",
        )
    for name, state in states.items():
        torch.save({"state_dict": state, "epoch": 3}, folder / name)
    torch.save((torch.randn(DIM), torch.rand(DIM) + 0.5), folder / "ViT-L-14_stats.th")
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(1)
    sizes = {"intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**sizes, "hidden_size": DIM},
        vision_config={**sizes, "hidden_size": 32, "image_size": 32, "patch_size": 16},
        projection_dim=DIM,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def small() -> Any:
    made = partial(read_karlo, prior=PRIOR, decoder=DECODER, upsampler=UP)
    with patch("trainer.interop.importing.read_karlo", made):
        yield


def test_each_file_becomes_runs(files: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_cascade(files, out, str(clip))
    states = {path.name: torch.load(path) for path in files.iterdir()}
    mean, std = states["ViT-L-14_stats.th"]
    prior = karlo.prior_weights(PRIOR, states[PRIOR_FILE]["state_dict"], mean, std)
    up = states[UP_FILE]["state_dict"]
    expected = {
        "prior": prior,
        "decoder": karlo.decoder_weights(DECODER, states[DECODER_FILE]["state_dict"]),
        "up256": karlo.upsampler_weights(UP, up, "first_steps"),
        "up256_last": karlo.upsampler_weights(UP, up, "last_step"),
    }
    for name, weights in expected.items():
        found = read_weights(out / name)
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[key], weights[key]) for key in found)
    assert torch.equal(expected["prior"]["clip_mean"], mean[None])
    config = load_train_config(out / "decoder" / "config.yaml")
    assert config.objective.diffusion.learned_variance
    assert config.objective.embedding_length == "raw"
    cascade = load_cascade_config(out)
    assert cascade.prior is not None
    assert (cascade.prior.limit, cascade.prior.guidance, cascade.decoder.guidance) == (5, 4, 8)


@torch.inference_mode()
def test_the_clip_beside_them_is_the_same_in_open_clip(
    files: Path, clip: Path, tmp_path: Path
) -> None:
    import_cascade(files, tmp_path / "out", str(clip))
    theirs, folder = CLIPModel.from_pretrained(clip).eval(), tmp_path / "out" / "clip"
    pixels = torch.randn(2, 3, 32, 32)
    text, image = load_encoders(str(folder))
    assert image is not None
    tokens = text.tokenizer(["a red circle", "two"])
    expected = theirs(input_ids=tokens, pixel_values=pixels)
    assert (text(tokens).embedding - expected.text_embeds).abs().max() <= 1e-5
    seen = torch.nn.functional.normalize(image.module.encode_image(pixels), dim=-1)
    assert (seen - expected.image_embeds).abs().max() <= 1e-5
    assert torch.equal(load_clip(str(folder)).logit_scale, theirs.logit_scale)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (UP_FILE, r"improved-sr-ckpt-step\*.ckpt: no such file"),
        ("ViT-L-14_stats.th", r"ViT-L-14_stats.th: no such file"),
    ],
)
def test_a_file_that_is_missing_is_named(
    files: Path, clip: Path, tmp_path: Path, name: str, message: str
) -> None:
    some = tmp_path / "some"
    some.mkdir()
    for path in files.iterdir():
        if path.name != name:
            (some / path.name).symlink_to(path)
    with pytest.raises(UserError, match=message):
        import_cascade(some, tmp_path / "out", str(clip))
    assert not (tmp_path / "out").exists()


def test_what_is_no_weights_is_one_line(files: Path, clip: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    some.mkdir()
    for path in files.iterdir():
        (some / path.name).symlink_to(path)
    with pytest.raises(UserError, match="has no CLIP that is read here; name it with --clip"):
        import_cascade(some, tmp_path / "out")
    (some / PRIOR_FILE).unlink()
    torch.save({"state_dict": {"model.prd_emb": torch.zeros(1)}}, some / PRIOR_FILE)
    with pytest.raises(UserError, match=r"01000000.ckpt: prior: the weights lack"):
        import_cascade(some, tmp_path / "out", str(clip))
    (some / "ViT-L-14_stats.th").unlink()
    torch.save((torch.zeros(3), torch.zeros(3)), some / "ViT-L-14_stats.th")
    with pytest.raises(UserError, match=r"stats.th: got .* expected mean and deviation of 16"):
        import_cascade(some, tmp_path / "out", str(clip))
