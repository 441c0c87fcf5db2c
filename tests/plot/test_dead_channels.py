from __future__ import annotations

from matplotlib.figure import Figure

from normlens.plot import dead_channels, dead_channels_data


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def test_counts_are_summed_over_layers(sick_run):
    data = dead_channels_data(sick_run).set_index("step")
    assert data["dead"].to_dict() == {0: 0, 180: 12, 240: 12, 300: 12}  # the probe failed at 60 and 120
    assert (data["channels"] == 96).all()
    assert (data["near_dead"] == data["dead"] + 6).all()


def test_the_title_says_how_many_are_dead_and_since_when(healthy_run, sick_run, four_runs):
    titles = [title(dead_channels(runs, Figure().add_subplot())) for runs in (healthy_run, sick_run, four_runs)]
    assert titles == [
        "No channel is dead at step 300",
        "12 of 96 channels dead, the first by step 180",
        "none: 12 of 96 channels dead, the first by step 180",
    ]
