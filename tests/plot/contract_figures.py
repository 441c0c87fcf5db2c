"""Every figure of normlens.plot, found by walking the package, keeps the same promises."""

from __future__ import annotations

import copy
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from normlens import catalog, plot
from normlens.run.errors import NotRecordedError

FIGURES = catalog.names("normlens.plot")
SHOWN = ("value", "ratio", "dead", "near_dead")  # the columns of a figure's data that must be seen in its artists


# The overview holds a panel of every other figure: test_overview.py looks at it quickly, CI at all of it.
@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.slow) if n == "overview" else n for n in FIGURES])
def name(request):
    return request.param


def fresh_axes(size=(6.4, 4.0)):
    return Figure(figsize=size, layout="constrained").add_subplot()


def roomy(name):
    """The size of figures with many names or panels; the overview has ten rows of these."""
    return (10, 30) if name == "overview" else (10, 10)


def drawn_numbers(figure):
    """All coordinates of lines and all values of meshes, in the whole figure."""
    numbers = [np.empty(0)]
    axes = [axes for top in figure.axes for axes in (top, *top.child_axes)]
    for ax in axes:
        numbers += [np.asarray(line.get_xdata(), float) for line in ax.lines]
        numbers += [np.asarray(line.get_ydata(), float) for line in ax.lines]
        meshes = [artist for artist in ax.collections if isinstance(artist, QuadMesh)]
        numbers += [np.ma.filled(mesh.get_array(), np.nan).ravel() for mesh in meshes]
    return np.concatenate(numbers)


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text)]


def recorded_numbers(data):
    """What must be seen: values that are finite, and of offsets the extreme ones, within the axis."""
    if "offset" in data:
        off = data[data["dead"] | (data["offset"] < -2.326)]
        lowest = data.groupby(["run", "layer"])["offset"].min()
        numbers = np.concatenate([off["offset"], lowest])
        return numbers[np.abs(numbers) < 8]
    columns = [data[column].to_numpy(float) for column in SHOWN if column in data]
    numbers = np.concatenate(columns)
    return numbers[np.isfinite(numbers)]


def test_the_package_has_figures_and_each_hands_out_a_function_and_its_data():
    assert {"training_curve", "activation_drift", "elimination", "gradient_norm", "statdiff", "overview"} <= {*FIGURES}
    for name in FIGURES:
        assert callable(getattr(plot, name)), name
        assert callable(getattr(plot, f"{name}_data")), name


@pytest.mark.parametrize("subject", ["one", "sick", "four"])
def test_the_artists_hold_the_recorded_numbers(name, subject, healthy_run, sick_run, four_runs):
    if name == "loss_surface_3d":
        pytest.skip("its heights are logarithms, in artists of three dimensions: see test_loss_surface_3d")
    runs = {"one": healthy_run, "sick": sick_run, "four": four_runs}[subject]
    data = getattr(plot, f"{name}_data")(runs)
    ax = getattr(plot, name)(runs, fresh_axes(roomy(name)))
    drawn = drawn_numbers(ax.figure)
    panels = [getattr(plot, f"{panel}_data")(runs) for panel in data["panel"].unique()] if "panel" in data else [data]
    for table in panels:
        recorded = recorded_numbers(table)
        assert recorded.size, f"{name}: no column of {SHOWN} holds a number"
        missing = [value for value in recorded if not np.isclose(drawn, value, rtol=1e-12, atol=1e-15).any()]
        assert not missing


def test_the_axes_that_are_given_are_the_ones_returned_and_pyplot_is_left_alone(name, healthy_run):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    ax = fresh_axes()
    assert getattr(plot, name)(healthy_run, ax) is ax
    assert plt.get_fignums() == before


def test_without_axes_a_transparent_pyplot_figure_is_made(name, healthy_run):
    import matplotlib.pyplot as plt

    with mpl.rc_context({"backend": "agg"}):
        ax = getattr(plot, name)(healthy_run)
        try:
            assert ax.figure.number in plt.get_fignums()
            assert ax.figure.patch.get_alpha() == 0
            assert ax.figure.get_layout_engine() is not None
        finally:
            plt.close(ax.figure)


@pytest.mark.slow
def test_sixteen_runs_with_long_names_leave_room_for_the_data(name, four_runs):
    import matplotlib.pyplot as plt

    many = {f"{one}, adamw+weight_rescaling, seed {i}": run for i in range(4) for one, run in four_runs.items()}
    with mpl.rc_context({"backend": "agg"}):
        ax = getattr(plot, name)(many)
        try:
            ax.figure.draw_without_rendering()  # a layout that collapses warns, and a warning is an error here
            assert ax.get_window_extent().height > 150
            assert ax.get_window_extent().width > 250
        finally:
            plt.close(ax.figure)


def test_no_setting_of_matplotlib_is_changed(name, healthy_run):
    before = copy.deepcopy(dict(mpl.rcParams))
    getattr(plot, name)(healthy_run, fresh_axes())
    assert dict(mpl.rcParams) == before


def test_a_run_without_the_probe_is_an_error_that_names_it(name, empty_run):
    with pytest.raises(NotRecordedError, match=empty_run.name):
        getattr(plot, name)(empty_run, fresh_axes())
    with pytest.raises(NotRecordedError, match="|".join(FIGURES)):
        getattr(plot, f"{name}_data")(empty_run)


def test_a_run_that_lacks_the_probe_beside_others_is_named_in_the_figure(name, healthy_run, empty_run):
    if name == "overview":
        pytest.skip("its panels are tested one by one, and its legend names every run")
    ax = getattr(plot, name)({"whole": healthy_run, "lacking": empty_run}, fresh_axes())
    assert any("not shown" in text and "lacking" in text for text in texts(ax.figure))


def test_the_title_answers_and_is_not_a_list_of_axes(name, four_runs):
    ax = getattr(plot, name)(four_runs, fresh_axes(roomy(name)))
    titles = [axes.get_title(loc="left") for axes in ax.figure.axes]
    assert any(len(title) > 15 for title in titles)


def test_a_run_keeps_its_color_when_another_one_is_not_shown(name, healthy_run, empty_run, four_runs):
    def colors(runs):
        figure = getattr(plot, name)(runs, fresh_axes(roomy(name))).figure
        return {mpl.colors.to_hex(line.get_color()) for line in figure.findobj(mpl.lines.Line2D)}

    if name in ("overview", "activation_drift"):
        pytest.skip("names every run in its legend; has no lines in the run's color")
    second = plot.style.palette(2)[1]
    assert second in colors({"empty": empty_run, "healthy": healthy_run})


def test_hostile_names_are_drawn_as_text(name, hostile_runs, tmp_path):
    ax = getattr(plot, name)(hostile_runs, fresh_axes(roomy(name)))
    for format_ in ("png", "svg"):
        ax.figure.savefig(tmp_path / f"figure.{format_}", format=format_)
    for text in texts(ax.figure):
        assert not any(character in text for character in "\x00\x07\u202e\u2066\u200f\ud800")
        assert text.count("$") == text.count(r"\$") or text.startswith("$\\mathdefault")  # ticks are ours
        assert max(map(len, text.split("\n")), default=0) < 200


def test_one_measurement_is_enough_or_named_as_too_few(name, make_run):
    run = make_run(steps=(0,))
    if name == "activation_drift":
        with pytest.raises(NotRecordedError, match="two measurements"):
            getattr(plot, name)(run, fresh_axes())
    else:
        getattr(plot, name)(run, fresh_axes(roomy(name))).figure.draw_without_rendering()


def test_plots_know_no_torch():
    code = "import sys, normlens.plot, normlens.report.html; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
