from __future__ import annotations

import numpy as np

from normlens.report.questions.are_channels_dying import are_channels_dying


def test_the_answer_counts_the_dead_and_names_the_worst_layer(four_runs):
    answers = are_channels_dying(four_runs).answers
    assert answers["none"] == ("Yes, 12 of 96 channels are dead, most in block2.relu (9 of 32), the first by step 180.")
    assert answers["batch_norm"] == "No, none of 96 channels is dead and the lowest offset is −1.44 in block2.relu."


def test_the_map_is_shown_where_its_readings_were_recorded(four_runs, write_measurements):
    from normlens import plot
    from normlens.run.reading import Measurement, Reading

    assert plot.elimination_map in are_channels_dying(four_runs).figures
    readings = (Reading("offset", np.array([0.5]), layer="relu", dims=("channel",)),)
    old = write_measurements([Measurement(0, "elimination", readings=readings)])
    assert are_channels_dying({"old": old}).figures == (plot.elimination,)


def test_the_table_has_one_row_for_each_layer(four_runs):
    table = are_channels_dying(four_runs).table
    assert len(table) == 4 * 3
    row = table[(table["run"] == "none") & (table["layer"] == "block2.relu")].iloc[0]
    assert (row["dead"], row["channels"], row["step"]) == (9, 32, 300)
