"""A hash of everything that P1 promises to leave alone."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, str]:
    """Hash parameters, buffers, gradients, optimizer state, random states, modes, flags and hooks, each by itself."""
    parts = {
        "parameters": [p for _, p in model.named_parameters()],
        "buffers": [b for _, b in model.named_buffers()],
        "grads": [p.grad for p in model.parameters()],
        "optimizer": optimizer.state_dict() if optimizer else None,
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "modes": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "hooks": [[list(map(_kind, getattr(m, name).values())) for name in HOOKS] for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "flags": (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()),
    }
    return {name: digest(part) for name, part in parts.items()}


def digest(value: Any) -> str:
    """Hash tensors, arrays, numbers and containers of them, to the bit."""
    return hashlib.sha256(_bytes(value)).hexdigest()


def _kind(hook: Any) -> str:
    return getattr(hook, "__qualname__", type(hook).__qualname__)  # not its key: torch numbers all hooks ever made


def _bytes(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        plain = value.detach().contiguous().cpu()
        return str((plain.dtype, tuple(plain.shape))).encode() + plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return b"{" + b",".join(repr(k).encode() + _bytes(v) for k, v in sorted(value.items(), key=repr)) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b",".join(map(_bytes, value)) + b"]"
    return repr(value).encode()
