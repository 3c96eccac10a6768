"""Embeddings at unit length and as CLIP projects them, from a DATASET to losses and uses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
import small_cascade
import torch
from torch import Tensor
from toy import write_dataset

from base.errors import UserError
from data_pipeline.schema import dataset as schema
from trainer.batch import Batch, Needs
from trainer.config import DataConfig
from trainer.loader.samples import SampleReader
from trainer.models.prior import DiffusionPrior, PriorConfig
from trainer.models.space import EmbeddingSpace
from trainer.objectives.prior import PriorObjective, PriorObjectiveConfig
from trainer.rng import SampleRandom
from trainer.sampling import uses

RAW = EmbeddingSpace("raw")


def with_norms(root: Path, sizes: tuple[int, ...], image: float = 8.0, text: float = 5.0) -> Path:
    """A toy DATASET whose lengths grow from row to row."""
    write_dataset(root, sizes)
    for shard, size in enumerate(sizes):
        path = schema.metadata_path(root, shard)
        table = pq.read_table(path)
        for name, first in (("img_norm", image), ("text_norm", text)):
            place = table.column_names.index(name)
            values = pa.array(np.full(size, first) + 0.25 * np.arange(size), pa.float32())
            table = table.set_column(place, schema.METADATA_SCHEMA.field(name), values)
        pq.write_table(table, path)
    return root


def test_the_loader_gives_lengths_beside_directions(tmp_path: Path) -> None:
    root = with_norms(tmp_path / "data", (3, 4))
    config = DataConfig(paths=(str(root),), streams=1)
    reader = SampleReader(config, Needs(embeddings=True, norms=True), 0)
    positions = np.arange(7)
    batch = reader.batch(positions)
    assert batch.image_norm is not None
    assert batch.text_norm is not None
    stored = np.concatenate([np.load(schema.img_emb_path(root, shard)) for shard in (0, 1)])
    lengths = np.concatenate([8 + 0.25 * np.arange(3), 8 + 0.25 * np.arange(4)])
    assert batch.image_embedding is not None
    for row, norm in zip(batch.image_embedding, batch.image_norm, strict=True):
        (place,) = np.flatnonzero((stored == row.numpy()).all(axis=1))
        assert norm == lengths[place]
    assert torch.equal(batch.text_norm, batch.image_norm - 3)
    assert reader.batch(positions[:2]).to(torch.device("cpu")).text_norm is not None


@pytest.mark.parametrize("image", [float("nan"), 1.0])
def test_lengths_that_a_dataset_does_not_know_are_one_line(tmp_path: Path, image: float) -> None:
    root = write_dataset(tmp_path / "data", (3,))  # of length 1 throughout
    if image != 1.0:
        root = with_norms(tmp_path / "other", (3,), image)
    reader = SampleReader(
        DataConfig(paths=(str(root),), streams=1), Needs(embeddings=True, norms=True), 0
    )
    with pytest.raises(UserError, match="img_norm, text_norm: missing or 1 throughout"):
        reader.batch(np.arange(2))
    named = DataConfig(paths=(str(root),), streams=1, embeddings="second")
    with pytest.raises(UserError, match=r"data.embeddings: got 'second'"):
        SampleReader(named, Needs(norms=True), 0).catalogue.pools[0].shards.norms(np.arange(1))


def test_a_raw_prior_diffuses_what_its_mean_and_deviation_make_of_projections() -> None:
    captions: Any = small.Captions("cpu")
    config = PriorObjectiveConfig(embedding_length="raw", embedding_scale=1.0, drop_text=0.0)
    model = DiffusionPrior(PriorConfig(small.WIDTH, small.WIDTH, small.LENGTH, layers=1, heads=1))
    model.clip_mean.normal_()
    model.clip_std.uniform_(0.5, 2)
    data = small.batches(1)[0].to(torch.device("cpu"))
    rows = torch.arange(len(data)) + 2.0
    data = replace(data, image_norm=rows, text_norm=3 * rows)
    objective = PriorObjective(config, captions)
    assert objective.needs.norms
    seen: list[Tensor] = []
    model.register_forward_hook(lambda _, given, __: seen.append(given[4]))
    x0, network = objective.given(model, data, SampleRandom(0, data.positions))
    assert data.image_embedding is not None
    assert data.text_embedding is not None
    raw = rows[:, None] * data.image_embedding
    torch.testing.assert_close(x0, (raw - model.clip_mean) / model.clip_std)
    torch.testing.assert_close(model.restored(x0), raw, atol=1e-4, rtol=1e-5)
    network(x0, torch.zeros(len(data), dtype=torch.int64))
    torch.testing.assert_close(seen[0], 3 * rows[:, None] * data.text_embedding)


def test_mean_and_deviation_stay_exact_in_a_network_of_low_precision() -> None:
    model = DiffusionPrior(PriorConfig(8, 8, 4, layers=1, heads=1, head_width=8))
    mean = torch.rand(1, 8)
    model.clip_mean.copy_(mean)
    model = model.to(torch.bfloat16)
    assert model.positions.dtype == torch.bfloat16
    assert torch.equal(model.clip_mean, mean)


def test_unit_embeddings_pass_through_untouched() -> None:
    z, unit = torch.randn(3, 4), EmbeddingSpace()
    assert unit.stored(z, None) is unit.directions(z) is unit.turned(torch.ones(3, 4), z) is z


def test_raw_uses_turn_directions_and_keep_lengths() -> None:
    model = small_cascade.cascade()
    image, text = model.image, model.text
    assert image is not None
    image.space = text.space = RAW
    z_i: list[Tensor] = []
    decode = type(model).decode

    def spied(cascade: Any, z: Tensor, *rest: Any, **more: Any) -> Tensor:
        z_i.append(z)
        return decode(cascade, z, *rest, **more)

    shown = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    random = model.random(0, [0, 1])
    share = torch.tensor([0.2, 0.4])
    captions = (["a red circle"] * 2, ["a blue square"] * 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "decode", spied)
        uses.text_diff(model, shown, *captions, share, random)
        axes = torch.eye(16)[:4]
        uses.pca(model, shown, torch.zeros(16), axes, random)
    before = model.look(shown)
    assert (before.norm(dim=1) - 1).abs().min() > 0.1  # not of unit length by chance
    for turned in z_i:
        torch.testing.assert_close(turned.norm(dim=1), before.norm(dim=1))
        assert not torch.allclose(turned, before, atol=1e-2)
    cosines = torch.nn.functional.cosine_similarity(z_i[0], before)
    angles = torch.acos(cosines)
    assert (angles > 0.1).all()


def test_a_batch_without_lengths_is_as_before() -> None:
    batch = Batch(torch.arange(2), image_embedding=torch.ones(2, 3).half())
    moved = batch.to(torch.device("cpu"))
    assert moved.image_norm is None
    assert moved.image_embedding is not None
    assert moved.image_embedding.dtype == torch.float32
