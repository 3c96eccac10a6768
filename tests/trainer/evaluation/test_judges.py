"""Files of Inception's weights: the right one is loaded, all others are refused in one line."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from inception_weights import random_weights
from small_cascade import cascade
from torch.nn import functional as F

from base.errors import UserError
from trainer.evaluation.judges import find_judges, load_inception


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(random_weights(), path)
    return path


def test_a_file_of_weights_gives_features_and_logits(file: Path) -> None:
    judges = find_judges(cascade(), None, file)
    pictures = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    pictures[1] = 255
    seen = judges.look(pictures)
    assert seen.clip.shape == (2, 16)
    assert seen.inception is not None
    assert seen.logits is not None
    assert (seen.inception.shape, seen.logits.shape) == ((2, 2048), (2, 1008))
    assert not torch.equal(seen.inception[0], seen.inception[1])


def test_without_a_file_clip_alone_looks() -> None:
    model = cascade()
    judges = find_judges(model, None, None)
    pictures = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    seen = judges.look(pictures)
    assert seen[1:] == (None, None)
    assert torch.equal(F.normalize(seen.clip, dim=1), model.look(pictures))
    assert not torch.allclose(seen.clip.norm(dim=1), torch.ones(3))  # as CLIP gives them
    assert torch.equal(judges.read(["a", "b"]), model.captions(["a", "b"]).embedding)


class Trap:
    """Unpickled, it would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("trapped", "w"))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "no file of torch's weights"),
        (lambda path: path.write_bytes(pickle.dumps({"a": Trap()})), "no file of torch's weights"),
        (lambda path: torch.save({"a": Trap()}, path), "no file of torch's weights"),
        (lambda path: torch.save([torch.zeros(1)], path), "got no state dict"),
        (lambda path: torch.save({"epoch": 3}, path), "got no state dict"),
        (
            lambda path: torch.save({"fc.weight": torch.zeros(1000, 2048)}, path),
            r"Conv2d_1a_3x3\.bn\.bias: got no such tensor, expected \[32\]; expected the weights",
        ),
    ],
)
def test_other_files(
    write: Callable[[Path], object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "weights.pth")
    with pytest.raises(UserError, match=message) as caught:
        load_inception(tmp_path / "weights.pth")
    assert str(caught.value).startswith(f"--inception: {tmp_path / 'weights.pth'}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "trapped").exists()


def test_a_clip_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"^--features: clip: got 'nowhere'"):
        find_judges(cascade(), "nowhere", None)
