import pytest
import torch
from torch import nn

from pyro_vae.families import DiagonalNormal
from pyro_vae.guides import PerDatumGuide
from pyro_vae.rows import at_rows, per_datum_parts, pieces


def test_parts_are_found_wherever_they_sit():
    guide = PerDatumGuide(DiagonalNormal(2), 4)
    assert per_datum_parts(nn.Sequential(nn.Linear(2, 2), nn.Sequential(guide))) == [guide]
    assert per_datum_parts(nn.Linear(2, 2)) == []
    assert per_datum_parts(object()) == []


def test_every_part_is_told():
    parts = [PerDatumGuide(DiagonalNormal(2), n) for n in (4, 9)]
    with at_rows(parts, torch.tensor([3, 1])):
        assert [part.num_rows for part in parts] == [2, 2]
    assert [part.num_rows for part in parts] == [4, 9]
    with at_rows(parts, None):
        assert [part.num_rows for part in parts] == [4, 9]


def test_pieces_number_the_rows_of_all_the_data_or_those_given():
    x = torch.arange(10.0).reshape(5, 2)
    found = list(pieces([], x, 2))
    assert torch.equal(torch.cat([piece for piece, _ in found]), x)
    assert [index.tolist() for _, index in found] == [[0, 1], [2, 3], [4]]
    found = list(pieces([], x, 3, rows=torch.tensor([7, 0, 2, 5, 5])))
    assert [index.tolist() for _, index in found] == [[7, 0, 2], [5, 5]]


def test_data_of_another_number_raise():
    guide = PerDatumGuide(DiagonalNormal(2), 4)
    with pytest.raises(ValueError, match="x must be the 4 rows .* got 5 rows"):
        list(pieces([guide], torch.zeros(5, 2), 2))
