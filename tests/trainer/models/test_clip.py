"""Our CLIP and open_clip's are one."""

import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from processes import ROOT, environment
from safetensors.torch import save_file

from base.errors import UserError
from base.files import write_json
from trainer.builders import load_encoders, load_text_encoder
from trainer.models.clip import (
    Clip,
    ClipConfig,
    TextConfig,
    VisionConfig,
    describe_for_open_clip,
    normalise_pixels,
    weights_for_open_clip,
)

CONFIG = ClipConfig(
    16, VisionConfig(32, 32, 2, head_width=16), TextConfig(32, 2, 2, context_length=12)
)


def test_training_without_a_clip_does_not_import_open_clip() -> None:
    """It brings transformers and timm, and takes longer than torch."""
    slow = ("open_clip", "transformers", "torchvision", "deepspeed")
    code = f"import sys, trainer.loop; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, Path]:
    torch.manual_seed(0)
    clip = Clip(CONFIG).eval()
    folder = tmp_path_factory.mktemp("clip")
    save_file(weights_for_open_clip(clip.state_dict()), folder / "open_clip_model.safetensors")
    write_json(folder / "open_clip_config.json", describe_for_open_clip(CONFIG))
    return clip, folder


def test_open_clip_loads_it_and_computes_the_same(saved):
    clip, folder = saved
    theirs, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    image = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a red circle", "", "two words"])
    assert tokens.shape == (3, 12)
    with torch.no_grad():
        ours = clip(normalise_pixels(image), tokens)
        features = theirs(normalise_pixels(image), tokens)
    torch.testing.assert_close(ours.image, features[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.text, features[1], atol=1e-6, rtol=1e-5)
    # Training's pixels are those of open_clip's own preprocessing.
    from PIL import Image

    array = image[0].permute(1, 2, 0).numpy()
    torch.testing.assert_close(preprocess(Image.fromarray(array)), normalise_pixels(image)[0])


def test_of_longer_captions_clip_sees_what_its_own_tokenizer_leaves(saved):
    _, folder = saved
    captions = ["a red circle", "", "one two three four five six seven eight nine ten eleven"]
    own = load_text_encoder(str(folder))
    lengthened = load_text_encoder(str(folder)).lengthen(20)
    assert lengthened.context_length == 20
    expected, found = own.encode(captions), lengthened.encode(captions)
    assert found.tokens.shape == (3, 20)
    for name in ("states", "mask", "embedding"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert lengthened.lengthen(5).context_length == 20  # never fewer than there are


def test_text_states_lead_to_open_clips_embedding(saved):
    clip, folder = saved
    encoder = load_text_encoder(str(folder))
    captions = ["a red circle left of a blue square", "", "snow"]
    states = encoder.encode(captions)
    tokens = encoder.tokenizer(captions)
    with torch.no_grad():
        expected = clip.clip.encode_text(tokens, normalize=True)
    torch.testing.assert_close(states.embedding, expected, atol=1e-6, rtol=1e-5)
    assert encoder.width == 32
    assert encoder.embedding_dim == 16
    assert encoder.context_length == 12
    assert states.mask.sum(dim=1).tolist() == [10, 2, 3]  # start and end tokens count
    assert torch.equal(encoder.null_tokens, tokens[1])
    assert load_encoders(str(folder))[1].side == 32


def test_any_open_clip_model_by_name_with_local_weights(tmp_path):
    torch.manual_seed(0)
    model = open_clip.create_model("RN50-quickgelu")
    weights = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
    encoder = load_text_encoder(f"RN50-quickgelu:{weights}")
    tokens = encoder.tokenizer(["a photo"])
    with torch.no_grad():
        expected = model.eval().encode_text(tokens, normalize=True)
    torch.testing.assert_close(encoder(tokens).embedding, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("clip", ["nowhere", "ViT-B-32:missing.pt"])
def test_an_unknown_clip_is_one_line(clip):
    with pytest.raises(UserError, match="expected a finished RUN"):
        load_text_encoder(clip)


def test_damaged_weights_are_one_line(saved, tmp_path):
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"not weights")
    write_json(tmp_path / "open_clip_config.json", describe_for_open_clip(CONFIG))
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load_text_encoder(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_resnet_tower_is_open_clips_too(tmp_path):
    vision = VisionConfig(32, 8, (1, 1, 1, 1), head_width=32)
    config = ClipConfig(16, vision, CONFIG.text)
    clip = Clip(config)
    image = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    tokens = torch.tensor([[49406, 320, 49407] + [0] * 9]).expand(4, -1)
    clip(normalise_pixels(image), tokens)  # moves the statistics of its batch norms
    clip.eval()
    save_file(weights_for_open_clip(clip.state_dict()), tmp_path / "open_clip_model.safetensors")
    write_json(tmp_path / "open_clip_config.json", describe_for_open_clip(config))
    theirs = load_encoders(str(tmp_path))[1]
    assert theirs.side == 32
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(image),
            clip(normalise_pixels(image), tokens).image,
        )
