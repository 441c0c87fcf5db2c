"""Singularity: how many directions of each hidden layer's weights are invisible to the Fisher matrix, and why?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normlens.nn.vocabulary import concept
from normlens.probes.module_kinds import is_nonlinearity
from normlens.probes.nullity_prediction import Prediction, predict_rank
from normlens.probes.one_batch import at_the_mean, first_batch, outputs_of
from normlens.probes.unit_block import HiddenLayer, block_jacobian, nearest_units
from normlens.probes.unit_connections import Connections, connections
from normlens.probes.unit_derivatives import has_patches, layer_derivatives
from normlens.risk import EmpiricalRisk
from normlens.run.capture import Layers, capture, choose
from normlens.run.probe import Step
from normlens.run.reading import Reading
from normlens.typing import Schedule

__all__ = ["Singularity"]

OUTPUTS = 256
"""Outputs per sample at most: each is one backward pass."""

NUMBERS = 2**25
"""Numbers at most in what the units of a layer see, 256 MiB."""

_BOUNDED = (nn.Tanh, nn.Sigmoid, nn.Softsign)


@dataclass(frozen=True)
class Singularity:
    r"""Nullity of the Fisher matrix of each hidden layer, against the count that its singular units predict.

    A hidden layer's block are the incoming weights w (with the bias) and the outgoing weights a of its units: the
    places where a unit falls out of the network are where this block is singular. With d incoming weights per unit,
    o outgoing ones and a smooth nonlinearity, its Fisher or Gauss-Newton matrix :math:`E[\nabla f \nabla f^\top]` has
    by each singular unit these null directions more: d for a = 0 (outgoing elimination), o for w = 0 and
    :math:`\phi(0) = 0` (incoming), d + o for two units with one w and parallel a (overlap), and all
    :math:`d_{in} + 1 + d_{out}` for a dead ReLU; for o = 1 that is d, 1 and d + 1. The Hessian has as many at critical
    points alone, and for dead ReLUs: elsewhere :math:`\partial^2 L/\partial a\,\partial w` couples w and a, and leaves
    d - o at an outgoing elimination and in general none at the others. Therefore the Fisher matrix.

    For each layer: ``nullity`` (eigenvalues up to ``tolerance`` times the largest) and ``predicted``, never more: what
    exceeds it, units owe to each other, by activations that depend on each other, as those of rectifiers that are on
    for all data (left out behind a norm that is not a batch norm). ``regular`` is the nullity of such a layer without
    singular units: weights from inputs that are always zero, the scale of a rectified unit, the common shift under a
    softmax. ``rank_bound`` is a rank that so many samples cannot exceed, and ``forced`` the nullity that this bound
    alone makes, which says nothing of the network. ``smallest`` is the smallest eigenvalue counted as nonzero,
    over the largest. The block has ``parameters`` rows, of ``units`` of ``channels``: where all are more than
    ``max_parameters``, those that look nearest to a singularity stand for the layer. Of these are ``dead``, eliminated
    ``outgoing`` or ``incoming``, ``overlapping``, or ``seldom`` on (what they see then spans less), as many units.
    ``layers`` counts the hidden layers that were measured, ``too_large`` those of which no unit fits or that have more
    than 256 outputs per sample.

    Exact for the samples: of :math:`\sum_i (v_i^\top J)^\top(v_i^\top J)`, v an orthonormal basis of the output
    directions that the loss curves along, whose null space is that of :math:`J^\top SJ`; in float64, in eval mode,
    where no sample's outputs depend on another one, which the Fisher matrix needs. Left out: layers whose writer or
    reader the graph does not show to be one plain linear layer or convolution, with trainable weights of its own.

    Source: Qiao et al., arXiv:1911.09738; Wei et al., Neural Computation 20(3), 2008, for the singularities. The counts
    for more than one output and the prediction are ours.

    Args:
        samples: how many of the probe data.
        tolerance: relative to the block's largest eigenvalue.
        max_parameters: rows of a block at most.
        layers: which nonlinearities; None for all.
        when: a schedule within the lens's own, e.g. ``at(last_step)``; None to measure whenever the lens does.

    Raises:
        ValueError: the tolerance is below rounding or not below 1.
    """

    samples: int = 128
    tolerance: float = 1e-10
    max_parameters: int = 768
    layers: Layers = None
    when: Schedule | None = None

    def __post_init__(self) -> None:
        if not 1e-13 <= self.tolerance < 1:
            raise ValueError(f"tolerance must be from 1e-13 (rounding) to 1; got {self.tolerance}; 1e-10 is usual")

    def cost(self, step: Step) -> float:
        """A backward pass in float64 for every output of a sample, and an eigenvalue decomposition for every layer."""
        return 60.0

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: parameters are not finite, nothing is trainable, samples meet also in eval mode, the loss is not
                convex in the outputs, or ``layers`` names nothing.
        """
        if not step.risk.parameters:
            raise ValueError("singularity needs at least one trainable parameter; this model has none: unfreeze one")
        if not all(bool(tensor.isfinite().all()) for tensor in step.risk.parameters.values()):
            raise ValueError("parameters must be finite to have a Fisher matrix; some are not: measure before that")
        with at_the_mean(step.risk.model):
            return list(self._measured(_double(first_batch(step.risk, self.samples).evaluated())))

    def _measured(self, risk: EmpiricalRisk) -> Iterator[Reading]:
        found = self._found(risk)
        wide = bool(found) and outputs_of(risk, what="its Fisher matrix")[0].numel() > OUTPUTS
        layers = {} if wide or not found else _hidden_layers(risk, found)
        fitting = {name: layer for name, layer in layers.items() if self._fits(layer)}
        yield Reading("layers", float(len(fitting)))
        yield Reading("too_large", float(len(found) - len(fitting)))
        yield Reading("tolerance", self.tolerance)
        for name, layer in fitting.items():
            units = nearest_units(layer, self.max_parameters // (layer.incoming + layer.outgoing))
            yield from _readings(name, layer, units, self.tolerance)

    def _found(self, risk: EmpiricalRisk) -> dict[str, Connections]:
        named = choose(capture(risk), self.layers)
        names = [name for name, a in named.items() if is_nonlinearity(a.module) or isinstance(a.module, _BOUNDED)]
        every = connections(risk.model, names)
        return {name: known for name, known in every.items() if _is_plain(risk, known)}

    def _fits(self, layer: HiddenLayer) -> bool:
        positions = max(slope.shape[1] for slope in (layer.written.slopes[0], layer.read.slopes[0]))
        numbers = len(layer.written.inputs) * positions * (layer.incoming + layer.outgoing)
        return layer.incoming + layer.outgoing <= self.max_parameters and numbers <= NUMBERS


def _double(risk: EmpiricalRisk) -> EmpiricalRisk:
    try:
        return risk.double()
    except RuntimeError:  # tensors on the modules that are no leaves (legacy spectral norm) cannot be copied
        return risk


def _is_plain(risk: EmpiricalRisk, known: Connections) -> bool:
    """Say whether one trainable layer writes for this one alone, and one reads."""
    layers = [known.writer, *known.readers]
    modules = [risk.model.get_submodule(name) for name in layers]
    trained = all(f"{name}.weight" in risk.parameters for name in layers)
    return known.alone and len(layers) == 2 and trained and all(map(has_patches, modules))


def _hidden_layers(risk: EmpiricalRisk, found: Mapping[str, Connections]) -> dict[str, HiddenLayer]:
    wanted = list(dict.fromkeys(name for known in found.values() for name in (known.writer, *known.readers)))
    derivatives, activations = layer_derivatives(risk, wanted), capture(risk)
    modules: dict[str, Any] = dict(risk.model.named_modules())
    return {
        name: HiddenLayer(
            modules[known.writer],
            modules[known.readers[0]],
            activations[name],
            derivatives[known.writer],
            derivatives[known.readers[0]],
            f"{known.writer}.bias" in risk.parameters,
            concept(modules[known.norm]) if known.norm else "",
            known.pooled and not (known.norm and concept(modules[known.norm]) != "BatchNorm"),
        )
        for name, known in found.items()
    }


def _readings(name: str, layer: HiddenLayer, units: Tensor, tolerance: float) -> Iterator[Reading]:
    jacobian = block_jacobian(layer, units)
    jacobian = jacobian[jacobian.abs().amax(1) > 0]
    n, size = len(layer.written.inputs), jacobian.shape[1]
    values = torch.linalg.svdvals(jacobian).square() if len(jacobian) else jacobian.new_zeros(1)
    kept = values[values > tolerance * values[0]]
    bound = min(size, _rows(layer), len(units) * (_incoming_bound(layer) + layer.outgoing))
    found = {
        "nullity": size - len(kept), "rank_bound": bound, "forced": size - bound, "parameters": size,
        "units": len(units), "channels": layer.units, "smallest": float(kept[-1] / values[0]) if len(kept) else 0.0,
    }  # fmt: skip
    expected = predict_rank(layer, units, tolerance)
    if expected is not None:
        found |= _expected(expected, size, bound)
    for what, value in found.items():
        yield Reading(what, float(value), layer=name, n=n)


def _expected(expected: Prediction, size: int, bound: int) -> dict[str, float]:
    found = {"predicted": size - min(expected.rank, bound), "regular": size - min(expected.regular, bound)}
    kinds = ("dead", "outgoing", "incoming", "overlapping", "seldom")
    return found | {kind: getattr(expected, kind) for kind in kinds}


def _rows(layer: HiddenLayer) -> int:
    """Return how many rows the Jacobian can have: directions of the samples' outputs."""
    return sum(int((slope.flatten(1).abs().amax(1) > 0).sum()) for slope in layer.read.slopes)


def _incoming_bound(layer: HiddenLayer) -> int:
    """Return the largest rank of what one unit sees: as many places as its outgoing weights can tell apart."""
    samples, positions, _ = layer.written.slopes[0].shape
    return min(layer.incoming, samples if layer.pooled else samples * positions)
