"""The photographs that are always at hand."""

import numpy as np

from arelu_meta.data.named_datasets import sample_photographs


def test_they_are_the_eight_quarters_of_two_photographs() -> None:
    images = sample_photographs()
    assert len(images) == 8
    pixels = [np.asarray(images[index][0]) for index in range(8)]
    assert {part.shape for part in pixels} == {(213, 320, 3)}
    assert len({part.tobytes() for part in pixels}) == 8
    top = np.concatenate(pixels[:2], axis=1)
    assert np.abs(top[:, 319].astype(int) - top[:, 320].astype(int)).mean() < 20  # neighbours in the photograph
