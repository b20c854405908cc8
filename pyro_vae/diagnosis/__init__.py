"""Everything that the diagnostics say of one fitted VAE, in words and on one page."""

from pyro_vae.diagnosis.comparison import comparison_sections as comparison_sections
from pyro_vae.diagnosis.comparison import comparison_table as comparison_table
from pyro_vae.diagnosis.diagnosing import Diagnosis as Diagnosis
from pyro_vae.diagnosis.diagnosing import diagnose as diagnose
from pyro_vae.diagnosis.messages import collected_messages as collected_messages

__all__ = [
    "Diagnosis",
    "collected_messages",
    "comparison_sections",
    "comparison_table",
    "diagnose",
]
