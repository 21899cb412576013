"""What a user asks of the network's input, in the words of `convoy import`."""

import pytest

from export.data.input_choice import SHORT_FORMS, InputChoice
from service.errors import UserError
from service.model.input_spec import InputSpec

DEFAULT = InputSpec(height=32, width=48, channels=1)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (InputChoice(), {}),
        (InputChoice((20, 24), 3, filter="lanczos"), {"height": 20, "width": 24, "channels": 3, "filter": "lanczos"}),
        (InputChoice(resize="PAD"), {"resize": "pad"}),
        (InputChoice((224, 224), resize="stretch:224"), {"height": 224, "width": 224}),
        (InputChoice(resize="cover:20x24"), {"height": 20, "width": 24, "resize": "cover"}),
        (InputChoice(resize="short:256", crop=(224, 224)), {"height": 224, "width": 224, "resize": "short:256", "crop": "center"}),
        (
            InputChoice((224, 224), resize="stretch:256", crop=(224, 224)),
            {"height": 224, "width": 224, "resize": "stretch:256x256", "crop": "center"},
        ),
        (InputChoice(resize="none", crop=(20, 20)), {"height": 20, "width": 20, "resize": "none", "crop": "center"}),
        (InputChoice((224, 224), crop_pct=0.875), {"height": 224, "width": 224, "resize": "short:256", "crop": "center"}),
        *((InputChoice(resize=long), {"resize": long}) for long in SHORT_FORMS.values()),
    ],
)
def test_what_is_not_said_is_the_datas_own(choice: InputChoice, expected: dict[str, object]) -> None:
    assert choice.of(DEFAULT) == InputSpec.model_validate(DEFAULT.model_dump() | expected)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (InputChoice(resize="shrink:20"), "--resize shrink:20: accepted are stretch, pad or cover .*, short:N or none"),
        (InputChoice(resize="short:0"), "--resize short:0: accepted are"),
        (InputChoice(resize="short:20x20"), "--resize short:20x20: accepted are"),
        (InputChoice(crop=(224, 224)), r"--crop 224 needs --resize \(stretch, .*\): what is cut is cut of a resized picture"),
        (InputChoice((20, 24), resize="none", crop=(20, 20)), "--crop 20 and --image-size 20x24: the crop gives the network's"),
        (InputChoice(resize="short:256"), "--resize short:256: what it gives is cropped .*: --crop N is needed"),
        (InputChoice((224, 224), resize="stretch:256"), "--resize stretch:256: what it gives is cropped .*: --crop 224 is needed"),
        (InputChoice(crop_pct=0.9), "--crop-pct is for a square input, and this one is 32x48"),
        (InputChoice(crop_pct=0.9, crop=(20, 20)), "--crop and --crop-pct both say what is cut"),
        (InputChoice(crop_pct=0.9, resize="stretch"), "--crop-pct says the resize too: it is accepted without --resize"),
        (InputChoice((4096, 4096), crop_pct=0.01), "--crop-pct 0.01: the shorter side .* 409600 pixels; at most 8192 are"),
        (
            InputChoice(resize="stretch:9000", crop=(20, 20)),
            "--resize stretch:9000: resize: at most 8192 pixels a side",
        ),
    ],
)
def test_a_contradiction_is_one_line_that_says_what_is_accepted(choice: InputChoice, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        choice.of(DEFAULT)
    assert "\n" not in str(refused.value)
