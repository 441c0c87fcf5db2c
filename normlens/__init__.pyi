from . import curvature as curvature
from . import data as data
from . import inference as inference
from . import information as information
from . import models as models
from . import nn as nn
from . import optim as optim
from . import plot as plot
from . import probes as probes
from .estimate import Estimate as Estimate
from .report.diagnose import diagnose as diagnose
from .report.html import write_report as write_report
from .report.notebook import Run as Run
from .report.notebook import open_run as open_run
from .risk import EmpiricalRisk as EmpiricalRisk
from .run.lens import Lens as Lens

__version__: str
