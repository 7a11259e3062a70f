"""`bench op`: the rows' shape, that the contenders compute what their names say, and what each keeps."""

import pytest
import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, arelu, gated_arelu
from arelu_meta.bench.op import CONTENDERS, GATE, LAYOUTS, PEER, PlainAReLU, op_rows

ISSUE_CONTENDERS = [
    *("relu", "relu-inplace", "prelu", "gelu", "arelu-plain", "arelu", "arelu-inplace"),
    *("preserve-relu6", "preserve-gelu"),
]


def rows_of(**changes: object) -> list[tuple[str, str]]:
    arguments: dict[str, object] = {"sizes": [(2, 3, 4, 4)], "dtypes": [torch.float32], "layouts": ["contiguous"]}
    rows = op_rows(**{**arguments, "passes": ["forward_backward"], "rounds": 2, **changes})  # type: ignore[arg-type]
    return [(row.case, row.contender) for row in rows]


def test_every_contender_has_a_row_in_every_case() -> None:
    assert list(CONTENDERS) == ISSUE_CONTENDERS
    rows = rows_of(layouts=["contiguous", "channels_last"], passes=["forward", "forward_backward"])
    cases = [f"2x3x4x4/float32/{layout}/{which}" for layout in LAYOUTS for which in ("forward", "forward_backward")]
    assert rows == [(case, name) for case in cases for name in ISSUE_CONTENDERS]


def test_half_precision_has_cases_of_its_own() -> None:
    assert {case for case, _ in rows_of(dtypes=[torch.bfloat16])} == {"2x3x4x4/bfloat16/contiguous/forward_backward"}


def test_a_row_says_its_peer_time_and_bounds() -> None:
    rows = op_rows([(2, 3, 4, 4)], [torch.float32], ["contiguous"], ["forward"], rounds=3)
    for row in rows:
        assert (row.peer, row.rounds) == (PEER, 3)
        assert row.median_ms > 0
        assert row.ratio_low <= row.ratio_to_peer <= row.ratio_high
        assert row.copy_ms is not None
        assert row.copy_ms > 0
        assert row.dispatch_ms is not None
        assert row.dispatch_ms > 0
    assert rows[0].ratio_to_peer == 1.0


def test_arelu_keeps_what_relu_keeps_and_preserve_what_gelu_keeps() -> None:
    rows = op_rows([(2, 3, 8, 8)], [torch.float32], ["contiguous"], ["forward_backward"], rounds=1)
    kept = {row.contender: row.peak_bytes for row in rows}
    map_bytes = 2 * 3 * 8 * 8 * 4
    assert kept["relu"] == kept["relu-inplace"] == kept["gelu"] == map_bytes
    assert kept["arelu"] == kept["arelu-inplace"] == map_bytes
    assert kept["preserve-relu6"] == kept["preserve-gelu"] == map_bytes
    assert kept["arelu-plain"] > map_bytes


def test_the_plain_formula_and_ours_agree() -> None:
    x = torch.randn(100, requires_grad=True)
    results = []
    for module in (PlainAReLU(0.3, 0.5), AReLU(0.3, 0.5)):
        y = module(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("relu", "relu-inplace"), lambda x: x.relu()),
        (("arelu-plain", "arelu", "arelu-inplace"), lambda x: arelu(x, 0.9, 2.0)),
        (("prelu",), lambda x: nn.functional.leaky_relu(x, 0.25)),
        (("gelu",), nn.functional.gelu),
        (("preserve-relu6",), lambda x: gated_arelu(x, nn.functional.relu6(x), 0.9, 2.0, GATE)),
        (("preserve-gelu",), lambda x: gated_arelu(x, nn.functional.gelu(x), 0.9, 2.0, GATE)),
    ],
)
def test_a_contender_computes_what_its_name_says(names: tuple[str, ...], expected: object) -> None:
    x = 4 * torch.randn(2, 3, 5, 5)
    assert callable(expected)
    target: Tensor = expected(x)
    for name in names:
        torch.testing.assert_close(CONTENDERS[name]()(x.clone()), target)


def test_the_gates_stand_open() -> None:
    assert GATE != 0
    for name in ("preserve-relu6", "preserve-gelu"):
        assert float(CONTENDERS[name]().get_parameter("t").detach()) == pytest.approx(GATE)
