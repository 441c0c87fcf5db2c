"""Real images, embedded or read from files: every data set is a function that returns an ImageData.

Imported eagerly: a function has the name of its module, and a lazy index would hand out the module.
"""

from normlens.data.batching import Batches
from normlens.data.cifar10 import cifar10
from normlens.data.cifar100 import cifar100
from normlens.data.digits import digits
from normlens.data.errors import DataError
from normlens.data.images import ImageData
from normlens.data.mnist import mnist
from normlens.data.patches import patches

__all__ = ["Batches", "DataError", "ImageData", "cifar10", "cifar100", "digits", "mnist", "patches"]
