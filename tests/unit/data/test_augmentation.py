"""Random shifts and flips."""

import pytest
import torch

from export.data.augmentation import Augmentation, augment


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("padding", ["reflect", "replicate"])
def test_augmentation_is_a_crop_of_the_padded_picture(kind: torch.dtype, padding: str) -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (200, 3, 7, 9)).to(kind)
    found = augment(images, Augmentation(2, flip=True, padding=padding))  # type: ignore[arg-type]
    assert (found.shape, found.dtype) == (images.shape, kind)
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode=padding)
    draws = []
    for picture, whole in zip(found.float(), padded, strict=True):
        crops = {
            (y, x, flip): whole[:, y : y + 7, x : x + 9].flip(2) if flip else whole[:, y : y + 7, x : x + 9]
            for y in range(5) for x in range(5) for flip in (False, True)
        }  # fmt: skip
        draws.append(next(draw for draw, crop in crops.items() if torch.equal(crop, picture)))
    assert {draw[:2] for draw in draws} == {(y, x) for y in range(5) for x in range(5)}
    assert 60 < sum(draw[2] for draw in draws) < 140


def test_augmentation_depends_on_the_generator_alone() -> None:
    images = torch.rand(8, 1, 6, 6)
    twice = [augment(images, Augmentation(2, flip=True), torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*twice)
    assert not torch.equal(twice[0], images)
    assert torch.equal(augment(images, Augmentation(0)), images)
    strided = torch.rand(8, 6, 6, 3).permute(0, 3, 1, 2)
    assert torch.equal(augment(strided, Augmentation(0)), strided)
