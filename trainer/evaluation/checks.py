"""Whether a DATASET fits a cascade, and what must be told of the figures beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from base.clip_reference import find_weights
from base.errors import UserError
from base.files import sha256_file
from base.places import Place, folder_place
from data_pipeline.schema.dataset import DatasetInfo, read_dataset
from trainer.checkpoint.read import resolve_checkpoint
from trainer.config import DataConfig
from trainer.record import CONFIG, clip_of, data_fingerprint
from trainer.sampling.config import CascadeConfig
from trainer.stages import load_train_config


def require_fitting(
    config: CascadeConfig, dataset: Place, info: DatasetInfo, embeddings: str | None
) -> None:
    """Refuse a DATASET that the cascade cannot be measured on.

    Raises:
        UserError: it has no pictures or no embeddings, or those of another CLIP than the cascade's;
            the cascade draws no captions.
    """
    if config.prior is None:
        raise UserError("prior: missing in cascade.yaml, expected one that makes z_i of captions")
    if not info.has_pictures:
        raise UserError(f"{dataset}: has no pictures to compare with")
    clip, weights = clip_of(dataset, info, embeddings), find_weights(config.clip)
    prior = Path(config.prior.run) / CONFIG
    width = load_train_config(prior).model.embedding_dim if prior.is_file() else clip.dim
    if width != clip.dim:
        raise UserError(
            f"{dataset}: its embeddings are {clip.dim} wide, expected {width} as the prior's"
        )
    if clip.published or weights is None:  # there is no hash to compare
        return
    own = sha256_file(weights)
    if own != clip.weights_sha256:
        raise UserError(
            f"{dataset}: its embeddings are of another CLIP (weights {clip.weights_sha256[:12]}…) "
            f"than the cascade's {config.clip} ({own[:12]}…); make that one's with `unclip data "
            "embed … --as NAME` and name them with --embeddings NAME"
        )


def trained_on(config: CascadeConfig, dataset: Place, info: DatasetInfo) -> list[str]:
    """The runs of a cascade that have seen the DATASET in training, by their folders' names."""
    found = []
    for run, samples in _runs(config):
        data = load_train_config(run / CONFIG).data
        recorded = resolve_checkpoint(run, samples).manifest.facts.get("data")
        if _same(data, str(recorded), dataset, info):
            found.append(run.name)
    return found


def seen_warning(dataset: Place, runs: Sequence[str]) -> str:
    """What is to be told of figures of a DATASET that these runs know from training."""
    return (
        f"{dataset}: {', '.join(runs)} saw it in training: the figures tell what was learnt by "
        "heart, not what is drawn of new captions"
    )


def rank_warning(name: str, count: int, width: int) -> str | None:
    """What is to be told of a Fréchet distance of so few pictures; None when there are enough."""
    if count > width:
        return None
    return (
        f"{name}: {count} pictures for {width} dimensions: the covariances have not full rank, so "
        "that it is too high; compare it with that of equally many pictures alone"
    )


def _runs(config: CascadeConfig) -> Iterator[tuple[Path, int | None]]:
    first = [part for part in (config.prior, config.decoder) if part is not None]
    parts = [*first, *(network for item in config.upsamplers for network in item.runs())]
    for run, samples in [(config.clip, None), *((part.run, part.samples) for part in parts)]:
        if (Path(run) / CONFIG).is_file():
            yield Path(run), samples


def _same(data: DataConfig, recorded: str, dataset: Place, info: DatasetInfo) -> bool:
    """By the run's record where it read one DATASET, wherever that lies; else where they lie."""
    if len(data.paths) == 1 and data.selection is None:
        return data_fingerprint(data, [dataset], [info]) == recorded
    for path in data.paths:
        try:
            other = read_dataset(folder_place(path))
        except UserError:  # it is not there any more
            continue
        if other.plan_fingerprint == info.plan_fingerprint:
            return True
    return False
