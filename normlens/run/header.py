"""What a session writes of itself before the first number: versions, machine, settings, configuration."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

import normlens
from normlens.risk import eager_module
from normlens.run.probe import Probe

__all__ = ["session_header"]


def session_header(
    model: torch.nn.Module, probes: Mapping[str, Probe], settings: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Collect the facts that make a run's numbers understandable later.

    Args:
        model: the model, for its size, its layers and its device.
        probes: the probes by name, with their fields.
        settings: the lens's own: schedule, budget, seed and the like.
        config: the user's: data, norm, learning rate, whatever they gave.
    """
    eager = eager_module(model)
    return {
        "normlens": normlens.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": _machine(eager),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "parameters": sum(p.numel() for p in eager.parameters()),
        "layers": [name for name, _ in eager.named_modules() if name],
        "probes": {name: _fields(probe) for name, probe in probes.items()},
        "config": dict(config),
        **settings,
    }


def _machine(model: torch.nn.Module) -> dict[str, Any]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def _fields(probe: Probe) -> dict[str, str]:
    return {f.name: repr(getattr(probe, f.name)) for f in fields(probe)} if is_dataclass(probe) else {}
