"""Inception v3 against torch-fidelity's own, with weights that nobody trained."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from inception_weights import random_weights
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.models.inception import CLASSES, FEATURES, Inception, blocks, resized


@pytest.fixture(scope="module")
def weights() -> Mapping[str, Tensor]:
    return random_weights()


@pytest.fixture(scope="module")
def network(weights: Mapping[str, Tensor]) -> Inception:
    return Inception(weights)


@pytest.fixture
def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)


def test_torch_fidelity_says_the_same(
    network: Inception,
    weights: Mapping[str, Tensor],
    pictures: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity, of the extra dev, is not there")
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: weights)
    reference: Any = theirs.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"])
    features, logits = network(pictures)
    for got, expected in zip((features, logits), reference(pictures), strict=True):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_what_torch_fidelity_said(network: Inception, pictures: Tensor) -> None:
    """Of these weights and pictures; version 0.4.0, printed once."""
    features, logits = network(pictures)
    assert features.shape == (2, FEATURES)
    assert logits.shape == (2, CLASSES)
    expected = torch.tensor(FIDELITY_FEATURES)
    assert torch.allclose(features[0, :4], expected[0], rtol=1e-3, atol=1e-4)
    assert torch.allclose(logits[1, :4], expected[1], rtol=1e-3, atol=1e-4)


FIDELITY_FEATURES = [
    [0.0034273, 0.0017755, 0.0, 3.4328742],
    [0.5995585, -3.8854957, -0.4691761, -0.4692828],
]


def test_it_differs_from_torchvision_where_tensorflow_does(
    network: Inception, weights: Mapping[str, Tensor], pictures: Tensor
) -> None:
    plain = blocks.Inception3(CLASSES, aux_logits=False, init_weights=False)
    plain.load_state_dict(weights)
    plain.fc = nn.Identity()
    with torch.no_grad():
        theirs = plain.eval()((resized(pictures.float()) - 128) / 128)
    assert not torch.allclose(network(pictures)[0], theirs, rtol=0.01)


def test_pictures_begin_at_the_corner_when_they_are_resized() -> None:
    """torch's own bilinear rule begins half a pixel inside."""
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert resized(ramp, 8)[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    assert torch.equal(resized(ramp, 4), ramp)
    whole = torch.rand(1, 3, 10, 10)
    assert not torch.allclose(resized(whole, 299), F.interpolate(whole, 299, mode="bilinear"))


def test_older_files_lack_the_counters(weights: Mapping[str, Tensor], network: Inception) -> None:
    older = {name: t for name, t in weights.items() if not name.endswith("num_batches_tracked")}
    assert torch.equal(Inception(older).classes, network.classes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("fc.weight"), r"fc\.weight: got no such tensor, expected \[1008, 2048\]"),
        (
            lambda w: w.update({"fc.weight": torch.zeros(1000, 2048)}),
            r"fc\.weight: got \[1000, 2048\], expected \[1008, 2048\]",
        ),
        (
            lambda w: w.update({"AuxLogits.conv0.conv.weight": torch.zeros(1)}),
            r"AuxLogits\.conv0\.conv\.weight: got \[1\], expected no such tensor",
        ),
    ],
)
def test_weights_of_another_network(
    change: Any, message: str, weights: Mapping[str, Tensor]
) -> None:
    """torchvision's own Inception has 1000 classes and a second head."""
    others = dict(weights)
    change(others)
    with pytest.raises(ValueError, match=message):
        Inception(others)
