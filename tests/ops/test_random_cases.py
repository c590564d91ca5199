"""Native equals the definition on random calls, hostile ones included; ``random_cases`` runs more of them."""

import pytest

from tests.ops.random_cases import OPS, check


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_native_equals_the_definition(op, isa, poison):
    ends = check(op, range(150))
    assert ends["equal"] > 50
    assert ends["ValueError"] > 2
