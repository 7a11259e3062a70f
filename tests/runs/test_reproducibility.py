import os
import random

import numpy as np
import pytest
import torch

from arelu_meta.config import RunConfig
from arelu_meta.errors import InputError, RunError
from arelu_meta.runs.distributed import join
from arelu_meta.runs.reproducibility import (
    autocast,
    choose_device,
    naming_anomaly,
    prepare,
    price_of_determinism,
    random_state,
    restore_random_state,
)


def _draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_one_seed_gives_the_same_numbers_everywhere() -> None:
    prepare(RunConfig(seed=3, device="cpu"))
    first = _draw()
    prepare(RunConfig(seed=3, device="cpu"))
    assert _draw() == first
    prepare(RunConfig(seed=4, device="cpu"))
    assert all(a != b for a, b in zip(_draw(), first, strict=True))


def test_random_state_survives_a_safe_round_trip_through_disk(tmp_path: object) -> None:
    import io

    prepare(RunConfig(seed=1, device="cpu"))
    _draw()
    np.random.standard_normal()  # leaves a cached normal behind, a part of NumPy's state
    buffer = io.BytesIO()
    torch.save(random_state(), buffer)
    expected = _draw(), float(np.random.standard_normal())
    buffer.seek(0)
    restore_random_state(torch.load(buffer, weights_only=True))
    assert (_draw(), float(np.random.standard_normal())) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has what the test asks for in vain")
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"run\.device: 'cuda:0' is not on this machine; here: cpu"):
        choose_device("cuda:0")


def test_autocast_computes_in_the_precision_asked_for() -> None:
    a, b = torch.randn(2, 2), torch.randn(2, 2)
    with autocast("bf16", torch.device("cpu")):
        assert (a @ b).dtype == torch.bfloat16
    with autocast("float32", torch.device("cpu")):
        assert (a @ b).dtype == torch.float32


def test_deterministic_is_switched_off_again_by_the_next_run() -> None:
    prepare(RunConfig(device="cpu", deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
    prepare(RunConfig(device="cpu"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_deterministic_run_gives_cublas_its_workspace_and_says_what_it_costs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    join(RunConfig(device="cpu"))
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert capsys.readouterr().out == ""
    join(RunConfig(device="cpu", deterministic=True))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    said = capsys.readouterr().out
    assert said.startswith("run.deterministic: new memory is filled before it is used")
    assert said.count("\n") == 1
    assert "cuBLAS" in price_of_determinism(torch.device("cuda"))
    prepare(RunConfig(device="cpu"))


def test_an_anomaly_becomes_one_sentence_that_names_the_operation() -> None:
    x = torch.zeros(1, requires_grad=True)
    with (
        torch.autograd.set_detect_anomaly(True),
        pytest.raises(RunError, match=r"^the gradient of SqrtBackward0 became nan$"),
        naming_anomaly(RunError),
    ):
        (x.sqrt() * 0).sum().backward()


def test_other_errors_of_a_backward_pass_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="does not require grad"), naming_anomaly(RunError):
        torch.zeros(1).sum().backward()
