"""What the actors of a CLIP ask of the cluster."""

from __future__ import annotations

from typing import Any

import pytest

from data_pipeline import cluster
from data_pipeline.clip_pool import _actors, _needs
from data_pipeline.config import EmbedConfig


class Asked:
    """A stand-in for Ray that writes down what actors are asked for."""

    def __init__(self, **resources: float) -> None:
        self.resources, self.made = resources, list[tuple[dict[str, Any], str]]()

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, **_: Any) -> Any:
        return lambda body: _Kind(self, {})


class _Kind:
    def __init__(self, asked: Asked, options: dict[str, Any]) -> None:
        self._asked, self._options = asked, options

    def options(self, **options: Any) -> _Kind:
        return _Kind(self._asked, options)

    def remote(self, device: str) -> object:
        self._asked.made.append((self._options, device))
        return object()


@pytest.mark.parametrize(
    ("gpus", "config", "batches", "count", "share"),
    [
        (2, EmbedConfig(), 9, 2, 1.0),
        (2, EmbedConfig(gpu_fraction=0.5), 9, 4, 0.5),
        (2, EmbedConfig(gpu_fraction=0.5, actors=3), 9, 3, 0.5),
        (1, EmbedConfig(actors=5), 9, 1, 1.0),
        (8, EmbedConfig(), 3, 3, 1.0),
    ],
)
def test_actors_on_gpus_leave_the_cpus_to_the_tasks(
    gpus: int,
    config: EmbedConfig,
    batches: int,
    count: int,
    share: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a CPU each, a machine with as many GPUs as cores would have none left for pictures."""
    monkeypatch.setattr(cluster, "_pools", {})
    ray = Asked(GPU=gpus, CPU=2)
    assert len(_actors(ray, config, batches, _needs(ray, config))) == count
    assert ray.made == [({"num_gpus": share, "num_cpus": 0}, "cuda")] * count


def test_without_a_gpu_there_is_an_actor_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_pools", {})
    ray = Asked(CPU=4)
    config = EmbedConfig()
    assert len(_actors(ray, config, 9, _needs(ray, config))) == 4
    assert ray.made == [({}, "cpu")] * 4
