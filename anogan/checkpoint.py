"""What a training needs to go on after it was killed, as one file without executable content."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from anogan.model import save_tensors, weights_of
from preprocessing.errors import InputError

CHECKPOINT = "checkpoint.safetensors"


def save_checkpoint(
    path: Path,
    networks: dict[str, nn.Module],
    optimisers: dict[str, torch.optim.Optimizer],
    notes: dict,
) -> None:
    """Write weights, the state of the optimisers and `notes` (anything JSON can hold)."""
    tensors = weights_of(**networks)
    for name, optimiser in optimisers.items():
        for number, state in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}/{number}/{key}": value for key, value in state.items()}
    save_tensors(path, tensors, {"notes": json.dumps({**notes, "sha256": _digest(tensors)})})


def read_notes(path: Path) -> dict | None:
    """Return the notes of a checkpoint, None when there is none; InputError when it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads(file.metadata()["notes"])
        return {name: notes[name] for name in ("step", "history", "identity")}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it to train from the start") from error


def load_checkpoint(
    path: Path, networks: dict[str, nn.Module], optimisers: dict[str, torch.optim.Optimizer]
) -> None:
    """Bring networks and optimisers, in place, to the state in a checkpoint."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            digest = json.loads(file.metadata()["notes"]).get("sha256")
        if digest != _digest(tensors):
            raise ValueError("wrong checksum")
        for name, network in networks.items():
            network.load_state_dict(_below(tensors, f"{name}."))
        for name, optimiser in optimisers.items():
            optimiser.load_state_dict(_optimiser_state(optimiser, _below(tensors, f"{name}/")))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it to train from the start") from error


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].cpu().contiguous().numpy())
    return digest.hexdigest()


def _optimiser_state(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> dict:
    """Return what `load_state_dict` takes, with every tensor laid out in memory as before."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split("/")
        like = parameters[int(number)]
        if value.shape == like.shape:
            value = torch.empty_like(like).copy_(value)
        state.setdefault(int(number), {})[key] = value
    return {**optimiser.state_dict(), "state": state}


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
