"""Hard negative captions."""

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch.nn import functional as F

from base.errors import UserError
from trainer.batch import Batch
from trainer.builders import build_clip
from trainer.models.clip import Clip, ClipConfig, TextConfig, VisionConfig, normalise_pixels
from trainer.objectives.clip import ClipObjective, ClipObjectiveConfig
from trainer.objectives.negatives import OpposedCaptions
from trainer.rng import SampleRandom
from trainer.stages import load_train_config

WORDS = {"left": "right", "right": "left", "under": "above"}
CONFIG = ClipConfig(
    16, VisionConfig(32, 32, 1, head_width=16), TextConfig(32, 1, 2, context_length=16)
)

CLIP = """
stage: clip
out: {folder}/run
data: {{paths: [{folder}/data]}}
model:
  embed_dim: 16
  vision: {{image_size: 32, width: 32, layers: 1, head_width: 16}}
  text: {{width: 32, layers: 1, heads: 2, context_length: 16}}
objective: {{opposites: {{left: widdershins}}}}
optim: {{lr: 1.0e-3}}
train: {{samples: 8, batch: 8}}
"""


@pytest.fixture(scope="module")
def tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer(context_length=16)


def test_listed_words_are_exchanged_and_captions_without_one_have_none(tokenizer):
    captions = ["a star left of a ring", "a lone star", "a ring under a star on the right"]
    rows, opposed = OpposedCaptions(WORDS, tokenizer.encode)(tokenizer(captions))
    assert rows.tolist() == [0, 2]
    expected = ["a star right of a ring", "a ring above a star on the left"]
    assert torch.equal(opposed, tokenizer(expected))


def test_the_callers_tokens_stay_as_they_are(tokenizer):
    tokens = tokenizer(["left"])
    before = tokens.clone()
    OpposedCaptions(WORDS, tokenizer.encode)(tokens)
    assert torch.equal(tokens, before)


def test_a_picture_chooses_between_its_caption_and_the_opposite(tokenizer):
    """Against the hinge written out, picture by picture."""
    torch.manual_seed(0)
    clip = Clip(CONFIG).eval()
    captions = ["one left of two", "three", "four under five"]
    image = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    data = Batch(torch.arange(3), image, tokenizer(captions))
    random = SampleRandom(0, data.positions)
    config = ClipObjectiveConfig(opposites=WORDS, opposites_weight=2.5, opposites_margin=0.2)
    hard = ClipObjective(config, CONFIG, OpposedCaptions(WORDS, tokenizer.encode))
    with torch.no_grad():
        added = hard.loss(clip, data, random, None, 0)
        added -= ClipObjective(config, CONFIG).loss(clip, data, random, None, 0)
        images = F.normalize(clip.clip.encode_image(normalise_pixels(image)), dim=-1)
        for row, opposite in {0: "one right of two", 2: "four above five"}.items():
            both = F.normalize(clip.clip.encode_text(tokenizer([captions[row], opposite])), dim=-1)
            right, wrong = (both @ images[row]).tolist()
            assert added[row].item() == pytest.approx(2.5 * max(0.2 + wrong - right, 0), abs=1e-5)
            assert added[row].item() > 0  # untrained: the two are nearly the same
    assert added[1].item() == pytest.approx(0, abs=1e-5)  # has no opposite


def test_a_word_of_several_tokens_is_refused_in_one_line(tmp_path):
    path = tmp_path / "clip.yaml"
    path.write_text(CLIP.format(folder=tmp_path))
    config = load_train_config(path)
    with pytest.raises(
        UserError, match=r"objective\.opposites: got 'widdershins', expected a word"
    ):
        build_clip(config, torch.device("cpu"))
