"""The surface is the loss itself at every point of the grid, and computing it leaves the model as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlens.curvature.directions import filter_normalized, from_vector
from normlens.curvature.surface import CHUNK, Surface, loss_line, loss_plane
from normlens.nn.batch_norm import BatchNorm
from normlens.risk import EmpiricalRisk
from support.fingerprint import fingerprint
from support.networks import batch

EPS = torch.finfo(torch.float64).eps


def network(norm: nn.Module | None = None) -> nn.Sequential:
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(nn.Linear(12, 6), norm or nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3))
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def data(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    x, y = batch(sum(sizes))
    return list(zip(x.double().split(list(sizes)), y.split(list(sizes)), strict=True))


def directions(risk: EmpiricalRisk) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [filter_normalized(risk, generator) for _ in range(2)]


def quadratic() -> tuple[EmpiricalRisk, Tensor, Tensor, Tensor]:
    """Mean of (x w - y)^2 over 7 samples, with w, x and y."""
    generator = torch.Generator().manual_seed(2)
    x, y, w = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((7, 4), (7, 1), (1, 4)))
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(w)
    return EmpiricalRisk(model, functional.mse_loss, [(x[:4], y[:4]), (x[4:], y[4:])]), x, y, w[0]


def test_of_a_quadratic_loss_line_and_plane_are_its_closed_form():
    risk, x, y, w = quadratic()
    d1, d2 = (torch.randn(4, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (3, 4))
    line = loss_line(risk, from_vector(risk, d1), steps=9, reach=2.0)
    plane = loss_plane(risk, [from_vector(risk, d1), from_vector(risk, d2)], steps=5, reach=0.5)

    def exact(a: float, b: float = 0.0) -> float:
        return float(((x @ (w + a * d1 + b * d2) - y[:, 0]) ** 2).mean())

    np.testing.assert_array_equal(line.x, [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2])
    np.testing.assert_allclose(line.loss, [exact(a) for a in line.x], rtol=100 * EPS)
    np.testing.assert_allclose(plane.loss, [[exact(a, b) for b in plane.y] for a in plane.x], rtol=100 * EPS)
    assert line.y is None


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_center_is_the_loss_itself_and_the_mode_is_stated(mode):
    risk = EmpiricalRisk(network(), functional.cross_entropy, data(20, 12), mode=mode)
    plane = loss_plane(risk, directions(risk), steps=3)
    line = loss_line(risk, risk.gradient(), steps=51)
    assert plane.loss[1, 1] == line.loss[25] == float(risk.loss())
    assert (plane.mode, plane.statistics) == (mode, {"train": "batch", "eval": "running"}[mode])


def test_a_point_is_the_loss_of_a_model_that_stands_there():
    model = network()
    risk = EmpiricalRisk(model, functional.cross_entropy, data(20, 12), mode="train")
    first, second = directions(risk)
    plane = loss_plane(risk, [first, second], steps=4, reach=0.7)
    moved = network()
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter += plane.x[3] * first[name] + plane.y[0] * second[name]
    there = EmpiricalRisk(moved, functional.cross_entropy, data(20, 12), mode="train")
    assert plane.loss[3, 0] == pytest.approx(float(there.loss()), rel=1e3 * EPS)


def test_without_running_statistics_none_are_stated_and_a_frozen_layer_in_training_uses_them():
    plain = EmpiricalRisk(network(nn.LayerNorm(6)), functional.cross_entropy, data(8))
    assert loss_line(plain, {}, steps=2).statistics == "none"
    model = network()
    model[1].eval()
    frozen = loss_line(EmpiricalRisk(model, functional.cross_entropy, data(8)), {}, steps=2)
    assert (frozen.mode, frozen.statistics) == ("mixed", "running")


def test_the_model_its_gradients_and_all_random_states_are_undisturbed():
    model = network()
    functional.cross_entropy(model(data(8)[0][0]), data(8)[0][1]).backward()
    risk = EmpiricalRisk(model, functional.cross_entropy, data(20, 12), mode="train")
    before = fingerprint(model)
    loss_plane(risk, directions(risk), steps=3)
    assert fingerprint(model) == before


@pytest.mark.parametrize("factor", [0.01, 7.0, 300.0])
def test_scale_invariant_filters_may_be_scaled_without_changing_the_surface(factor):
    model = network(BatchNorm(6, eps=0.0))
    risk = EmpiricalRisk(model, functional.cross_entropy, data(32), mode="train")
    before = loss_plane(risk, directions(risk), steps=5)
    with torch.no_grad():
        model[0].weight *= factor  # not the bias: it has no effect before a batch norm, and it does not move
    after = loss_plane(risk, directions(risk), steps=5)
    np.testing.assert_allclose(after.loss, before.loss, rtol=1e5 * EPS)  # a bias of 300 times the weights cancels
    plain = {"0.weight": torch.ones(6, 12, dtype=torch.float64)}
    assert not np.allclose(loss_line(risk, plain, steps=5).loss, before.loss[2], rtol=1e-3)


def interrupted_after(evaluations: int) -> EmpiricalRisk:
    left = evaluations

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return functional.cross_entropy(outputs, targets)

    return EmpiricalRisk(network(), loss, data(20, 12), mode="train")


def test_what_ctrl_c_leaves_is_resumed_to_the_very_numbers_of_an_uninterrupted_surface():
    risk = EmpiricalRisk(network(), functional.cross_entropy, data(20, 12), mode="train")
    whole = loss_plane(risk, directions(risk), steps=5)
    part = loss_plane(interrupted_after(2 * CHUNK + 3), directions(risk), steps=5)
    known = np.isfinite(part.loss)
    assert known.sum() == CHUNK
    np.testing.assert_array_equal(part.loss[known], whole.loss[known])
    rest = 2 * (25 - CHUNK)  # two batches for each cell that is left, and not one more
    resumed = loss_plane(interrupted_after(rest), directions(risk), steps=5, done=part)
    np.testing.assert_array_equal(resumed.loss, whole.loss)
    assert np.isnan(part.loss).sum() == 25 - CHUNK  # what was passed in is not written to


def test_cells_that_are_known_are_taken_over_unseen():
    risk, _, _, _ = quadratic()
    flat = [{"weight": torch.ones(1, 4)}, {"weight": torch.zeros(1, 4)}]
    whole = loss_plane(risk, flat, steps=3)
    marked = whole.loss.copy()
    marked[0, 0], marked[2, 1] = -5.0, np.nan
    resumed = loss_plane(risk, flat, steps=3, done=Surface(whole.x, whole.y, marked, whole.mode, whole.statistics))
    assert resumed.loss[0, 0] == -5.0
    assert resumed.loss[2, 1] == whole.loss[2, 1]


def test_only_the_parameters_that_a_direction_names_move():
    risk, _, _, _ = quadratic()
    assert set(loss_line(risk, {}, steps=3).loss) == {float(risk.loss())}


def test_wrong_directions_steps_and_surfaces_are_errors_that_say_what_to_do():
    risk, _, _, _ = quadratic()
    fits = {"weight": torch.ones(1, 4)}
    with pytest.raises(ValueError, match=r"must name parameters of the risk; got 'w'.*\['weight'\]"):
        loss_line(risk, {"w": torch.ones(1, 4)})
    with pytest.raises(ValueError, match=r"got \(4,\) for 'weight' of shape \(1, 4\)"):
        loss_line(risk, {"weight": torch.ones(4)})
    with pytest.raises(ValueError, match="at least 2 steps; got 1"):
        loss_line(risk, fits, steps=1)
    with pytest.raises(ValueError, match="two directions; got 1; use loss_line"):
        loss_plane(risk, [fits])
    done = loss_plane(risk, [fits, fits], steps=2)
    with pytest.raises(ValueError, match="must have the same x"):
        loss_plane(risk, [fits, fits], steps=3, done=done)
    other = Surface(done.x, done.y, done.loss, "eval", done.statistics)
    with pytest.raises(ValueError, match="must have the same mode; got 'eval' instead of 'train'"):
        loss_plane(risk, [fits, fits], steps=2, done=other)


class KilledError(Exception):
    """Stands for a kill: nothing of the surface is returned."""


def killed_after(chunks: int, path: Path) -> Callable[[Surface], None]:
    """Store the surface as it grows, and die after so many times."""
    times = itertools.count(1)

    def checkpoint(surface: Surface) -> None:
        np.savez(path, **surface.to_arrays())
        if next(times) == chunks:
            raise KilledError

    return checkpoint


@pytest.mark.parametrize("plane", [True, False])
def test_what_was_stored_before_a_kill_is_resumed_without_repeating_a_point(tmp_path, plane):
    """In a fresh process, so to say: all that is left is the file, and the seed of the directions."""

    def compute(risk: EmpiricalRisk, **settings: object) -> Surface:
        found = directions(risk)
        return (
            loss_plane(risk, found, steps=5, **settings) if plane else loss_line(risk, found[0], steps=25, **settings)
        )

    whole = compute(EmpiricalRisk(network(), functional.cross_entropy, data(20, 12), mode="train"))
    with pytest.raises(KilledError):
        compute(interrupted_after(1000), checkpoint=killed_after(2, tmp_path / "surface.npz"))
    with np.load(tmp_path / "surface.npz", allow_pickle=False) as arrays:
        done = Surface.from_arrays(arrays)
    assert np.isfinite(done.loss).sum() == 2 * CHUNK
    resumed = compute(interrupted_after(2 * (25 - 2 * CHUNK)), done=done)  # two batches for each point that is left
    np.testing.assert_array_equal(resumed.loss, whole.loss)
    np.testing.assert_array_equal(resumed.x, whole.x)
    assert (resumed.mode, resumed.statistics, resumed.y is None) == ("train", "batch", not plane)


def test_a_checkpoint_comes_every_few_points_and_a_bar_counts_them_all(capsys):
    risk, _, _, _ = quadratic()
    seen: list[int] = []
    line = {"weight": torch.ones(1, 4)}
    loss_line(
        risk, line, steps=2 * CHUNK + 1, progress=True, checkpoint=lambda s: seen.append(np.isfinite(s.loss).sum())
    )
    assert seen == [CHUNK, 2 * CHUNK, 2 * CHUNK + 1]
    assert f"{2 * CHUNK + 1}/{2 * CHUNK + 1}" in capsys.readouterr().err
    loss_line(risk, line, steps=3)
    assert capsys.readouterr().err == ""


def test_arrays_that_make_no_surface_are_errors_that_say_what_is_missing():
    risk, _, _, _ = quadratic()
    arrays = loss_line(risk, {}, steps=3).to_arrays()
    assert set(arrays) == {"x", "loss", "mode", "statistics"}
    with pytest.raises(ValueError, match=r"missing \['mode'\]; save all of them"):
        Surface.from_arrays({k: v for k, v in arrays.items() if k != "mode"})
    with pytest.raises(ValueError, match=r"a row for each x and a column for each y; got x \(3,\), loss \(2,\)"):
        Surface.from_arrays({**arrays, "loss": arrays["loss"][:2]})


def test_a_line_goes_on_only_from_one_of_the_same_grid():
    risk, _, _, _ = quadratic()
    with pytest.raises(ValueError, match="must have the same x"):
        loss_line(risk, {}, steps=3, done=loss_line(risk, {}, steps=5))
    with pytest.raises(ValueError, match="must have the same y"):
        flat = {"weight": torch.zeros(1, 4)}
        loss_line(risk, {}, steps=3, done=loss_plane(risk, [flat, flat], steps=3))
