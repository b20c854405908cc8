"""The commands behind ``pyro-vae``: from the words of the command line to objects, and back."""

from pyro_vae.commands.comparing import baselines as baselines
from pyro_vae.commands.comparing_runs import compare as compare
from pyro_vae.commands.diagnosing import diagnose as diagnose
from pyro_vae.commands.fitting import fit as fit
from pyro_vae.commands.imputing import impute as impute
from pyro_vae.commands.reading import info as info
from pyro_vae.commands.reading import reconstruct as reconstruct
from pyro_vae.commands.reading import sample as sample

__all__ = ["baselines", "compare", "diagnose", "fit", "impute", "info", "reconstruct", "sample"]
