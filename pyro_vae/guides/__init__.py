"""Guides: a module whose call maps x to q(z|x)."""

from .amortized import AmortizedGuide as AmortizedGuide
from .guide import FamilyGuide as FamilyGuide
from .per_datum import PerDatumGuide as PerDatumGuide

__all__ = ["AmortizedGuide", "FamilyGuide", "PerDatumGuide"]
