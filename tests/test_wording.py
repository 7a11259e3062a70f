import pytest

from arelu_meta.errors import counted


@pytest.mark.parametrize(("number", "said"), [(0, "0 epochs"), (1, "1 epoch"), (2, "2 epochs"), (1000, "1,000 epochs")])
def test_one_is_singular(number: int, said: str) -> None:
    assert counted(number, "epoch") == said
