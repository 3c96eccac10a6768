"""The launcher's records: what is frozen for which launch, what is done, which jobs there are.

Below `OUT/launch`: `frozen/HASH/` is the code, the configs and `stages/NAME.json` of one launch;
`done/NAME.json` tells that a stage's artefact is whole, and which of those that it needs it was
made from; `jobs.json` has each stage's latest job, and `here.json` how each ended that was begun
on this machine (`--cluster local`).
"""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from base.config import fingerprint
from base.errors import UserError
from base.files import read_json, sha256_file, write_json
from base.source import COMMIT, SOURCES, commit
from slurm.graph import Node

_PACKAGES = ("unclip", "slurm", "trainer", "data_pipeline", "base")


@dataclass(frozen=True)
class Spec:
    """A stage as its job reads it; everything else of the pipeline may have changed by then."""

    name: str
    kind: str
    needs: tuple[str, ...]
    makes: str
    command: tuple[str, ...]  # after the interpreter
    check: tuple[str, ...] | None
    fingerprint: str  # the node's
    code: str  # PYTHONPATH
    launch: str  # the folder of records

    @property
    def run(self) -> Path | None:
        """The RUN that it trains, if it trains one."""
        return Path(self.makes) if self.kind == "train" else None


@dataclass(frozen=True)
class Records:
    """The folder `OUT/launch`."""

    folder: Path

    @property
    def logs(self) -> Path:
        """Of all jobs; submitit's pickled job files are there as well, so it is the user's own."""
        return self.folder / "jobs"

    def freeze(self, nodes: Iterable[Node], write: bool = True) -> dict[str, Spec]:
        """Write what jobs read, once, and give their specs in the order of the nodes."""
        nodes, sources = list(nodes), _sources()
        texts = {name: text for node in nodes for name, text in node.files.items()}
        plain = [[node.name, node.command, node.check, node.makes] for node in nodes]
        key = fingerprint([sorted(texts.items()), plain, sorted(sources.items())])[:12]
        target = self.folder / "frozen" / key
        specs = {node.name: self._spec(node, target) for node in nodes}
        if write and not target.exists():
            self._write(target, texts, specs, sources)
        return specs

    def spec_path(self, spec: Spec) -> Path:
        """The file that a stage's job reads."""
        return Path(spec.code).parent / "stages" / f"{spec.name}.json"

    def _spec(self, node: Node, target: Path) -> Spec:
        frozen = str(target / "configs")
        command = tuple(word.replace("{frozen}", frozen) for word in node.command)
        return Spec(
            name=node.name,
            kind=node.kind,
            needs=node.needs,
            makes=node.makes,
            command=command,
            check=node.check,
            fingerprint=node.fingerprint,
            code=str(target / "code"),
            launch=str(self.folder),
        )

    def _write(
        self,
        target: Path,
        texts: Mapping[str, str],
        specs: Mapping[str, Spec],
        sources: Mapping[str, str],
    ) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=".draft-"))
        try:
            for name, text in texts.items():
                _put(draft / "configs" / name, text)
            for name, spec in specs.items():
                _put(draft / "stages" / f"{name}.json", json.dumps(asdict(spec), indent=1))
            for name in sources:
                _put(draft / "code" / name, (SOURCES / name).read_bytes())
            if (known := commit()) is not None:
                _put(draft / "code" / COMMIT, known)
            draft.chmod(0o755)
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def is_done(self, stage: Node | Spec) -> bool:
        """Whether the stage's artefact was found whole, is still there, and was made from those of
        its needs as they are now.

        Raises:
            UserError: it was made by another command or config.
        """
        path = self._done(stage.name)
        if not path.is_file() or not Path(stage.makes).exists():
            return False
        made = read_json(path)
        if made["fingerprint"] != stage.fingerprint:
            raise UserError(
                f"{stage.makes}: made by stage {stage.name} with another command or config; choose "
                f"another `out`, or remove it and {path} to have it made again"
            )
        return bool(made["of"] == self._tokens(stage.needs))

    def set_done(self, spec: Spec, **facts: Any) -> None:
        """Record that the stage's artefact is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._done(spec.name).parent.mkdir(exist_ok=True)
        made = {"fingerprint": spec.fingerprint, "token": secrets.token_hex(8)}
        write_json(self._done(spec.name), {**made, "of": self._tokens(spec.needs), **facts})

    def missing(self, spec: Spec) -> list[str]:
        """Those of a stage's needs that are not recorded as done, as its launch has them."""
        stages = self.spec_path(spec).parent
        needed = (read_spec(stages / f"{need}.json") for need in spec.needs)
        return [each.name for each in needed if self._made(each.name) != each.fingerprint]

    def jobs(self) -> dict[str, str]:
        """The latest job of each stage."""
        return {name: each["job"] for name, each in self._jobs().items()}

    def queued_with(self, name: str) -> str | None:
        """The fingerprint with which a stage's latest job was submitted."""
        return self._jobs().get(name, {}).get("fingerprint")

    def set_job(self, spec: Spec, job: str) -> None:
        """Record a stage's job."""
        entry = {"job": job, "fingerprint": spec.fingerprint}
        write_json(self.folder / "jobs.json", {**self._jobs(), spec.name: entry})

    def here(self) -> dict[str, int | None]:
        """The stages that were begun on this machine: how each ended, None where it has not."""
        path = self.folder / "here.json"
        return dict(read_json(path)) if path.is_file() else {}

    def set_here(self, name: str, code: int | None) -> None:
        """Record that a stage begins here, or its exit code."""
        write_json(self.folder / "here.json", {**self.here(), name: code})

    def _jobs(self) -> dict[str, dict[str, str]]:
        path = self.folder / "jobs.json"
        return dict(read_json(path)) if path.is_file() else {}

    def _made(self, name: str) -> str | None:
        """The fingerprint of what is recorded as done."""
        path = self._done(name)
        return str(read_json(path)["fingerprint"]) if path.is_file() else None

    def _tokens(self, names: Iterable[str]) -> dict[str, str]:
        """Of each stage that is done the mark of its making, which another making changes."""
        paths = {name: self._done(name) for name in names}
        return {name: read_json(path)["token"] for name, path in paths.items() if path.is_file()}

    def _done(self, name: str) -> Path:
        return self.folder / "done" / f"{name}.json"


def read_spec(path: Path) -> Spec:
    """A stage's spec, of its file.

    Raises:
        UserError: it is none.
    """
    try:
        found = json.loads(path.read_text())
        lists = {key: tuple(value) for key, value in found.items() if isinstance(value, list)}
        return Spec(**{**found, **lists})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is no stage of a launch ({error})") from error


def _sources() -> dict[str, str]:
    """Our packages' files, and the hash of each."""
    found = {}
    for package in _PACKAGES:
        for path in sorted((SOURCES / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                name = str(path.relative_to(SOURCES))
                found[name] = sha256_file(path)
    return found


def _put(path: Path, content: str | bytes) -> None:
    """Into a draft, which becomes the folder as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
