"""`bench op`: the rows' shape, that the contenders compute what their names say, and what each keeps."""

import pytest
import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, arelu, gated_arelu
from arelu_meta.bench.op import CONTENDERS, GATE, PEER, PlainAReLU, op_cases, op_rows

ISSUE_CONTENDERS = [
    *("relu", "relu-inplace", "prelu", "gelu", "arelu-plain", "arelu", "arelu-inplace"),
    *("preserve-relu6", "preserve-gelu"),
]


_SIZE = (2, 3, 8, 8)


def test_every_case_is_named_by_its_size_type_layout_and_pass() -> None:
    cases = op_cases(torch.device("cpu"))
    assert len(cases) == 3 * 2 * 2 * 2
    assert {"32x64x56x56/float32/contiguous/forward_backward", "16x10x12x12/bfloat16/channels_last/forward"} <= set(
        cases
    )


@pytest.mark.parametrize(("layout", "which"), [("contiguous", "forward_backward"), ("channels_last", "forward")])
def test_every_contender_has_a_row_that_says_its_peer_time_and_bounds(layout: str, which: str) -> None:
    assert list(CONTENDERS) == ISSUE_CONTENDERS
    rows = op_rows(_SIZE, layout=layout, which=which, rounds=3)
    assert [row.contender for row in rows] == ISSUE_CONTENDERS
    for row in rows:
        assert (row.case, row.peer, row.rounds) == (f"2x3x8x8/float32/{layout}/{which}", PEER, 3)
        assert row.median_ms > 0
        assert row.ratio_low <= row.ratio_to_peer <= row.ratio_high
        assert row.copy_ms is not None
        assert row.copy_ms > 0
        assert row.dispatch_ms is not None
        assert row.dispatch_ms > 0
    assert rows[0].ratio_to_peer == 1.0


def test_half_precision_is_measured_in_half_precision() -> None:
    rows = op_rows(_SIZE, torch.bfloat16, which="forward", rounds=1)
    assert {row.case for row in rows} == {"2x3x8x8/bfloat16/contiguous/forward"}
    assert rows[0].peak_bytes == 2 * 3 * 8 * 8 * 2


def test_arelu_keeps_what_relu_keeps_and_preserve_what_gelu_keeps() -> None:
    kept = {row.contender: row.peak_bytes for row in op_rows(_SIZE, rounds=1)}
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
