"""Whole pipelines of diffusers in and out: the same pictures for the same noise."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_pipeline
import torch
import yaml
from diffusers import PriorTransformer
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy import write_dataset

from base.errors import UserError
from base.files import sha256_file
from trainer.builders import load_clip
from trainer.checkpoint.export import read_weights
from trainer.checkpoint.read import folder_faults
from trainer.interop.exporting import export_cascade, export_run
from trainer.interop.importing import import_cascade
from trainer.loop import train
from trainer.sampling.asked import of_text
from trainer.sampling.cascade import Cascade, load_cascade
from trainer.sampling.config import load_cascade_config
from trainer.sampling.requests import fulfil
from trainer.sampling.uses import variations
from trainer.stages import load_train_config

CAPTIONS = ["a red circle's 12 cats", "", "ein blaues Quadrat, two words"]
RUNS = ("prior", "decoder", "up256", "up256_last")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bridge")


@pytest.fixture(scope="module")
def theirs(place: Path) -> Any:
    return tiny_pipeline.save(place / "pipeline")


@pytest.fixture(scope="module")
def imported(place: Path, theirs: Any) -> Path:
    import_cascade(place / "pipeline", place / "imported")
    return place / "imported"


@pytest.fixture(scope="module")
def ours(imported: Path) -> Cascade:
    return load_cascade(load_cascade_config(imported), "fp32")


def noise_of(cascade: Cascade, count: int) -> list[Tensor]:
    """What the cascade draws for seed 3, in the order in which their pipeline draws it."""
    random = cascade.random(3, range(count))
    side, larger = tiny_pipeline.SIDE, tiny_pipeline.LARGER
    parts = {
        "prior.0": (tiny_pipeline.DIM,),
        "decoder": (3, side, side),
        "upsampler.0": (3, larger, larger),
    }
    starts = [random.normal(f"{name}.start", *shape) for name, shape in parts.items()]
    counts = tiny_pipeline.STEPS.values()
    return starts + [
        random.normal(f"{name}.step.{number}", *shape)
        for (name, shape), steps in zip(parts.items(), counts, strict=True)
        for number in range(steps - 1)
    ]


@torch.inference_mode()
def pictures(cascade: Cascade) -> Tensor:
    """In [0, 1]."""
    random, text = cascade.random(3, range(len(CAPTIONS))), cascade.captions(CAPTIONS)
    small = cascade.decode(cascade.sample_prior(text, random), text, random)
    return (cascade.upsample(small, random) / 2 + 0.5).clamp(0, 1)


@pytest.fixture(scope="module")
def drawn(theirs: Any, ours: Cascade) -> Tensor:
    """What their pipeline draws, as it is released."""
    return tiny_pipeline.draw(theirs, CAPTIONS, noise_of(ours, len(CAPTIONS)))


def test_an_imported_cascade_draws_what_their_pipeline_draws(
    place: Path, theirs: Any, ours: Cascade, drawn: Tensor
) -> None:
    exact = tiny_pipeline.load(place / "pipeline")
    tiny_pipeline.in_double(exact)
    expected = tiny_pipeline.draw(exact, CAPTIONS, noise_of(ours, len(CAPTIONS)))
    made = pictures(ours)
    exactly, released = (float((made - other).abs().max()) for other in (expected, drawn))
    print(f"tables in float64: {exactly:.1e}, as released: {released:.1e}")  # docs/bridge.md has it
    assert expected.std() > 0.1
    assert exactly <= 1e-4
    assert released <= 1e-2  # of which their float32 tables are the reason


@torch.inference_mode()
def test_both_halves_of_their_clip_are_ours(theirs: Any, ours: Cascade) -> None:
    tokens = theirs.tokenizer(
        CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    expected, found = theirs.text_encoder(tokens.input_ids), ours.captions(CAPTIONS)
    assert torch.equal(found.tokens, tokens.input_ids)
    assert torch.equal(found.mask, tokens.attention_mask.bool())
    assert (found.embedding - expected.text_embeds).abs().max() <= 1e-5
    states = (found.states - expected.last_hidden_state)[found.mask]
    assert states.abs().max() <= 1e-5
    pixels = torch.randn(2, 3, 32, 32)
    assert ours.image is not None
    seen = ours.image.module.encode_image(pixels)
    assert (seen - tiny_pipeline.image_encoder()(pixels).image_embeds).abs().max() <= 1e-5


def test_what_is_imported_is_a_run_like_any_other(imported: Path) -> None:
    for name in RUNS:
        assert folder_faults(imported / name / "checkpoints" / "000000000000") == []
        raw, average = (read_weights(imported / name, kind) for kind in ("raw", "ema"))
        assert all(torch.equal(raw[key], average[key]) for key in raw)


@pytest.fixture(scope="module")
def exported(place: Path, imported: Path) -> Path:
    export_cascade(imported, place / "exported")
    return place / "exported"


def test_an_exported_cascade_is_a_pipeline_that_draws_the_same(
    exported: Path, ours: Cascade, drawn: Tensor
) -> None:
    noise = noise_of(ours, len(CAPTIONS))
    made = tiny_pipeline.draw(tiny_pipeline.load(exported), CAPTIONS, noise)
    assert torch.equal(made, drawn)


def test_there_and_back_no_bit_is_lost(place: Path, exported: Path, imported: Path) -> None:
    import_cascade(exported, place / "again")
    for name in RUNS:
        first, second = (read_weights(root / name) for root in (imported, place / "again"))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    clips = [load_clip(str(root / "clip")).state_dict() for root in (imported, place / "again")]
    assert all(torch.equal(clips[0][key], clips[1][key]) for key in clips[0])
    written = [(root / "cascade.yaml").read_bytes() for root in (imported, place / "again")]
    assert written[0] == written[1]


def edited(place: Path, source: Path, file: str, **values: Any) -> Path:
    """A copy of a pipeline, its files links but for one config, in which values are set."""
    copy = place / f"edited-{len(list(place.iterdir()))}"
    shutil.copytree(source, copy, copy_function=os.link)
    path = copy / file
    config = {**json.loads(path.read_text()), **values}
    path.unlink()
    path.write_text(json.dumps({name: v for name, v in config.items() if v != "left out"}))
    return copy


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("model_index.json", {"_class_name": "KandinskyPipeline"}, "expected UnCLIPPipeline or"),
        ("model_index.json", {"prior": "left out"}, "prior: got None, expected PriorTransformer"),
        ("model_index.json", {"decoder": ["diffusers", "UNet2DModel"]}, "expected UNet2DCondition"),
        ("prior/config.json", {"num_layers": 2}, "prior: .*the weights lack transformer_blocks.1"),
        (
            "decoder/config.json",
            {"flip_sin_to_cos": False},
            "decoder: .*flip_sin_to_cos: got False",
        ),
        ("decoder/config.json", {"sample_size": 7}, "super_res_first: sample_size: got 16"),
        ("super_res_last/config.json", {"norm_num_groups": 16, "sample_size": None}, "sample_size"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act: got 'relu', expected"),
        ("text_encoder/config.json", {"projection_dim": 8}, "embedding_dim: got 16, expected 8 as"),
        ("text_encoder/config.json", {"num_hidden_layers": 3}, "the weights lack text_model.enc"),
        (
            "decoder_scheduler/scheduler_config.json",
            {"clip_sample_range": 2.0},
            "clip_sample_range: got 2.0, expected 1.0",
        ),
        (
            "prior_scheduler/scheduler_config.json",
            {"prediction_type": "v_prediction"},
            "prediction_type: got 'v_prediction'",
        ),
        ("prior/config.json", {"embedding_dim": 8}, "embedding_dim: got 8, expected 16 as of its"),
        (
            "prior/config.json",
            {"attention_head_dim": 4},
            r"got \[1, 1, 16\], expected \[1, 1, 8\]",
        ),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    place: Path, theirs: Any, file: str, values: dict[str, Any], message: str
) -> None:
    source = edited(place, place / "pipeline", file, **values)
    with pytest.raises(UserError, match=message) as told:
        import_cascade(source, source / "out")
    assert "\n" not in str(told.value)
    assert not (source / "out" / "cascade.yaml").exists()
    assert all(folder_faults(path.parent) == [] for path in source.glob("out/*/*/*/manifest.json"))


def test_a_pickle_that_would_run_code_is_not_read(place: Path, theirs: Any) -> None:
    source = edited(place, place / "pipeline", "prior/config.json")
    (source / "prior" / "diffusion_pytorch_model.safetensors").unlink()

    class Harm:
        def __reduce__(self) -> Any:
            return (os.system, (f"touch {place / 'harmed'}",))

    torch.save({"weight": Harm()}, source / "prior" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"model.bin: holds more than tensors"):
        import_cascade(source, source / "out")
    assert not (place / "harmed").exists()


def test_a_folder_with_something_else_is_left_alone(place: Path, theirs: Any) -> None:
    other = place / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        import_cascade(place / "pipeline", other)
    assert [path.name for path in other.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="is there already"):
        export_cascade(place / "imported", other)
    full = place / "full"
    with (
        patch("shutil.disk_usage", return_value=SimpleNamespace(free=1 << 20)),
        pytest.raises(UserError, match=r"of disk, .* are free"),
    ):
        import_cascade(place / "pipeline", full)
    assert not full.exists()


def test_an_interrupted_import_goes_on(place: Path, imported: Path) -> None:
    half = place / "half"
    with (
        patch("trainer.interop.importing.write_first", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        import_cascade(place / "pipeline", half)
    assert not (half / "cascade.yaml").exists()
    import_cascade(place / "pipeline", half)
    before = {path: path.stat().st_mtime_ns for path in half.glob("*/checkpoints/*/*")}
    import_cascade(place / "pipeline", half)
    assert before == {path: path.stat().st_mtime_ns for path in half.glob("*/checkpoints/*/*")}
    name = "checkpoints/000000000000/slices/rank_00000.safetensors"
    assert (half / "decoder" / name).read_bytes() == (imported / "decoder" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prior": {"sampler": "ddim"}}, "prior.sampler: got 'ddim', expected 'ancestral'"),
        ({"prior": {"candidates": 2}}, "prior.candidates: got 2, expected 1"),
        ({"decoder": {"threshold": "dynamic"}}, "decoder.threshold: got 'dynamic'"),
        ({"prior": None}, "prior: missing"),
        ({"upsamplers": []}, "upsamplers: got 0, expected one"),
    ],
)
def test_settings_that_their_pipeline_lacks_are_named(
    place: Path, imported: Path, change: dict[str, Any], message: str
) -> None:
    values = yaml.safe_load((imported / "cascade.yaml").read_text())
    for part, new in change.items():
        values[part] = {**values[part], **new} if isinstance(new, dict) else new
    changed = imported / "changed.yaml"
    changed.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=message):
        export_cascade(changed, place / "never")
    assert not (place / "never").exists()


@pytest.fixture(scope="module")
def bridge() -> Path:
    """Python of what `make bridge` builds; the test skips where it is absent, but not in CI."""
    place = Path(os.environ.get("UNCLIP_BRIDGE", Path(sys.prefix).parent / ".venv-bridge"))
    if not (place / "bin" / "python").is_file():
        assert not os.environ.get("CI"), f"{place} is absent: `make bridge` builds it"
        pytest.skip(f"{place} is absent: `make bridge` builds it")
    return place / "bin" / "python"


def test_the_last_release_with_the_pipeline_reads_and_draws_the_same(
    bridge: Path, place: Path, exported: Path, ours: Cascade, drawn: Tensor
) -> None:
    noise = noise_of(ours, len(CAPTIONS))
    save_file({str(number): each for number, each in enumerate(noise)}, place / "noise.safetensors")
    (place / "noise.json").write_text(json.dumps(CAPTIONS))
    program = [str(bridge), str(Path(tiny_pipeline.__file__))]
    files = [str(place / "noise.safetensors"), str(place / "drawn.safetensors")]
    subprocess.run([*program, "draw", str(exported), *files], check=True, timeout=300)
    made = load_file(place / "drawn.safetensors")["pictures"]
    assert (made - drawn).abs().max() <= 1e-4


@pytest.fixture(scope="module")
def dataset(place: Path, imported: Path) -> Path:
    """A DATASET that says that the imported CLIP embedded it, with lengths of projections."""
    root = write_dataset(place / "data", (6, 6), dim=tiny_pipeline.DIM)
    info = json.loads((root / "dataset.json").read_text())
    weights = imported / "clip" / "open_clip_model.safetensors"
    info["clip"]["weights_sha256"] = sha256_file(weights)
    (root / "dataset.json").write_text(json.dumps(info))
    for path in (root / "metadata").iterdir():
        table = pq.read_table(path)
        for name in ("img_norm", "text_norm"):
            values = pa.array([8.0 + row for row in range(len(table))], pa.float32())
            table = table.set_column(table.column_names.index(name), name, values)
        pq.write_table(table, path)
    return root


@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_an_imported_run_is_trained_further(
    place: Path, imported: Path, dataset: Path, name: str
) -> None:
    run = place / f"further-{name}"
    shutil.copytree(imported / name, run)
    settings = {
        "data.paths": [str(dataset)],
        "data.streams": 1,
        "train.samples": 8,
        "train.batch": 4,
        "train.engine": "local",
        "train.pictures": 2,
        "optim.warmup": 0,
        "optim.lr": 1e-3,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    before = read_weights(run, "raw")
    done = train(load_train_config(run / "config.yaml", [*overrides, f"out={run}"]))
    assert (done.samples, done.steps, done.resumed_from) == (8, 2, 0)
    assert (run / "samples" / "000000000008.png").is_file() == (name == "decoder")
    after = read_weights(run, "raw")
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert len(moved) > len(before) / 2
    kept = [key for key in before if "clip_" in key]
    assert all(torch.equal(before[key], after[key]) for key in kept)
    other = place / f"begun-{name}"
    begun = [*overrides, f"out={other}", f"init_from={imported / name}"]
    train(load_train_config(imported / name / "config.yaml", begun))
    again = read_weights(other, "raw")
    assert all(torch.equal(again[key], after[key]) for key in after)
    with pytest.raises(UserError, match=r"data: differs|data\.paths: got"):
        changed = write_dataset(place / f"other-{name}", (5,), seed=1, dim=tiny_pipeline.DIM)
        train(load_train_config(run / "config.yaml", [f'data.paths=["{changed}"]', f"out={run}"]))


def test_pictures_of_captions_need_no_image_tower(place: Path, theirs: Any) -> None:
    """As Karlo's text pipeline is published: its CLIP reads captions alone."""
    text_only = place / "text-only"
    shutil.copytree(place / "pipeline", text_only, ignore=shutil.ignore_patterns("image_encoder"))
    out = place / "text-only-imported"
    import_cascade(text_only, out)
    paths = fulfil(of_text(CAPTIONS, 3), out, place / "pictures", 4)
    assert all(path.is_file() for path in paths)
    with pytest.raises(UserError, match="reads captions alone and sees no pictures"):
        fulfil(of_text(CAPTIONS, 3, candidates=2), out, place / "more", 4)


def test_a_pipeline_of_image_variations_has_no_prior(place: Path, theirs: Any) -> None:
    index = {"_class_name": "UnCLIPImageVariationPipeline", "prior": "left out"}
    source = edited(place, place / "pipeline", "model_index.json", **index)
    shutil.rmtree(source / "prior")
    import_cascade(source, place / "variations")
    cascade = load_cascade(load_cascade_config(place / "variations"), "fp32")
    shown = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    made = variations(cascade, shown, cascade.random(0, [0]), invert=False)
    assert made.shape == (1, 3, 16, 16)
    with pytest.raises(UserError, match=r"prior: missing in cascade.yaml"):
        fulfil(of_text(CAPTIONS, 3), place / "variations", place / "none", 4)


def test_parts_of_unequal_space_are_not_put_together(place: Path, imported: Path) -> None:
    other = place / "unit-prior"
    shutil.copytree(imported / "prior", other)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("embedding_length: raw", ""))
    values = yaml.safe_load((imported / "cascade.yaml").read_text())
    values["prior"]["run"] = str(other)
    (imported / "mixed.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"gives embeddings of length unit, expected raw"):
        load_cascade(load_cascade_config(imported / "mixed.yaml"), "fp32")
    with pytest.raises(UserError, match=r"embedding_length: got 'unit', expected 'raw'"):
        export_cascade(imported / "mixed.yaml", place / "never")
    export_run(other, place / "alone")
    alone = PriorTransformer.from_pretrained(place / "alone" / "prior", low_cpu_mem_usage=False)
    assert torch.equal(alone.clip_mean, read_weights(other)["clip_mean"])
