from dataclasses import replace

import pytest
import torch

from arelu_meta.bench import maml
from arelu_meta.bench.maml import CASES, Learn2learnAnil, maml_cases, maml_rows
from arelu_meta.bench.op import PlainAReLU
from arelu_meta.errors import RunError
from arelu_meta.meta.engine import Inner, VectorizedEngine

pytest.importorskip("learn2learn", reason="learn2learn is not installed")


@pytest.fixture(autouse=True)
def _without_torchopt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maml, "has_torchopt", lambda: False)


def test_each_case_has_its_contenders_and_the_peer_that_people_run_today() -> None:
    names = ("authors-mnist-relu", "authors-mnist-arelu")
    rows = [row for name in names for row in maml_rows(name, rounds=1, tasks=2, steps=1)]
    found = [(row.case.split("/")[0], row.contender, row.peer) for row in rows]
    relu, arelu = ("authors-mnist-relu", "authors-mnist-arelu")
    assert found == [
        (relu, "vectorized", "learn2learn"),
        (relu, "learn2learn", "learn2learn"),
        (arelu, "vectorized", "learn2learn-plain"),
        (arelu, "learn2learn", "learn2learn-plain"),
        (arelu, "learn2learn-plain", "learn2learn-plain"),
    ]
    assert all(row.median_ms > 0 and row.peak_bytes > 0 for row in rows)
    assert rows[1].ratio_to_peer == rows[4].ratio_to_peer == 1


def test_what_differs_from_a_case_is_in_its_row() -> None:
    rows = maml_rows("authors-mnist-relu", rounds=1, algorithm="fomaml", tasks=2, steps=2)
    assert {row.case for row in rows} == {"authors-mnist-relu/fomaml/tasks2/steps2"}


def test_more_tasks_at_once_keep_more_memory_and_learn2learns_loop_does_not() -> None:
    few, many = (maml_rows("authors-mnist-relu", rounds=1, tasks=count, steps=1) for count in (2, 6))
    assert many[0].peak_bytes > 2 * few[0].peak_bytes
    assert many[1].peak_bytes == few[1].peak_bytes


def test_contenders_that_compute_something_else_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlainAReLU, "forward", lambda self, x: x)
    with pytest.raises(RunError, match="learn2learn-plain and vectorized differ in authors-mnist-arelu"):
        maml_rows("authors-mnist-arelu", rounds=1, tasks=2, steps=1)


def test_anil_beside_it_lets_learn2learn_adapt_the_head_on_features_computed_once() -> None:
    rows = maml_rows("authors-mnist-arelu", rounds=1, algorithm="anil", tasks=2, steps=3)  # else a RunError
    assert [(row.case, row.contender) for row in rows] == [
        ("authors-mnist-arelu/anil/tasks2/steps3", name) for name in ("vectorized", "learn2learn", "learn2learn-plain")
    ]


@pytest.mark.parametrize("case", ["authors-mnist-arelu", "omniglot-5w1s"])
def test_learn2learns_anil_gives_the_meta_gradient_of_the_vectorised_engine(case: str) -> None:
    few = replace(CASES[case], tasks=2, steps=3)
    tasks, inner = maml._noise(few), Inner(few.inner_lr, few.steps, algorithm="anil")
    gradients = []
    for engine in (Learn2learnAnil, VectorizedEngine):
        model = maml._model(few, plain=False)
        engine(model, inner).meta_gradient(tasks)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_every_case_id_of_the_issue_is_there() -> None:
    names = ["authors-mnist-relu", "authors-mnist-arelu", "omniglot-5w1s", "omniglot-20w1s"]
    assert list(maml_cases(torch.device("cpu"))) == names
    assert {"omniglot-5w1s/tasks128", "authors-mnist-relu/steps10"} <= set(maml_cases(torch.device("cpu"), growth=True))


def test_torchopt_takes_part_where_it_is_installed_and_gives_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchopt", reason="TorchOpt is not installed")
    monkeypatch.undo()
    rows = maml_rows("authors-mnist-arelu", rounds=1, tasks=2, steps=2)  # a RunError where losses differ
    assert [row.contender for row in rows] == list(maml.CONTENDERS)
    first_order = maml_rows("authors-mnist-relu", rounds=1, algorithm="fomaml", tasks=2, steps=1)
    assert "torchopt" not in {row.contender for row in first_order}
