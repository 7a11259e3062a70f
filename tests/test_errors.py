import pytest

from arelu_meta.errors import InputError, MissingExtraError, RunError, nearest_names

MODELS = ["resnet18", "resnet34", "resnet50", "vit_tiny", "conv4"]


def test_the_nearest_names_come_nearest_first() -> None:
    assert nearest_names("resnet19", MODELS).startswith("nearest: 'resnet18'")
    assert nearest_names("conv5", MODELS) == "nearest: 'conv4'"


def test_no_more_names_are_shown_than_asked_for() -> None:
    assert nearest_names("resnet", MODELS, most=2).count("'resnet") == 2


def test_names_are_compared_in_any_case_and_shown_as_they_are_spelt() -> None:
    assert nearest_names("RESNET18", MODELS).startswith("nearest: 'resnet18'")
    assert nearest_names("cifar", ["CIFAR10", "MNIST"]) == "nearest: 'CIFAR10'"


def test_where_nothing_is_near_the_known_names_are_listed_once_each() -> None:
    assert nearest_names("zzz", ["b", "a", "a"]) == "known: 'a', 'b'"
    assert nearest_names("", ["b", "a"]) == "known: 'a', 'b'"


def test_a_long_list_of_known_names_is_cut_and_says_so() -> None:
    shown = nearest_names("zzz", [f"name{number:02}" for number in range(30)])
    assert shown.startswith("known: 'name00', 'name01'")
    assert shown.endswith("…")
    assert len(shown) < 200


def test_bad_input_is_a_valueerror_and_a_broken_run_is_not() -> None:
    assert issubclass(InputError, ValueError)
    assert not issubclass(RunError, ValueError)


def test_a_missing_package_is_bad_input_and_an_importerror() -> None:
    with pytest.raises(ImportError):
        raise MissingExtraError("learn2learn: cannot be imported")
    assert issubclass(MissingExtraError, InputError)
