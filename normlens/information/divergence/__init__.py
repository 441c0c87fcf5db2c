"""How far two distributions are apart, each measure with the null floor that chance alone reaches.

``x(h1, h2)`` is one number with its error, the average over the channels; ``x_of(h1, h2)`` are those of all channels as
tensors. Imported eagerly: the functions are few and all need torch.
"""

from normlens.information.divergence.binned import jensen_shannon as jensen_shannon
from normlens.information.divergence.binned import jensen_shannon_floor as jensen_shannon_floor
from normlens.information.divergence.binned import jensen_shannon_of as jensen_shannon_of
from normlens.information.divergence.binned import psi as psi
from normlens.information.divergence.binned import psi_floor as psi_floor
from normlens.information.divergence.binned import psi_of as psi_of
from normlens.information.divergence.cumulative import energy as energy
from normlens.information.divergence.cumulative import energy_of as energy_of
from normlens.information.divergence.cumulative import kolmogorov_smirnov as kolmogorov_smirnov
from normlens.information.divergence.cumulative import kolmogorov_smirnov_of as kolmogorov_smirnov_of
from normlens.information.divergence.cumulative import wasserstein as wasserstein
from normlens.information.divergence.cumulative import wasserstein_of as wasserstein_of
from normlens.information.divergence.cumulative_floor import effective_count as effective_count
from normlens.information.divergence.cumulative_floor import kolmogorov_smirnov_floor as kolmogorov_smirnov_floor
from normlens.information.divergence.cumulative_floor import wasserstein_floor as wasserstein_floor
from normlens.information.divergence.gaussian import gaussian_kl as gaussian_kl
from normlens.information.divergence.gaussian import gaussian_kl_floor as gaussian_kl_floor
from normlens.information.divergence.gaussian import gaussian_kl_of as gaussian_kl_of
from normlens.information.divergence.kernel import mmd as mmd
from normlens.information.divergence.kernel import mmd_of as mmd_of
from normlens.information.divergence.null_floor import null_floor as null_floor
