"""Where DeepSpeed keeps fp32 masters and moments: its private parts, behind one face.

Checked against DeepSpeed 0.19.8; tests compare what is found here with a full gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.engine.base import Flat, Piece, whole_flat
from trainer.optim import MOMENTS, Group


class Partition(Protocol):
    """The fp32 state that one rank holds."""

    replicated: bool  # every rank holds all of it

    def masters(self) -> list[Tensor]:
        """The fp32 tensors that AdamW updates, which key its state."""
        ...

    def flats(self) -> list[Flat]:
        """The state as flat buffers; live views."""
        ...

    def publish(self) -> None:
        """Bring the weights that the model computes with up to date with the masters."""
        ...


def find_partition(optimizer: Any, adamw: torch.optim.AdamW, groups: Sequence[Group]) -> Partition:
    """The face for the wrapper that DeepSpeed put around `adamw`.

    Raises:
        RuntimeError: a wrapper that this module does not know.
    """
    if optimizer is adamw:
        return _Plain(adamw, groups)
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return _Stage3(optimizer, adamw, groups)
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        return _Stage12(optimizer, adamw, groups, optimizer.single_partition_of_fp32_groups)
    if hasattr(optimizer, "fp32_groups_flat_partition"):
        return _Stage12(optimizer, adamw, groups, optimizer.fp32_groups_flat_partition)
    if hasattr(optimizer, "fp32_groups"):
        return _Copies(optimizer, adamw, groups)
    raise RuntimeError(f"unknown DeepSpeed optimizer {type(optimizer).__name__}")


class _Plain:
    """ZeRO 0 in fp32: the parameters themselves."""

    replicated = True

    def __init__(self, adamw: torch.optim.AdamW, groups: Sequence[Group]) -> None:
        self._adamw, self._groups = adamw, groups

    def masters(self) -> list[Tensor]:
        return [parameter for group in self._groups for _, parameter in group.named]

    def flats(self) -> list[Flat]:
        return [
            whole_flat(name, parameter.shape, _with_moments(self._adamw, parameter))
            for group in self._groups
            for name, parameter in group.named
        ]

    def publish(self) -> None:
        """Masters and weights are the same tensors."""


class _Copies:
    """ZeRO 0 in bf16: an fp32 copy of each parameter on every rank."""

    replicated = True

    def __init__(self, optimizer: Any, adamw: torch.optim.AdamW, groups: Sequence[Group]) -> None:
        self._optimizer, self._adamw, self._groups = optimizer, adamw, groups

    def masters(self) -> list[Tensor]:
        return [master for masters in self._optimizer.fp32_groups for master in masters]

    def flats(self) -> list[Flat]:
        return [
            whole_flat(name, parameter.shape, _with_moments(self._adamw, master))
            for group, masters in zip(self._groups, self._optimizer.fp32_groups, strict=True)
            for (name, parameter), master in zip(group.named, masters, strict=True)
        ]

    def publish(self) -> None:
        for group, masters in zip(self._groups, self._optimizer.fp32_groups, strict=True):
            for (_, parameter), master in zip(group.named, masters, strict=True):
                parameter.data.copy_(master.data)


class _Stage12:
    """ZeRO 1 and 2: this rank's part of each group's flat buffer, linked by `_hp_mapping`."""

    replicated = False

    def __init__(
        self,
        optimizer: Any,
        adamw: torch.optim.AdamW,
        groups: Sequence[Group],
        masters: Sequence[Tensor],
    ) -> None:
        self._optimizer, self._adamw, self._masters = optimizer, adamw, masters
        self._pieces = [
            tuple(_linked(name, parameter) for name, parameter in group.named) for group in groups
        ]

    def masters(self) -> list[Tensor]:
        return list(self._masters)

    def flats(self) -> list[Flat]:
        return [
            Flat(tuple(filter(None, pieces)), _detached(_with_moments(self._adamw, master)))
            for pieces, master in zip(self._pieces, self._masters, strict=True)
        ]

    def publish(self) -> None:
        self._optimizer.update_lp_params()


class _Stage3:
    """ZeRO 3: an equal share of every parameter, padded at the end, in flat sub-groups."""

    replicated = False

    def __init__(self, optimizer: Any, adamw: torch.optim.AdamW, groups: Sequence[Group]) -> None:
        self._optimizer, self._adamw = optimizer, adamw
        self._masters: list[Tensor] = optimizer.fp32_partitioned_groups_flat
        self._pieces: list[list[Piece]] = [[] for _ in self._masters]
        for group in groups:
            for name, parameter in group.named:
                index, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
                rank = optimizer._get_param_partition_rank(parameter)
                piece = _share(name, parameter, offset, rank)
                if piece is not None:
                    self._pieces[index].append(piece)

    def masters(self) -> list[Tensor]:
        return list(self._masters)

    def flats(self) -> list[Flat]:
        return [
            Flat(tuple(pieces), _detached(_with_moments(self._adamw, master)))
            for pieces, master in zip(self._pieces, self._masters, strict=True)
        ]

    @torch.no_grad()
    def publish(self) -> None:
        optimizer = self._optimizer
        for index, master in enumerate(self._masters):
            optimizer.fp16_partitioned_groups_flat[index].data.copy_(master.data)
            optimizer._unflatten_partitioned_parameters(index)
        persistent = optimizer.persistent_parameters
        if persistent:  # kept whole on every rank between steps
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)


def _linked(name: str, parameter: Any) -> Piece | None:
    mapping = parameter._hp_mapping
    if mapping is None:  # all of it lies with other ranks
        return None
    place = mapping.lp_fragment_address
    offset = mapping.get_hp_fragment_address().start
    return Piece(name, tuple(parameter.shape), int(place.start), int(place.numel), int(offset))


def _share(name: str, parameter: Any, offset: int, rank: int) -> Piece | None:
    share = int(parameter.ds_tensor.ds_numel)
    start = min(rank * share, int(parameter.ds_numel))
    count = min(start + share, int(parameter.ds_numel)) - start
    return Piece(name, tuple(parameter.ds_shape), start, count, offset) if count > 0 else None


def _with_moments(adamw: torch.optim.AdamW, master: Tensor) -> dict[str, Tensor]:
    state = adamw.state[master]
    return {"master": master, **{kind: state[kind] for kind in MOMENTS}}


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {kind: tensor.detach() for kind, tensor in tensors.items()}
