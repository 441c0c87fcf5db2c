from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from normlens.plot import predictive_entropy, predictive_entropy_data
from normlens.run.reading import Measurement, Reading


def draw(runs):
    return predictive_entropy(runs, Figure().add_subplot())


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def run_of(write_measurements, *entropies, noise=0.0):
    return write_measurements([
        Measurement(i, "predictive_entropy", readings=(
            Reading("entropy", value), Reading("mutual_information", noise), Reading("largest", math.log(10)),
        ))
        for i, value in enumerate(entropies)
    ])  # fmt: skip


def test_entropy_is_solid_with_its_error_and_mutual_information_dotted(healthy_run):
    ax = draw(healthy_run)
    data = predictive_entropy_data(healthy_run)
    for kind, style in (("mutual_information", ":"), ("entropy", "-")):
        (line,) = [one for one in ax.lines if one.get_linestyle() == style and len(one.get_xdata()) == 6]
        np.testing.assert_array_equal(line.get_ydata(), data.loc[data["name"] == kind, "value"])
    tops = [band.get_paths()[0].vertices[:, 1].max() for band in ax.collections]
    assert max(tops) == pytest.approx(2.2 * 1.03)


def test_the_entropy_of_a_guess_is_drawn_where_the_lines_come_near_it(write_measurements):
    def guess(ax):
        return [line for line in ax.lines if list(line.get_ydata()) == [math.log(10)] * 2]

    near, far = (draw(run_of(write_measurements, value, 0.01)) for value in (1.2, 0.9))
    assert len(guess(near)) == 1
    assert [text.get_text() for text in near.texts] == ["a guess"]
    assert not guess(far)


def test_the_title_says_the_last_entropy_and_the_part_that_is_noise(healthy_run, four_runs, write_measurements):
    assert title(draw(healthy_run)) == "Unsure by 0.166 nats in the end, 0.0166 of them its own noise"
    assert title(draw(run_of(write_measurements, 1.0, 0.5))) == "Unsure by 0.5 nats in the end; nothing in it is random"
    assert title(draw(four_runs)) == "Final entropy in nats: lowest batch_norm (0.166), highest none (0.576)"


def test_an_entropy_that_is_not_a_number_is_said(write_measurements):
    assert title(draw(run_of(write_measurements, np.nan, noise=np.nan))) == "The entropy is not a number"
