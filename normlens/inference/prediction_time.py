"""Prediction-time batch normalization: the statistics of the very batch that is predicted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from normlens.inference.batch_statistics import observed, pooled_layers, set_moments, stored_moments
from normlens.nn.functional import Moments

__all__ = ["prediction_time_batchnorm"]


@contextmanager
def prediction_time_batchnorm(model: nn.Module, blend: float = 1.0) -> Iterator[nn.Module]:
    """Normalize by the batch's statistics, or a blend of them with the stored ones, inside a ``with`` block.

    ``mean = (1 - blend) running_mean + blend mean_B`` and ``var = (1 - blend) running_var + blend var_B`` with the
    moments of what enters each layer, over batch and space of the batch at hand and biased. Inside, the model stands
    in eval mode: dropout is off and nothing is remembered from batch to batch; afterwards modes and statistics are the
    very objects they were, also after an exception.

    With ``blend=1`` an affine change of a channel at the layer's input, ``x -> a x + c`` with ``a > 0``, is removed
    exactly (up to eps). The price: a prediction depends on the batch it is in, and suffers where the batch is small or
    its classes are not mixed. The statistics are constants for derivatives.

    Valid for batches of more than one value per channel; ``torch.nn.SyncBatchNorm`` takes those of its own rank. Works
    by hooks on the layers, so the model runs eagerly: pass and call the module that ``torch.compile`` was given. Layers
    without running statistics use the batch's anyway, whatever ``blend``. For the layers see
    :func:`normlens.inference.batch_statistics.pooled_layers`.

    Source: Nado et al., arXiv:2006.10963 (``blend=1``); the blend as in Schneider et al., NeurIPS 2020.

    Args:
        model: what predicts.
        blend: 0 for the stored statistics to 1 for the batch's.

    Yields:
        The model.

    Raises:
        ValueError: ``blend`` is outside [0, 1], there is no batch norm with running statistics, a layer's statistics
            have another sense, the model is a compiled one; in the block: one value per channel.
    """
    if not 0 <= blend <= 1:
        raise ValueError(f"prediction_time_batchnorm needs a blend in [0, 1]; got {blend}; 1 takes the batch's alone")
    if any(hasattr(module, "_orig_mod") for module in model.modules()):
        raise ValueError(
            "prediction_time_batchnorm needs the module itself, since compiled code ignores its hooks; got one from "
            "torch.compile; pass and call the module that was compiled"
        )
    layers = pooled_layers(model, what="prediction_time_batchnorm")
    if not layers:
        raise ValueError(
            "prediction_time_batchnorm needs a batch norm with running statistics; the model has none; "
            "without them the batch's are used anyway"
        )
    with ExitStack() as undo:
        _restore_modes_later(model, undo)
        stored = {layer: stored_moments(layer) for layer in layers.values()}
        for layer in layers.values():
            _restore_buffers_later(layer, undo)

        def seen(layer: nn.Module, count: int, batch: Moments) -> None:
            pairs = zip(stored[layer], batch, strict=True)
            set_moments(layer, Moments(*((1 - blend) * old + blend * new for old, new in pairs)))

        undo.enter_context(observed(layers if blend else {}, seen))
        yield model.eval()


def _restore_modes_later(model: nn.Module, undo: ExitStack) -> None:
    for module in model.modules():
        undo.callback(setattr, module, "training", module.training)
        if module._compiled_call_impl is not None:  # by module.compile(): it would not see the hooks
            undo.callback(setattr, module, "_compiled_call_impl", module._compiled_call_impl)
            module._compiled_call_impl = None


def _restore_buffers_later(layer: nn.Module, undo: ExitStack) -> None:
    for name, buffer in layer.named_buffers(recurse=False):
        undo.callback(setattr, layer, name, buffer)
