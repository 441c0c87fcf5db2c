from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from normlens.plot.decades import log_x_axis


@pytest.mark.parametrize(("limits", "named"), [((0.9, 60), ["1", "2", "5", "10", "20", "50"]), ((1, 1e4), None)])
def test_ticks_stand_at_decades_and_between_them_where_these_are_few(limits, named):
    ax = Figure().add_subplot()
    ax.plot(limits, (0, 1))
    ax.set_xlim(limits)
    log_x_axis(ax)
    assert ax.get_xscale() == "log"
    shown = [tick for tick in ax.get_xticks() if limits[0] <= tick <= limits[1]]
    found = [ax.xaxis.get_major_formatter()(tick) for tick in shown]
    assert found == named if named else shown == [1, 10, 100, 1000, 10000]
    assert not any(ax.xaxis.get_minor_formatter()(tick) for tick in shown)
