"""A step reads the device once: on a GPU every further read would leave it idle."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from small import decoder, prior, session_of, take_step, upsampler
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from trainer import models
from trainer.models.prior import without_padding

READERS = {Tensor.tolist, Tensor.numpy, Tensor.cpu}
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2")  # for a size or a value


class Reads:
    """Counts what makes the host wait for the device, or would on a GPU."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        found = self.found

        class Functions(TorchFunctionMode):
            def __torch_function__(
                self, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                if function in READERS:
                    found[function.__name__] += 1
                return function(*args, **(kwargs or {}))

        class Operators(TorchDispatchMode):
            def __torch_dispatch__(
                self, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                if function.overloadpacket.__name__ in WAITING:
                    found[function.overloadpacket.__name__] += 1
                return function(*args, **(kwargs or {}))

        self._modes = (Functions(), Operators())

    def __enter__(self) -> Counter[str]:
        for mode in self._modes:
            mode.__enter__()
        return self.found

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU looks how long the captions of a batch are, which a GPU must not."""
    monkeypatch.setattr(models.prior, "without_padding", without_padding_elsewhere)


def without_padding_elsewhere(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What the prior does with padding where it is not on a CPU."""
    with Reads() as found:
        _, shortened = without_padding(states.to("meta"), mask.to("meta"))
    assert not found
    return states[:, : shortened.shape[1]], mask[:, : shortened.shape[1]]


@pytest.mark.parametrize("make", [prior, decoder, upsampler])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_one_read_a_step(dataset: Path, tmp_path: Path, make: Any, precision: str) -> None:
    """Whatever the number of micro-batches; that of the step's numbers, after its last kernel."""
    session = session_of(dataset, tmp_path, make, "cpu", precision=precision)
    take_step(session)
    with Reads() as found:
        take_step(session)
    assert found == {"tolist": 1}


def test_what_would_wait_is_seen() -> None:
    x = torch.ones(3)
    for read in (x.sum().item, x.tolist, x.nonzero, x.cpu, lambda: bool(x[0]), x[0].item):
        with Reads() as found:
            read()
        assert found.total() == 1, read


@pytest.mark.parametrize(("zero", "own"), [(0, 0), (1, 3), (2, 3), (3, 1)])
def test_deepspeed_reads_a_few_times_more(
    deepspeed_ready: None, dataset: Path, tmp_path: Path, zero: int, own: int
) -> None:
    """Overflow and norms, on its own account; ours is still one, after the backward pass."""
    session = session_of(dataset, tmp_path, prior, "cpu", engine="deepspeed", zero_stage=zero)
    take_step(session)
    with Reads() as found:
        take_step(session)
    session.engine.close()
    assert found["tolist"] == 1
    assert found.total() - 1 <= own


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("make", [prior, decoder, upsampler])
def test_one_read_a_step_on_a_gpu(dataset: Path, tmp_path: Path, make: Any) -> None:
    """As CUDA's own record has it: copies to the host, and sizes that depend on values."""
    session = session_of(dataset, tmp_path, make, "cuda")
    take_step(session)
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            take_step(session)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([each for each in seen if "synchroniz" in str(each.message)]) == 1
