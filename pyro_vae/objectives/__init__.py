"""What Pyro's objectives lack: compilation, a bound that a scale leaves one, a weighted KL."""

from .compiled import Compiled_ELBO as Compiled_ELBO
from .compiled import CompiledImportanceWeighted_ELBO as CompiledImportanceWeighted_ELBO
from .compiled import CompiledTrace_ELBO as CompiledTrace_ELBO
from .compiled import CompiledTraceMeanField_ELBO as CompiledTraceMeanField_ELBO
from .free_bits import FreeBits as FreeBits
from .free_bits import FreeBits_ELBO as FreeBits_ELBO
from .importance_weighted import ImportanceWeighted_ELBO as ImportanceWeighted_ELBO
from .kl_schedules import kl_cycle as kl_cycle
from .kl_schedules import kl_warmup as kl_warmup
from .kl_weight import KLWeight as KLWeight
from .kl_weight import check_kl_weight as check_kl_weight
from .kl_weight import kl_weighted as kl_weighted

__all__ = [
    "CompiledImportanceWeighted_ELBO",
    "CompiledTraceMeanField_ELBO",
    "CompiledTrace_ELBO",
    "Compiled_ELBO",
    "FreeBits",
    "FreeBits_ELBO",
    "ImportanceWeighted_ELBO",
    "KLWeight",
    "check_kl_weight",
    "kl_cycle",
    "kl_warmup",
    "kl_weighted",
]
