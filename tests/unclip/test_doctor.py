"""The doctor: right about what is there, alive whatever is missing."""

import json
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from unclip import doctor, probes
from unclip.probes import PROBES, Finding, Probe

Usage = namedtuple("Usage", "total used free")


def found(name: str) -> Finding:
    return PROBES[name].look(name)


def tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unclip", "doctor", "--json"], capture_output=True, text=True
    )
    result = json.loads(done.stdout)
    assert set(result["findings"]) == set(PROBES)
    assert done.returncode == (0 if result["can_run_demo"] else 2)
    assert result["findings"]["python"]["value"].startswith(platform.python_version())
    assert result["findings"]["torch"]["value"].startswith(torch.__version__)
    for finding in result["findings"].values():
        assert finding["state"] in ("ok", "lacking", "optional")
        assert (finding["remedy"] is None) == (finding["state"] == "ok")


def test_as_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lacking = Finding("compiler", "lacking", "no [g++]", "apt-get install g++")
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("python", "ok", "3.11"), lacking])
    with pytest.raises(doctor.typer.Exit) as caught:
        doctor.doctor(json=False)
    assert caught.value.exit_code == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["python", "ok", "3.11"]
    assert lines[1].split() == ["compiler", "missing", "no", "[g++]"]
    assert lines[2].strip() == "to get it: apt-get install g++"
    assert "cannot run here" in lines[-1]


@pytest.mark.parametrize("package", ["torch", "ray", "open_clip"])
def test_alive_without_a_package(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import importlib.metadata as metadata\n"
        "version = metadata.version\n"
        "def lacking(name):\n"
        f"    if name.replace('-', '_').replace('_torch', '') == {package!r}:\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "metadata.version = lacking\n"
        "sys.argv = ['unclip', 'doctor', '--json']\n"
        "from unclip.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    result = json.loads(done.stdout)
    assert (done.returncode, result["can_run_demo"]) == (2, False)
    lacking = {name for name, f in result["findings"].items() if f["state"] == "lacking"}
    assert "packages" in lacking
    assert package in lacking
    assert package in result["findings"]["packages"]["value"].replace("-", "_")


@pytest.mark.parametrize(("needed", "state"), [(True, "lacking"), (False, "optional")])
def test_a_probe_that_breaks_is_a_finding(
    needed: bool, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> Finding:
        raise OSError("libcudart.so: cannot\nopen")

    monkeypatch.setattr(doctor, "PROBES", {"x": Probe(broken, needed, "mend it")})
    reason = "cannot be examined: OSError: libcudart.so: cannot open"
    assert doctor.examine() == [Finding("x", state, reason, "mend it")]  # type: ignore[arg-type]


def test_disk_and_memory_have_a_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, state in ((probes.DISK_GB * 1e9, "ok"), (probes.DISK_GB * 1e9 - 1, "lacking")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(1e12, 0, free))
        assert found("disk").state == state
    monkeypatch.setattr(probes, "MEMORY_GB", 1e6)
    assert found("memory").state == "lacking"


def test_cores_are_those_this_process_may_use() -> None:
    cores = float(found("cpu").value.split()[0])
    assert 0 < cores <= len(os.sched_getaffinity(0))


def test_slurm_and_munge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found("slurm").value == "no sbatch, srun, sinfo on PATH"
    assert (found("slurm").state, found("munge").state) == ("optional", "optional")
    for name in ("sbatch", "srun", "sinfo"):
        tool(tmp_path, name, "echo slurm-wlm 22.05.8")
    assert (found("slurm").state, found("slurm").value) == ("ok", "slurm-wlm 22.05.8")
    tool(tmp_path, "munge", "exit 6")
    assert found("munge").value == "munge is installed, munged does not run"
    tool(tmp_path, "munge", "exit 0")
    assert found("munge").state == "ok"


def test_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    lacking = found("compiler")
    assert lacking.state == "lacking"
    assert lacking.remedy is not None
    assert "apt-get install g++" in lacking.remedy
    tool(tmp_path, "c++", "echo 'c++ 12.2'")
    tool(tmp_path, "ninja", "exit 0")
    assert "C++ compiler" not in (found("compiler").remedy or "")


def test_whether_deepspeed_s_operator_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert "builds its CPU operator at first use" in found("deepspeed").value
    folder = tmp_path / "py311_cpu" / "deepspeed_shm_comm"
    folder.mkdir(parents=True)
    (folder / "deepspeed_shm_comm.so").touch()
    assert "its CPU operator is built" in found("deepspeed").value


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    about = namedtuple("about", "name total_memory")("H200", 150e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    assert found("gpu") == Finding("gpu", "ok", "2: H200, 150 GB; H200, 150 GB")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert found("gpu").state == "optional"


def test_torch_and_torchvision_that_do_not_match(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def absent(*_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", absent)
    finding = next(f for f in doctor.examine() if f.name == "torch")
    assert (finding.state, finding.remedy is not None) == ("lacking", True)
    assert "torchvision::nms does not exist" in finding.value
