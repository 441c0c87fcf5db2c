"""Snapshot: a run as it is now, each of its tables read once, however many figures and rules ask for it."""

from __future__ import annotations

import pandas as pd

from normlens.run.errors import NotRecordedError
from normlens.run.reading import Measurement
from normlens.run.store import Run

__all__ = ["Snapshot"]


class Snapshot(Run):
    """A run whose header, measurements and tables are read on first use and kept.

    A run that is being written grows between two questions; a report must not contradict itself.

    Args:
        run: the run to look at.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run.path, recover=run._recover)
        self._frames: dict[str, pd.DataFrame | NotRecordedError] = {}
        self._kept_measurements = super().measurements
        self._kept_sessions = super().sessions

    @property
    def sessions(self) -> list[dict[str, object]]:
        """The headers of all sessions."""
        return self._kept_sessions

    @property
    def measurements(self) -> list[Measurement]:
        """All visible measurements without their readings."""
        return self._kept_measurements

    def frame(self, probe: str) -> pd.DataFrame:
        """Return all readings of ``probe`` as a tidy table, which must not be changed.

        Raises:
            NotRecordedError: the run has no reading of that probe.
        """
        if probe not in self._frames:
            try:
                self._frames[probe] = super().frame(probe)
            except NotRecordedError as error:
                self._frames[probe] = error
        kept = self._frames[probe]
        if isinstance(kept, NotRecordedError):
            raise kept
        return kept
