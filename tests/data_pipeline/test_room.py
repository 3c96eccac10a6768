"""Actors for which a cluster has no place: refused at once, or waited for aloud."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from base.errors import UserError
from data_pipeline import cluster, room
from data_pipeline.clip_pool import start_pool
from data_pipeline.config import EmbedConfig


class StopsAfter:
    """A flag that is set after so many looks at it."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def raise_if_requested(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


class OneGpu:
    """The Ray of these tests, which has none, as it is when a node with a GPU has just gone."""

    def __getattr__(self, name: str) -> Any:
        return getattr(ray, name)

    def cluster_resources(self) -> dict[str, float]:
        return {**ray.cluster_resources(), "GPU": 1.0}


@pytest.fixture
def gpu_pool(ray_cluster: None) -> Iterator[None]:
    yield
    for actor in cluster._pools.pop("gpu 0.5", []):
        ray.kill(actor)


def start(stop: StopsAfter) -> None:
    config = EmbedConfig(gpu_fraction=0.5, actors=1)
    start_pool(OneGpu(), "random:0", config, 3, stop)  # type: ignore[arg-type]


def test_what_an_embedded_cluster_can_never_hold_is_refused_at_once(gpu_pool: None) -> None:
    with pytest.raises(UserError) as caught:
        start(StopsAfter(0))
    assert str(caught.value) == (
        "clip: random:0: no node has a place: an actor needs GPU 0.5; "
        "the cluster has GPU 1 (0 free) on 1 node"
    )
    assert "gpu 0.5" not in cluster._pools


def test_on_a_cluster_that_may_grow_what_is_waited_for_is_told(
    gpu_pool: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "_embedded", threading.Event())
    monkeypatch.setattr(room, "_FIRST_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        start(StopsAfter(3))
    assert capsys.readouterr().err == (
        "clip: random:0: waiting for a place: an actor needs GPU 0.5; "
        "the cluster has GPU 1 (0 free) on 1 node; no node has so much, one must join\n"
    )


def test_waiting_is_told_again_at_a_slow_pace_and_loading_is_told_apart(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(room, "time", SimpleNamespace(monotonic=lambda: now[0]))
    waiting = room.Waiting(ray, "clip: a", {"CPU": 1})
    lines = []
    for placed in [0] * 130 + [1] * 70:
        waiting.still(placed)
        lines += [(now[0], line) for line in capsys.readouterr().err.splitlines()]
        now[0] += 1
    assert [at for at, _ in lines] == [105, 165, 225, 285]
    assert all("an actor needs CPU 1; the cluster has CPU" in line for _, line in lines[:3])
    assert lines[3][1] == "clip: a: still loading"
