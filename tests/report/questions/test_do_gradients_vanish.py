from __future__ import annotations

import math

from normlens import plot
from normlens.report.questions.do_gradients_vanish import do_gradients_vanish
from normlens.run.reading import Measurement, Reading

NORM = Measurement(0, "training_curve", readings=(Reading("gradient_norm", 2.0, n=8),))
SAID = "The gradient's norm went from 2 to 2, its largest value was 2 at step 0"


def flow(step, **values):
    made = [Reading(name, value, error=0.02 if name == "growth" else math.nan) for name, value in values.items()]
    return Measurement(step, "gradient_flow", readings=(Reading("energy", 1.0, layer="a", n=8), *made))


def test_the_answer_gives_both_ends_and_the_peak(healthy_run, sick_run):
    answers = do_gradients_vanish({"well": healthy_run, "ill": sick_run}).answers
    assert answers["well"] == (
        "The gradient's norm went from 2.07 to 0.108, its largest value was 2.07 at step 0; by the activations its "
        "square grew at step 0 × 1.45 ± 0.01 per layer towards the input, × 1.47 in theory."
    )
    assert answers["ill"].startswith("The gradient is not finite at step 180, the first of 3 such steps; by the")


def test_the_growth_is_that_of_the_first_measurement_and_its_figure_stands_beside(write_measurements):
    run = write_measurements([NORM, flow(0, growth=1.3), flow(10, growth=9.0, predicted=9.0)])
    question = do_gradients_vanish({"run": run})
    expected = "; by the activations its square grew at step 0 × 1.3 ± 0.02 per layer towards the input."
    assert question.answers["run"] == SAID + expected
    assert question.figures == (plot.gradient_norm, plot.gradient_flow)
    assert "arXiv:1902.08129" in question.method["reference"]


def test_without_a_growth_nothing_is_said_of_it(write_measurements):
    for records in ([NORM], [NORM, flow(0)], [NORM, flow(0, growth=math.nan)]):
        question = do_gradients_vanish({"run": write_measurements(records)})
        assert question.answers["run"] == f"{SAID}."
        assert (plot.gradient_flow in question.figures) == (len(records) > 1)
