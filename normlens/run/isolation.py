"""undisturbed(model): whatever a probe could touch is saved, and restored even when the probe raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from normlens.module_state import preserved_attributes
from normlens.random_state import preserved_random_state
from normlens.run.hooks import silenced_hooks

__all__ = ["undisturbed"]

_FLAGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
)
_CUDNN = ("enabled", "benchmark", "deterministic")


@contextmanager
def undisturbed(model: torch.nn.Module, *, seed: int | None = None) -> Iterator[None]:
    """Run a block on ``model`` and leave no trace of it, whether it ends or raises.

    Saved and restored: the contents and identity of parameters, buffers, other tensors on the modules and ``.grad``;
    ``requires_grad``; modes and all other attributes of every submodule; hooks; autocast, grad and inference modes;
    the flags of cuDNN, attention kernels and determinism; the default dtype; the random states of Python, NumPy and
    torch. Inside, gradients are enabled, autocast is off, the model runs eagerly, and the user's hooks do not fire.

    Not saved: what the block does to an optimizer, to data, or to files.

    Args:
        model: the module, wrapped or not.
        seed: seeds torch's default generators inside the block; None leaves them.

    Raises:
        ValueError: the model has lazy parameters that no forward pass has shaped yet.
    """
    tensors = _tensors(model)
    with ExitStack() as undo:
        undo.enter_context(preserved_random_state(seed))
        undo.enter_context(_preserved_flags())
        undo.enter_context(preserved_attributes(model))
        for tensor in tensors:
            undo.callback(_restore, tensor, *_state(tensor))
        undo.enter_context(silenced_hooks(model))
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        for device in {"cpu", *(tensor.device.type for tensor in tensors)} & {"cpu", "cuda", "mps", "xpu"}:
            undo.enter_context(torch.autocast(device, enabled=False))
        for module in model.modules():
            module._compiled_call_impl = None
        yield


@contextmanager
def _preserved_flags() -> Iterator[None]:
    flags = [((getter, setter), getter()) for getter, setter in _FLAGS]
    cudnn = [(name, getattr(torch.backends.cudnn, name)) for name in _CUDNN]
    try:
        yield
    finally:
        for (getter, setter), value in flags:
            if getter() != value:
                setter(value)
        for name, value in cudnn:
            if getattr(torch.backends.cudnn, name) != value:
                setattr(torch.backends.cudnn, name, value)


def _tensors(model: torch.nn.Module) -> list[Tensor]:
    """List every tensor that hangs on the modules, each once: parameters, buffers and plain attributes."""
    found: dict[int, Tensor] = {}
    for module in model.modules():
        for source in (vars(module), module._parameters, module._buffers):
            found |= {id(value): value for value in source.values() if isinstance(value, Tensor)}
    if any(isinstance(tensor, UninitializedTensorMixin) for tensor in found.values()):
        raise ValueError(
            "every parameter must have its shape before it can be measured; this model has lazy ones: "
            "run one forward pass before the lens is opened"
        )
    return list(found.values())


def _state(tensor: Tensor) -> tuple[Tensor, bool, Tensor | None, Tensor | None]:
    grad = tensor.grad if tensor.is_leaf else None
    return tensor.detach().clone(), tensor.requires_grad, grad, None if grad is None else grad.detach().clone()


def _restore(
    tensor: Tensor, value: Tensor, requires_grad: bool, grad: Tensor | None, grad_value: Tensor | None
) -> None:
    # `.data`: a plain copy_ would bump the version counter and break a graph that the user still holds.
    tensor.data.copy_(value)
    if not tensor.is_leaf:
        return
    if tensor.requires_grad != requires_grad:
        tensor.requires_grad_(requires_grad)
    if tensor.grad is not grad:
        tensor.grad = grad
    if grad is not None and grad_value is not None:
        grad.data.copy_(grad_value)
