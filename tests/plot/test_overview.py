from __future__ import annotations

from matplotlib.figure import Figure

from normlens.plot import overview, overview_data, overview_size
from normlens.run.reading import Measurement, Reading
from normlens.run.store import Run


def draw(runs, figure=None):
    figure = figure or Figure(figsize=(10, 10), layout="constrained")
    overview(runs, figure.add_subplot())
    return figure


def every_axes(figure):
    return [axes for top in figure.axes for axes in (top, *top.child_axes)]


def test_all_panels_over_steps_show_the_same_steps(four_runs):
    shown = {axes.get_xlim() for axes in every_axes(draw(four_runs)) if axes.get_xlabel() == "optimizer steps"}
    assert len(shown) == 1


def test_one_legend_names_every_run_and_panels_have_none(four_runs):
    figure = draw(four_runs)
    legends = [axes.get_legend() for axes in every_axes(figure) if axes.get_legend()]
    assert [[text.get_text() for text in legend.get_texts()] for legend in legends] == [list(four_runs)]


def test_a_note_stands_right_below_the_label_where_a_panel_alone_has_its_legend(healthy_run, write_measurements):
    bare = write_measurements([Measurement(0, "training_curve", readings=(Reading("loss", 1.0),))])
    names = [f"a_long_name_of_a_run_{number}" for number in range(4)]
    runs = {"one": healthy_run, "two": healthy_run, **dict.fromkeys(names, bare)}
    figure = draw(runs, Figure(figsize=overview_size(runs), layout="constrained"))
    figure.draw_without_rendering()
    gaps = [
        axes.xaxis.get_tightbbox().y0 - text.get_window_extent().y1
        for axes in every_axes(figure)
        for text in axes.texts
        if axes.get_xlabel() and text.get_text().startswith("not shown")
    ]
    assert len(gaps) > 5
    assert all(0 <= gap <= 24 for gap in gaps)
    widths = [axes.get_position().width for axes in every_axes(figure) if axes.get_xlabel()]
    assert min(widths) > 0.15  # a wide note would squeeze its panel


def test_there_is_a_panel_for_each_figure_with_data_and_none_for_the_others(healthy_run, write_measurements):
    assert set(overview_data(healthy_run)["panel"]) == {
        "training_curve", "gradient_norm", "elimination", "dead_channels", "activation_drift", "statdiff",
        "hessian_spectrum", "condition_number", "edge_of_stability",
        "gradient_predictiveness", "covariate_shift", "gradient_flow", "cancellation", "batch_noise", "variance_shift",
        "activation_condition", "rank_collapse", "singularity", "fisher_vector", "mutual_information",
        "information_ratio",
    }  # fmt: skip
    only_loss = write_measurements([Measurement(0, "training_curve", readings=(Reading("loss", 1.0),))])
    assert list(overview_data(only_loss)["panel"]) == ["training_curve"]
    titles = [axes.get_title(loc="left") for axes in draw(only_loss).axes]
    assert [title for title in titles if title] == ["Loss 1 → 1"]


def test_panels_stay_within_the_place_of_the_axes(healthy_run):
    for make in (lambda f: f.add_subplot(1, 2, 1), lambda f: f.add_axes((0.0, 0.0, 0.5, 1.0))):
        figure = Figure(figsize=(20, 10), layout=None)
        overview(healthy_run, make(figure))
        assert max(axes.get_position().x1 for axes in figure.axes) <= 0.51


def test_the_sheet_is_higher_by_a_row_where_curvature_was_measured(healthy_run, write_measurements):
    loss = Measurement(0, "training_curve", readings=(Reading("loss", 1.0),))
    steep = Measurement(0, "hessian_spectrum", readings=(Reading("lambda_max", 1.0),))
    heights = [overview_size(write_measurements(records))[1] for records in ([], [loss], [loss, steep])]
    assert heights[0] == heights[1] < heights[2]
    assert [title for axes in draw(healthy_run).axes if (title := axes.get_title(loc="left"))][6:9] == [
        "The largest curvature went from\n4 to 20 ± 0.02", "Condition number 200 → ≥ 500",
        "Below the edge of stability: at\nmost 0.5 of it, at step 300",
    ]  # fmt: skip


def test_the_labels_of_the_x_axes_are_broken_to_the_width_of_their_panels(healthy_run):
    axes = every_axes(draw(healthy_run))
    longest = max((line for a in axes for line in a.get_xlabel().split("\n")), key=len)
    assert len(longest) <= (10 / 2 - 1) / 0.065, "at most half of the sheet, less what stands beside the panel"
    words = "condition number κ: ● as it is ◇ centered □ normalized"
    assert words in [" ".join(a.get_xlabel().split()) for a in axes]


def test_each_table_of_a_run_is_read_once_for_all_panels(healthy_run, monkeypatch):
    read = []
    frame = Run.frame
    monkeypatch.setattr(Run, "frame", lambda run, probe: read.append(probe) or frame(run, probe))
    draw(healthy_run)
    known = [probe for probe in read if probe in healthy_run.probes]
    assert sorted(known) == sorted(set(known))
    assert "training_curve" in known
