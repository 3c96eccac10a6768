"""CLIPs by name, loaded safely; rows are what open_clip itself gives for the stored pictures."""

import io
import json
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import ray
import torch
import webdataset
from open_clip_train.precision import get_autocast
from PIL import Image
from safetensors.torch import save_file

from base.errors import UserError
from base.files import sha256_file
from data_pipeline.clip import load_clip
from data_pipeline.clip_pool import ClipPool
from data_pipeline.clip_spec import find_clip
from data_pipeline.config import EmbedConfig, Precision, PrepareConfig
from data_pipeline.embed import embed, is_embedded
from data_pipeline.features import ShardFeatures, cosine
from data_pipeline.pipeline import prepare
from data_pipeline.schema.dataset import read_commit, read_dataset
from data_pipeline.short_texts import TextTower
from data_pipeline.verify import verify

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 1},
}
PREPROCESS = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bilinear",
    "resize_mode": "shortest",
    "size": [48, 48],
    "mode": "RGB",
    "fill_color": 0,
}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return open_clip.CLIP(**TINY).eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: torch.nn.Module) -> Path:
    """A RUN as a finished clip stage leaves it."""
    folder = tmp_path_factory.mktemp("run")
    export = folder / "exports" / "open_clip"
    export.mkdir(parents=True)
    save_file(model.state_dict(), export / "open_clip_model.safetensors")
    config = {"model_cfg": TINY, "preprocess_cfg": PREPROCESS}
    (export / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def dataset(
    tmp_path_factory: pytest.TempPathFactory,
    run: Path,
    ray_cluster: None,
    pairs_folder: Callable[[Path, int], Path],
) -> Path:
    folder = pairs_folder(tmp_path_factory.mktemp("in"), 9)
    out = tmp_path_factory.mktemp("out") / "dataset"
    prepare([folder], out, str(run), PrepareConfig(image_size=64, samples_per_shard=5))
    return out


def test_rows_are_those_of_open_clip_on_the_stored_pictures(dataset: Path, run: Path) -> None:
    name = f"local-dir:{run / 'exports' / 'open_clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    tars = sorted(str(path) for path in (dataset / "shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    pictures = torch.stack(
        [preprocess(Image.open(io.BytesIO(sample["jpg"]))) for sample in samples]
    )
    captions = tokenizer([sample["txt"].decode() for sample in samples])
    with torch.no_grad():
        image = model.eval().encode_image(pictures).float()
        text = model.encode_text(captions).float()
    table = pq.read_table(dataset / "metadata")
    for kind, features in (("img", image), ("text", text)):
        stored = np.concatenate(
            [np.load(path) for path in sorted((dataset / f"{kind}_emb").glob("*.npy"))]
        )
        assert stored.dtype == np.float16
        norms = features.norm(dim=1)
        expected = (features / norms[:, None]).numpy()
        assert np.abs(stored.astype(np.float32) - expected).max() < 1e-3
        assert np.allclose(table[f"{kind}_norm"].to_numpy(), norms.numpy(), rtol=1e-4)
    similarity = torch.nn.functional.cosine_similarity(image, text).numpy()
    assert np.abs(table["similarity"].to_numpy() - similarity).max() < 1e-3


def test_the_record_names_weights_and_preprocessing(dataset: Path, run: Path) -> None:
    info = read_dataset(dataset).clip
    assert info is not None
    assert info.dim == 24
    assert info.model.startswith("custom-")
    assert info.pretrained == "open_clip_model.safetensors"
    assert info == load_clip(str(run)).info == load_clip(str(run / "exports" / "open_clip")).info
    spec = find_clip(str(run))
    assert is_embedded(dataset, read_dataset(dataset), spec)
    assert not is_embedded(dataset, read_dataset(dataset), find_clip("random:0"))


def test_random_weights_follow_their_seed() -> None:
    first, again, other = (load_clip(f"random:{seed}") for seed in (3, 3, 4))
    assert first.info == again.info
    assert first.info.weights_sha256 != other.info.weights_sha256
    assert (first.info.model, first.info.pretrained) == ("random", "random:3")


@pytest.fixture
def named_model(tmp_path: Path) -> Iterator[str]:
    """A model that open_clip knows by name."""
    (tmp_path / "tiny-for-tests.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "tiny-for-tests.json")
    yield "tiny-for-tests"
    open_clip.factory._MODEL_CONFIGS.pop("tiny-for-tests")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_named_model_takes_local_weights(
    named_model: str, model: torch.nn.Module, tmp_path: Path, suffix: str
) -> None:
    weights = tmp_path / f"w.{suffix}"
    if suffix == "pt":
        torch.save({"state_dict": model.state_dict()}, weights)
    else:
        save_file(model.state_dict(), weights)
    clip = load_clip(f"{named_model}:{weights}")
    assert (clip.info.model, clip.info.pretrained) == (named_model, weights.name)
    tokens = open_clip.get_tokenizer(named_model)(["a red circle"])
    assert torch.allclose(clip.texts(["a red circle"]), model.encode_text(tokens), atol=1e-5)


class _Harmful:
    """Unpickling this would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.target,))


def test_weights_never_run_code(named_model: str, tmp_path: Path) -> None:
    weights, trace = tmp_path / "w.pt", tmp_path / "was-run"
    weights.write_bytes(pickle.dumps({"state_dict": _Harmful(trace)}))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_clip(f"{named_model}:{weights}")
    torch.save({"state_dict": _Harmful(trace)}, weights)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_clip(f"{named_model}:{weights}")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random:x", "random:SEED"),
        ("nowhere", "which is no folder; expected none, random:SEED"),
        ("ViT-B-32:", "expected none"),
        ("{empty}", "holds neither"),
    ],
)
def test_unclear_names_say_what_is_known(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        find_clip(text.format(empty=tmp_path / "empty"))


def test_unknown_models_and_tags_are_refused() -> None:
    with pytest.raises(UserError, match="open_clip has no model 'no-such'"):
        load_clip("no-such:weights.pt")
    with pytest.raises(UserError, match="knows no such tag of ViT-B-32"):
        load_clip("ViT-B-32:no-such-tag")


def test_a_bad_name_is_refused_before_any_work(
    tmp_path: Path, pairs_folder: Callable[[Path, int], Path]
) -> None:
    folder = pairs_folder(tmp_path / "in", 1)
    with pytest.raises(UserError, match="random:SEED"):
        prepare([folder], tmp_path / "out", "random:one")
    assert not (tmp_path / "out").exists()


def test_none_is_nothing_to_embed_with(dataset: Path) -> None:
    with pytest.raises(UserError, match="expected a CLIP"):
        embed(dataset, "none")


def test_cosine_is_of_the_stored_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float16)
    assert np.allclose(cosine(rows, rows), 1)
    assert np.allclose(cosine(rows, -rows), -1)


@pytest.mark.parametrize("precision", get_args(Precision))
def test_precisions_are_those_of_open_clip(run: Path, precision: Precision) -> None:
    name = f"local-dir:{run / 'exports' / 'open_clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name, precision=precision)
    pictures = [np.random.default_rng(i).integers(0, 256, (40, 60, 3), np.uint8) for i in range(3)]
    batch = torch.stack([preprocess(Image.fromarray(picture)) for picture in pictures])
    clip = load_clip(str(run), precision=precision)
    assert clip.info.precision == precision
    dtype = open_clip.get_input_dtype(precision)
    with torch.inference_mode(), get_autocast(precision, "cpu")():
        expected = model.eval().encode_image(batch.to(dtype)).float()
    with torch.inference_mode():
        found = clip.images(pictures)
        exact = load_clip(str(run)).images(pictures)
    assert torch.equal(found, expected)
    assert torch.nn.functional.cosine_similarity(found, exact).min() > 0.999


def test_another_precision_is_a_mix(
    tmp_path: Path, ray_cluster: None, pairs_folder: Callable[[Path, int], Path]
) -> None:
    out = tmp_path / "out"
    low = EmbedConfig(precision="bf16")
    config = PrepareConfig(image_size=64, samples_per_shard=5, embed=low)
    prepare([pairs_folder(tmp_path / "in", 9)], out, "random:1", config)
    info = read_dataset(out).clip
    assert info is not None
    assert info.precision == "bf16"
    assert verify(out).problems == ()
    with pytest.raises(UserError, match="differs from this CLIP in precision"):
        embed(out, "random:1")
    embed(out, "random:1", "second", EmbedConfig())
    first, second = (
        np.load(place / "img_emb" / "img_emb_00000.npy").astype(np.float32)
        for place in (out, out / "embeddings" / "second")
    )
    assert not np.array_equal(first, second)
    assert (first * second).sum(axis=1).min() > 0.999
    assert np.abs(np.linalg.norm(first, axis=1) - 1).max() < 6e-4


def test_relative_paths_hold_for_workers_in_another_folder(
    run: Path,
    ray_cluster: None,
    pairs_folder: Callable[[Path, int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of a cluster that was started elsewhere; everything is named as the user stands."""
    pairs_folder(tmp_path / "pairs", 3)
    (tmp_path / "clip").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    assert ray.get(ray.remote(lambda: os.getcwd()).remote()) != str(tmp_path)
    info = prepare([Path("pairs")], Path("out"), "clip", PrepareConfig(image_size=64))
    embed(Path("out"), "clip/exports/open_clip", "second")
    assert info.clip is not None
    assert info.clip.weights_sha256 == sha256_file(
        run / "exports" / "open_clip" / "open_clip_model.safetensors"
    )
    assert verify(tmp_path / "out").embeddings == ("", "second")


def test_published_names_no_weights(dataset: Path) -> None:
    with pytest.raises(UserError, match=r"published:m/w names embeddings; expected a CLIP"):
        embed(dataset, "published:m/w", "more")
    assert not (dataset / "embeddings" / "more").exists()
    with pytest.raises(UserError, match=r"published:m/w says whose embeddings are"):
        load_clip("published:m/w")


def test_devices_are_recorded_by_the_gpu_s_name(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in range(2):
        commit = read_commit(dataset, shard)
        assert commit is not None
        assert commit.devices == ("cpu",)
    loaded = load_clip("random:0")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"name of {device}")
    assert replace(loaded, device=torch.device("cuda:0")).device_kind == "name of cuda:0"
    rows = np.ones((1, 4), np.float32)
    features = ShardFeatures(cast(ClipPool, None), 0, "here")
    features._done += [(rows, rows, "NVIDIA B"), (rows, rows, "NVIDIA A"), (rows, rows, "NVIDIA B")]
    assert features.finish().devices == ("NVIDIA A", "NVIDIA B")


CAPTIONS = ["", "a red circle", "seven words about a very small thing", "long " * 40]


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("count", [2, 3, 4])  # 8 tokens are enough, 16 (all) just so, cut to 16
def test_captions_without_padding_are_those_of_open_clip(
    run: Path, precision: Precision, count: int
) -> None:
    name = f"local-dir:{run / 'exports' / 'open_clip'}"
    model = open_clip.create_model(name, precision=precision).eval()
    tokens = open_clip.get_tokenizer(name)(CAPTIONS[:count])
    clip = load_clip(str(run), precision=precision)
    with torch.inference_mode(), get_autocast(precision, "cpu")():
        expected = model.encode_text(tokens).float()
    with torch.inference_mode():
        found = clip.texts(CAPTIONS[:count])
    within = 1e-5 if precision == "fp32" else 3e-2
    assert (found - expected).abs().max() <= within * expected.abs().max()


def test_padding_is_left_out_where_nothing_looks_at_it() -> None:
    seen: list[tuple[int, ...]] = []
    clip = load_clip("random:0")
    clip.model.transformer.register_forward_pre_hook(  # type: ignore[union-attr,operator]
        lambda _, states: seen.append(tuple(states[0].shape))
    )
    clip.texts(["a red circle", "a blue square above a small grey disc"])  # 10 tokens
    assert seen[-1][:2] == (2, 16)
    clip.texts(["word " * 90])
    assert seen[-1][:2] == (1, 77)


def test_a_tower_that_looks_at_all_tokens_gets_them_all() -> None:
    text = {**TINY["text_cfg"], "no_causal_mask": True}  # type: ignore[dict-item]
    with torch.random.fork_rng():
        torch.manual_seed(8)
        model = open_clip.CLIP(**{**TINY, "text_cfg": text}).eval()
    tokens = open_clip.SimpleTokenizer(context_length=16)(["a red circle"])
    with torch.inference_mode():
        found = TextTower(model).short(tokens, torch.device("cpu"))
        assert torch.equal(found, model.encode_text(tokens))
