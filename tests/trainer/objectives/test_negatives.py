"""Hard negative captions."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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

PHRASES = {
    "left of": ["right of"],
    "to the left of": ["above"],
    "under": ["above"],
}
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
objective: {{opposites: {opposites}}}
optim: {{lr: 1.0e-3}}
train: {{samples: 8, batch: 8}}
"""


@pytest.fixture(scope="module")
def tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer(context_length=16)


def opposed_of(
    captions: list[str], phrases: Mapping[str, Sequence[str]], tokenizer: SimpleTokenizer
) -> tuple[torch.Tensor, torch.Tensor]:
    return OpposedCaptions(phrases, tokenizer.encode)(tokenizer(captions))


def test_phrases_are_exchanged_and_captions_without_one_have_none(tokenizer):
    captions = ["a star to the left of a ring", "a lone star", "left of it a ring under a star"]
    rows, opposed = opposed_of(captions, PHRASES, tokenizer)
    assert rows.tolist() == [0, 2]
    expected = ["a star above a ring", "right of it a ring under a star"]
    assert torch.equal(opposed, tokenizer(expected))


def test_each_phrase_that_contradicts_gives_one(tokenizer):
    captions = ["a lone star", "a ring left of a star"]
    phrases = {"left of": ["right of", "above", "to the far side of"]}
    rows, opposed = opposed_of(captions, phrases, tokenizer)
    assert rows.tolist() == [1, 1, 1]
    expected = [f"a ring {phrase} a star" for phrase in phrases["left of"]]
    assert torch.equal(opposed, tokenizer(expected))


WORDS = ("ring", "star", "left", "of", "above", "to", "the")


@given(
    captions=st.lists(st.lists(st.sampled_from(WORDS), max_size=14), min_size=1, max_size=4),
    phrases=st.dictionaries(
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join),
        st.lists(st.sampled_from(["below", "right of", "far off to one side of"]), min_size=1),
        min_size=1,
        max_size=3,
    ),
)
def test_tokens_are_those_of_the_exchanged_text(captions, phrases, tokenizer):
    """Against words and lists; what would not fit into the row has no opposite."""
    texts = [" ".join(words) for words in captions]
    rows, opposed = opposed_of(texts, phrases, tokenizer)
    expected = []
    for row, words in enumerate(captions):
        longest_first = sorted(phrases, key=lambda phrase: len(phrase.split()), reverse=True)
        for phrase in longest_first:
            start = place(words, phrase.split())
            if start is None:
                continue
            for other in phrases[phrase]:
                end = words[start + len(phrase.split()) :]
                exchanged = words[:start] + other.split() + end
                if len(exchanged) <= 14:
                    expected.append((row, " ".join(exchanged)))
            break
    assert rows.tolist() == [row for row, _ in expected]
    assert torch.equal(opposed, tokenizer([*(text for _, text in expected), ""])[:-1])


def place(words: list[str], phrase: list[str]) -> int | None:
    starts = range(len(words) - len(phrase) + 1)
    return next((i for i in starts if words[i : i + len(phrase)] == phrase), None)


def test_the_callers_tokens_stay_as_they_are(tokenizer):
    tokens = tokenizer(["left of it"])
    before = tokens.clone()
    OpposedCaptions(PHRASES, tokenizer.encode)(tokens)
    assert torch.equal(tokens, before)


def test_a_picture_chooses_between_its_caption_and_the_opposite(tokenizer):
    """Against the hinge written out, picture by picture."""
    torch.manual_seed(0)
    clip = Clip(CONFIG).eval()
    captions = ["one left of two", "three", "four under five"]
    image = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    data = Batch(torch.arange(3), image, tokenizer(captions))
    random = SampleRandom(0, data.positions)
    config = ClipObjectiveConfig(opposites=PHRASES, opposites_weight=2.5, opposites_margin=0.2)
    hard = ClipObjective(config, CONFIG, OpposedCaptions(PHRASES, tokenizer.encode))
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


@pytest.mark.parametrize("opposites", ["{left: []}", "{left: [right, '']}", "{'': [right]}"])
def test_phrases_without_a_word_are_refused_in_one_line(tmp_path, opposites):
    path = tmp_path / "clip.yaml"
    path.write_text(CLIP.format(folder=tmp_path, opposites=opposites))
    config = load_train_config(path)
    with pytest.raises(UserError, match=r"objective\.opposites: got '.*expected phrases for a"):
        build_clip(config, torch.device("cpu"))
