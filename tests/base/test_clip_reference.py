"""What a user's name of a CLIP refers to."""

from pathlib import Path

import pytest

from base.clip_reference import CONFIG_NAME, EXPORT, find_export, find_weights, split_named


def make(folder: Path, weights: str) -> Path:
    folder.mkdir(parents=True)
    (folder / CONFIG_NAME).write_text("{}")
    (folder / weights).write_bytes(b"")
    return folder


@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_folder_and_a_run_that_holds_one(tmp_path, weights):
    run = tmp_path / "run"
    export = make(run / EXPORT, weights)
    assert find_export(run) == find_export(export) == export
    assert find_weights(str(run)) == find_weights(str(export)) == export / weights


def test_a_run_that_has_not_finished_holds_none(tmp_path):
    (tmp_path / EXPORT).mkdir(parents=True)
    assert find_export(tmp_path) is None
    assert find_weights(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ViT-B-32:weights.pt", ("ViT-B-32", "weights.pt")),
        ("ViT-B-32:laion2b:s34b", ("ViT-B-32", "laion2b:s34b")),
        ("ViT-B-32", None),
        ("ViT-B-32:", None),
        (":weights.pt", None),
    ],
)
def test_a_model_with_weights(text, expected):
    assert split_named(text) == expected


def test_weights_that_are_a_tag_are_no_file(tmp_path):
    file = tmp_path / "weights.pt"
    assert find_weights(f"ViT-B-32:{file}") is None
    file.write_bytes(b"")
    assert find_weights(f"ViT-B-32:{file}") == file
