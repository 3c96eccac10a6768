"""The texts of slurm.conf and slurmdbd.conf, and what is refused before there are any."""

from pathlib import Path

import pytest

from base.errors import UserError
from slurm.testbed.config import Machine, slurm_conf, slurmdbd_conf
from slurm.testbed.layout import Layout
from slurm.testbed.shape import Shape

GOLDEN = Path(__file__).parent / "golden"
LAYOUT = Layout(Path("/srv/bed"))
MACHINE = Machine("box", "root")
PORTS = {"slurmctld": 20001, "slurmdbd": 20002, "n1": 20003, "n2": 20004}


def test_slurm_conf_is_as_it_was() -> None:
    shape = Shape(nodes=2, cpus=4, memory=16_000, grace=30, requeue_delay=10, node_timeout=15)
    assert slurm_conf(LAYOUT, shape, PORTS, MACHINE) == (GOLDEN / "slurm.conf").read_text()


def test_slurmdbd_conf_is_as_it_was() -> None:
    assert slurmdbd_conf(LAYOUT, PORTS, MACHINE) == (GOLDEN / "slurmdbd.conf").read_text()


def test_every_node_has_a_line_with_its_port_and_size() -> None:
    shape = Shape(nodes=3, cpus=64, memory=512_000)
    text = slurm_conf(LAYOUT, shape, {**PORTS, "n3": 20005}, MACHINE)
    nodes = [line for line in text.splitlines() if line.startswith("NodeName=")]
    assert [line.split()[0] for line in nodes] == ["NodeName=n1", "NodeName=n2", "NodeName=n3"]
    assert "Port=20005 CPUs=64 RealMemory=512000" in nodes[2]


def test_two_folders_are_two_clusters() -> None:
    assert LAYOUT.cluster != Layout(Path("/srv/other")).cluster


@pytest.mark.parametrize(
    ("folder", "message"),
    [("/tmp/" + 70 * "a", "too long for Unix sockets"), ("/tmp/a b", "take letters, digits")],
)
def test_folders_that_cannot_hold_a_testbed(folder: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Layout.of(Path(folder))


def test_a_folder_of_somebody_elses_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds thesis\.tex, and is no testbed's"):
        Layout(tmp_path).make()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_testbeds_folder_is_used_again(tmp_path: Path) -> None:
    Layout(tmp_path / "bed").make()
    Layout(tmp_path / "bed").make()
    assert (tmp_path / "bed" / "spool").is_dir()
