"""SIGKILL of one rank of two, in training, in a save, in a rename, in pruning: nothing is lost."""

import json
import os
import signal
from pathlib import Path

import toy
from processes import RankServer
from stages import claim_embeddings, stage_config

from trainer.loop import train

SCRIPT = Path(__file__).with_name("killed_ranks.py")


def test_a_rank_that_is_killed_costs_no_checkpoint_and_no_bit(
    deepspeed_ready: None, rank_server: RankServer, tmp_path: Path
) -> None:
    """The prior of configs/micro, at three moments; with `make soak` at fifty."""
    data = toy.write_dataset(tmp_path / "data", [20, 23], 64, dim=16)
    train(stage_config("clip", data, tmp_path, "clip", "train.samples=16"))
    claim_embeddings(data, tmp_path / "clip")
    count, seed = (50, 0) if os.environ.get("UNCLIP_SOAK") else (3, 1)
    # One rank of the server's, that forks its own: it, too, need not import anything.
    arguments = [data, tmp_path, seed, count]
    rank_server.run(1, SCRIPT, arguments, timeout=200 + 60 * count, imports=["open_clip"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report) == count
    assert len({entry["moment"]["kind"] for entry in report}) == min(count, 4)
    for entry in report:
        between = entry["between"]
        assert entry["codes"][entry["moment"]["victim"]] == -signal.SIGKILL, entry
        assert all(between["whole"].values()), entry  # a named folder is a whole one
        if between["latest"] is not None:
            assert between["latest"] in between["whole"], entry
        assert entry["finished"], entry
        newest = max(map(int, between["whole"]), default=None)
        assert entry["resumed"] == [newest, newest], entry  # both ranks, and nothing before it
        assert entry["equal"], entry
        assert entry["left"] == ["000000000064"], entry
