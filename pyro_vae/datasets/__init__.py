"""Data to learn from: embedded, simulated with a known truth, image sets, and a user's own.

``as_tensor`` checks whatever a user has; the other functions return a :class:`Dataset`, whose
``x`` is what a model is fitted to.
"""

from .any_rows import checked_rows as checked_rows
from .arrays import CheckedArray as CheckedArray
from .arrays import as_tensor as as_tensor
from .arrays import check_gray_levels as check_gray_levels
from .dataset import Dataset as Dataset
from .embedded import digits as digits
from .faces import celeba as celeba
from .files import from_file as from_file
from .finite import FiniteScan as FiniteScan
from .images import emnist as emnist
from .images import fashion_mnist as fashion_mnist
from .images import kmnist as kmnist
from .images import mnist as mnist
from .mapped import MappedDataset as MappedDataset
from .mapped import memory_mapped as memory_mapped
from .masks import has_masked as has_masked
from .masks import observed_entries as observed_entries
from .masks import says_nan as says_nan
from .probabilistic_pca import LinearGaussian as LinearGaussian
from .scaling import Scaling as Scaling
from .simulated import LinearGaussianData as LinearGaussianData
from .simulated import linear_gaussian as linear_gaussian

__all__ = [
    "CheckedArray",
    "Dataset",
    "FiniteScan",
    "LinearGaussian",
    "LinearGaussianData",
    "MappedDataset",
    "Scaling",
    "as_tensor",
    "celeba",
    "check_gray_levels",
    "checked_rows",
    "digits",
    "emnist",
    "fashion_mnist",
    "from_file",
    "has_masked",
    "kmnist",
    "linear_gaussian",
    "memory_mapped",
    "mnist",
    "observed_entries",
    "says_nan",
]
