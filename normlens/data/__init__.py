"""Real images, embedded or read from files: every data set is a function that returns an ImageData.

Imported eagerly: a function has the name of its module, and a lazy index would hand out the module.
"""

from normlens.data.amplitude_phase import APRPair, APRSingle, amplitude_phase_recombination
from normlens.data.batching import Batches
from normlens.data.cifar10 import cifar10
from normlens.data.cifar100 import cifar100
from normlens.data.corruption import corrupted
from normlens.data.digits import digits
from normlens.data.errors import DataError
from normlens.data.images import ImageData
from normlens.data.mnist import mnist
from normlens.data.noise_attacks import ConstantNoise, MixDatasets
from normlens.data.patches import patches

__all__ = [
    "APRPair",
    "APRSingle",
    "Batches",
    "ConstantNoise",
    "DataError",
    "ImageData",
    "MixDatasets",
    "amplitude_phase_recombination",
    "cifar10",
    "cifar100",
    "corrupted",
    "digits",
    "mnist",
    "patches",
]
