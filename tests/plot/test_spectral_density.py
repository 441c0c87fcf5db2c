from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from normlens.plot import spectral_density, spectral_density_data
from normlens.run.errors import NotRecordedError
from normlens.run.reading import Measurement, Reading


def draw(runs, **settings):
    return spectral_density(runs, Figure(figsize=(6.4, 4)).add_subplot(), **settings)


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def curves(ax):
    return [line for line in ax.lines if len(line.get_xdata()) > 2]


def recorded(run, name, step=300):
    return run.array("hessian_spectrum", name, step=step).values


def test_the_last_density_is_drawn_over_its_eigenvalues_with_the_spread_as_band(healthy_run):
    ax = draw(healthy_run)
    (line,) = curves(ax)
    np.testing.assert_array_equal(line.get_xdata(), recorded(healthy_run, "grid"))
    np.testing.assert_array_equal(line.get_ydata(), recorded(healthy_run, "density"))
    (band,) = ax.collections
    top = recorded(healthy_run, "density") + recorded(healthy_run, "density_stderr")
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(top.max())


def test_triangles_stand_at_the_ritz_extremes_and_the_zone_is_the_resolution(healthy_run):
    ax = draw(healthy_run)
    (ends,) = [line for line in ax.lines if line.get_marker() == "^"]
    ritz = recorded(healthy_run, "ritz")
    np.testing.assert_array_equal(ends.get_xdata(), [ritz.min(), ritz.max()])
    (zone,) = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert (zone.get_x(), zone.get_width()) == pytest.approx((-0.4, 0.8))
    assert any("within ±0.4" in text.get_text() for text in ax.texts)


def test_of_several_runs_the_zone_is_the_widest(four_runs):
    ax = draw(four_runs)
    (zone,) = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert zone.get_width() == pytest.approx(2 * 0.02 * 44)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(four_runs)


def test_the_axis_is_logarithmic_or_linear_as_asked_and_holds_the_highest_point(healthy_run):
    highest = recorded(healthy_run, "density").max()
    for scale in ("log", "linear"):
        ax = draw(healthy_run, scale=scale)
        assert ax.get_yscale() == scale
        assert ax.get_ylim()[0] < highest < ax.get_ylim()[1]
    assert draw(healthy_run, scale="linear").get_ylim()[0] == 0


def test_of_several_steps_the_earlier_ones_are_paler(healthy_run):
    ax = draw(healthy_run, step=[300, 0])
    early, late = curves(ax)
    np.testing.assert_array_equal(early.get_ydata(), recorded(healthy_run, "density", 0))
    assert early.get_alpha() < late.get_alpha() == 1
    assert early.get_color() == late.get_color()
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert shown == ["batch_norm, seed 0, step 0", "batch_norm, seed 0, step 300"]
    assert list(spectral_density_data(healthy_run, step=60)["step"].unique()) == [60]


def test_what_is_not_there_is_an_error_that_names_the_option_or_the_steps(healthy_run, write_measurements):
    plain = write_measurements([Measurement(0, "hessian_spectrum", readings=(Reading("lambda_max", 3.0),))])
    with pytest.raises(NotRecordedError, match="has read no density; set its density_probes"):
        draw(plain)
    with pytest.raises(NotRecordedError, match=r"no density at step 7; it has at 0, 60, 120"):
        draw(healthy_run, step=7)


def test_a_density_without_a_spread_shares_or_any_mass_is_drawn(write_measurements):
    for values in (np.zeros(3), np.array([0.0, 2.0, 0.0])):
        readings = (
            Reading("density", values, dims=("grid",)),
            Reading("grid", np.array([-1.0, 0.0, 1.0]), dims=("grid",)),
            Reading("ritz", np.array([[-0.5, 0.5]]), dims=("probe", "node")),
        )
        run = write_measurements([Measurement(2, "hessian_spectrum", readings=readings)])
        ax = draw(run)
        ax.figure.draw_without_rendering()
        assert title(ax) == "At step 2 the Hessian has eigenvalues from −0.5 to 0.5"


def test_the_title_gives_the_share_of_flat_directions_and_both_ends_or_the_extremes(healthy_run, four_runs):
    assert title(draw(healthy_run)) == ("At step 300, 64 ± 1 % of all directions are flat; eigenvalues from −1 to 20")
    assert title(draw(four_runs)) == "Flat directions: most batch_norm (64 ± 1 %), least none (40 ± 1 %)"
