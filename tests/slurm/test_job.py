"""What a job does, with real processes in the place of the trainer."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from base.errors import UserError
from slurm.environment import require_safe_path
from slurm.job import Job
from slurm.process import rendezvous
from slurm.records import Records, Spec, read_spec

ROOT = Path(__file__).resolve().parents[2]
RUN = "import sys; from slurm.job import run_job; run_job(sys.argv[1])"

SAVES = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1], "latest").write_text("000000000064")
    sys.exit(75)
signal.signal(signal.SIGUSR2, stop)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1]).mkdir(exist_ok=True)
pathlib.Path(sys.argv[1], "begun").touch()
time.sleep(60)
"""


def stage(folder: Path, program: str = "", check: str | None = "", **more: object) -> Spec:
    """A stage whose command is a Python program, told the folder to make."""
    made = str(folder / "made")
    words = {
        name: ("-c", text, made)
        for name, text in (("command", program), ("check", check))
        if text is not None
    }
    values = {"name": "prior", "kind": "train", "needs": (), "makes": made, "fingerprint": "f"}
    code = folder / "frozen/code"
    values |= {"code": str(code), "launch": str(folder / "launch"), "check": None, **words, **more}
    spec = Spec(**values)  # type: ignore[arg-type]
    if not code.exists():
        code.parent.mkdir(exist_ok=True)
        code.symlink_to(ROOT)
    freeze(spec)
    return spec


def freeze(spec: Spec) -> Spec:
    """Where the jobs of its launch find it."""
    path = Path(spec.code).parent / f"stages/{spec.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(spec)))
    return spec


def run(spec: Spec, environment: dict[str, str] | None = None) -> int:
    return Job(spec, {**os.environ, **(environment or {})}).run()


MAKES = "import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir()"


def test_what_is_whole_is_recorded_and_not_made_again(tmp_path: Path) -> None:
    spec = stage(tmp_path, MAKES)
    assert run(spec) == 0
    assert Records(Path(spec.launch)).is_done(spec)
    assert run(replace(spec, command=("-c", "raise SystemExit(9)"))) == 0


@pytest.mark.parametrize(
    ("program", "check", "code"),
    [("raise SystemExit(4)", "", 4), (MAKES, "raise SystemExit(2)", 2)],
)
def test_what_fails_or_is_not_whole_is_not_recorded(
    tmp_path: Path, program: str, check: str, code: int
) -> None:
    spec = stage(tmp_path, program, check)
    assert run(spec) == code
    assert not Records(Path(spec.launch)).is_done(spec)


def test_a_stage_waits_for_its_needs(tmp_path: Path) -> None:
    spec, records = stage(tmp_path, MAKES, needs=("data",)), Records(tmp_path / "launch")
    data = freeze(replace(spec, name="data", needs=(), fingerprint="d"))
    for _ in range(2):
        with pytest.raises(UserError, match="stage prior: needs data, not recorded as done"):
            run(spec)
        records.set_done(replace(data, fingerprint="another"))
    assert not Path(spec.makes).exists()
    records.set_done(data)
    assert run(spec) == 0


def test_what_was_made_from_something_that_is_made_anew_is_made_anew(tmp_path: Path) -> None:
    """Embeddings lie in the DATASET's own folder, and go with it."""
    makes = "import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir()"
    embeds = "import pathlib, sys; pathlib.Path(sys.argv[1], 'img_emb').mkdir()"
    data = stage(tmp_path, makes, name="data", kind="prepare")
    vectors = stage(tmp_path, embeds, name="vectors", kind="embed", needs=("data",))
    for _ in range(2):
        assert run(data) == 0
        assert run(vectors) == 0
        assert run(vectors) == 0  # done before
        assert Path(data.makes, "img_emb").is_dir()
        shutil.rmtree(data.makes)


def test_what_is_frozen_runs_wherever_the_job_was_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout that was edited since, for instance; the user's own modules stay within reach."""
    for folder, text in (("frozen/code", "frozen"), ("checkout", "edited")):
        (tmp_path / folder).mkdir(parents=True)
        program = f"import mine, pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{text}')"
        (tmp_path / folder / "works.py").write_text(program)
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries/mine.py").touch()
    spec = stage(tmp_path)
    monkeypatch.chdir(tmp_path / "checkout")
    command = ("-m", "works", spec.makes)
    libraries = {"PYTHONPATH": str(tmp_path / "libraries")}
    assert run(replace(spec, command=command, check=None), libraries) == 0
    assert Path(spec.makes).read_text() == "frozen"


def test_a_python_that_would_take_the_checkout_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    require_safe_path()
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    with pytest.raises(UserError, match=r"Python 3\.10 would run the code in .*another folder"):
        require_safe_path()
    monkeypatch.chdir(tmp_path)
    require_safe_path()


def test_another_config_does_not_pass_for_the_same_stage(tmp_path: Path) -> None:
    spec = stage(tmp_path, MAKES)
    run(spec)
    with pytest.raises(UserError, match="made by stage prior with another command or config"):
        run(replace(spec, fingerprint="g"))


def test_an_artefact_that_was_removed_is_made_again(tmp_path: Path) -> None:
    spec = stage(tmp_path, MAKES)
    run(spec)
    Path(spec.makes).rmdir()
    assert run(spec) == 0
    assert Path(spec.makes).is_dir()


def test_ranks_beyond_the_first_run_the_command_alone(tmp_path: Path) -> None:
    spec = stage(tmp_path, MAKES, "raise SystemExit(2)")
    assert run(spec, {"SLURM_PROCID": "1"}) == 0
    assert not (tmp_path / "launch").exists()
    assert run(stage(tmp_path, "raise SystemExit(75)"), {"SLURM_PROCID": "1"}) == 0
    assert run(stage(tmp_path, "raise SystemExit(4)"), {"SLURM_PROCID": "1"}) == 4


def test_a_rank_that_is_leaving_is_not_ended_by_slurm(tmp_path: Path) -> None:
    """The first one's 75 counts, and not the end of another that has saved as well."""
    spec = stage(tmp_path, MAKES + "; sys.exit(75)")
    leaves = "import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.SIGTERM)"
    path = Path(spec.code).parent / "stages/prior.json"
    done = subprocess.run(
        [sys.executable, "-c", f"{leaves}; {RUN}", str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SLURM_PROCID": "1"},
        timeout=60,
    )
    assert done.returncode == 0
    assert Path(spec.makes).is_dir()


@pytest.mark.parametrize(("code", "noted"), [(2, "2"), (69, "69"), (75, None), (0, None)])
def test_the_first_process_that_fails_writes_down_its_code(
    tmp_path: Path, code: int, noted: str | None
) -> None:
    """Of those that Slurm ends afterwards one may end with a higher one."""
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho JobId=17 StdOut={tmp_path}/17_0_log.out Power=\n")
    scontrol.chmod(0o755)
    step = {"SLURM_JOB_ID": "17", "SLURM_STEP_NUM_TASKS": "2", "SLURM_RESTART_COUNT": "3"}
    step |= {"SLURM_PROCID": "1", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}
    step |= {"PYTHONPATH": str(ROOT), "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    for ends in (code, 1):  # the second one comes too late, if the first has failed
        (folder := tmp_path / f"ends{ends}").mkdir()
        spec = stage(folder, f"raise SystemExit({ends})")
        path = Path(spec.code).parent / "stages/prior.json"
        subprocess.run([sys.executable, "-c", RUN, path], env={**os.environ, **step}, timeout=60)
        if noted is None:
            break
    found = [path.read_text() for path in tmp_path.glob("17_0_log.failed3")]
    assert found == ([] if noted is None else [noted])


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
@pytest.mark.parametrize(("rank", "code"), [("0", 75), ("1", 0)])
def test_a_signal_is_passed_on_and_the_first_process_says_how_it_ended(
    tmp_path: Path, number: signal.Signals, rank: str, code: int
) -> None:
    """The others end well, or srun would end the first one before it has."""
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(asdict(stage(tmp_path, SAVES))))
    child = subprocess.Popen(
        [sys.executable, "-c", RUN, str(path)],
        env={**os.environ, "SLURM_PROCID": rank, "PYTHONPATH": str(ROOT)},
    )
    try:
        while not (tmp_path / "made" / "begun").exists():
            assert child.poll() is None
            time.sleep(0.05)
        child.send_signal(number)
        assert child.wait(30) == code
    finally:
        child.kill()


INTERRUPTS = """
import pathlib, signal, sys, time
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append("INT"))
signal.signal(signal.SIGTERM, lambda *_: seen.append("TERM"))
pathlib.Path(sys.argv[1]).mkdir(exist_ok=True)
pathlib.Path(sys.argv[1], "begun").touch()
deadline = time.monotonic() + 30
while "TERM" not in seen and time.monotonic() < deadline:
    time.sleep(0.05)
time.sleep(1)
pathlib.Path(sys.argv[1], "seen").write_text(" ".join(sorted(set(seen))) + f" {seen.count('INT')}")
sys.exit(75)
"""


@pytest.mark.parametrize(
    ("number", "whole_group", "heard"),
    [(signal.SIGINT, True, "INT TERM 1"), (signal.SIGTERM, False, "TERM 0")],
)
def test_a_local_launch_lets_its_stage_save(
    tmp_path: Path, number: signal.Signals, whole_group: bool, heard: str
) -> None:
    """Ctrl-C reaches the whole group once: a second SIGINT would end a run unsaved."""
    spec, path = stage(tmp_path, INTERRUPTS), tmp_path / "spec.json"
    path.write_text(json.dumps(asdict(spec)))
    program = (
        "import sys; from pathlib import Path; from base.stop import interrupted_by_signals\n"
        "from slurm.config import Resources; from slurm.launch import _run_alone\n"
        "from slurm.records import read_spec; path = Path(sys.argv[1])\n"
        "with interrupted_by_signals(): sys.exit(_run_alone(path, read_spec(path), Resources()))\n"
    )
    earlier = signal.signal(signal.SIGINT, lambda *_: None)  # a background job ignores it
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, earlier)
    try:
        while not (tmp_path / "made" / "begun").exists():
            assert child.poll() is None
            time.sleep(0.05)
        (os.killpg if whole_group else os.kill)(child.pid, number)
        assert child.wait(60) == 75
    finally:
        child.kill()
    assert (tmp_path / "made" / "seen").read_text() == heard


def test_a_signal_in_the_check_is_answered_like_one_in_the_command(tmp_path: Path) -> None:
    """And one that came when the command was all but done does not end the check."""
    late = MAKES + "; import os, signal; os.kill(os.getppid(), signal.SIGUSR2)"
    late = "import signal; signal.signal(signal.SIGUSR2, signal.SIG_IGN); " + late
    spec = stage(tmp_path, late)
    assert run(spec) == 0
    assert Records(Path(spec.launch)).is_done(spec)


def test_ranks_meet_at_the_node_of_the_batch_script() -> None:
    one = {"SLURM_JOB_ID": "41", "SLURM_STEP_NUM_TASKS": "1"}
    two = {**one, "SLURM_STEP_NUM_TASKS": "2", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}
    assert rendezvous(one) == {}
    first, again = rendezvous(two), rendezvous({**two, "SLURM_RESTART_COUNT": "1"})
    assert first["MASTER_ADDR"] == again["MASTER_ADDR"] == "10.0.0.7"
    assert 20_000 <= int(first["MASTER_PORT"]) < 32_000
    assert first["MASTER_PORT"] != again["MASTER_PORT"]  # the old one may still be held
    elsewhere = rendezvous({**two, "SLURM_CLUSTER_NAME": "another"})  # on the same machine
    assert first["MASTER_PORT"] != elsewhere["MASTER_PORT"]


def test_a_spec_is_read_as_it_was_written(tmp_path: Path) -> None:
    spec, path = stage(tmp_path, needs=("a", "b")), tmp_path / "spec.json"
    path.write_text(json.dumps(asdict(spec)))
    assert read_spec(path) == spec
    for bad in ("{", "[]", '{"name": "x"}'):
        path.write_text(bad)
        with pytest.raises(UserError, match="is no stage of a launch"):
            read_spec(path)
