"""Dear pictures are decoded in processes that are bounded in time and memory, and that end with whoever started them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.engine.decoding_processes import DecodingProcesses, _Memory
from service.errors import Cancelled, InvalidRequest, Unavailable
from service.model.input_spec import InputSpec
from service.model.picture_cost import bytes_needed, bytes_to_open
from service.model.preprocessing import decode, open_image
from tests import hostile_pictures
from tests.hostile_pictures import file_of

LIMIT = 25_000_000
SPEC = InputSpec(height=28, width=28, channels=3)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8))
ENDLESS = hostile_pictures.ppm_scaled()


def wanted() -> None:
    pass


@pytest.fixture
def processes() -> Iterator[DecodingProcesses]:
    made = DecodingProcesses(30, 2**30)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[DecodingProcesses]:
    """For tests of what comes back, and not of the processes."""
    made = DecodingProcesses(30, 2**30)
    yield made
    made.close()


def children(pid: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    return [int(each) for task in Path(f"/proc/{pid}/task").iterdir() for each in (task / "children").read_text().split()]


def decoders(processes: DecodingProcesses) -> list[int]:
    program = processes._program
    return [] if program is None else children(program._process.pid)


def wait_until(state: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not state():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "AVIF"])
def test_the_pixels_are_those_of_this_process(shared: DecodingProcesses, file_format: str) -> None:
    encoded = file_of(PICTURE, file_format)
    for fit, channels in (("stretch", 1), ("cover", 3), ("pad", 3)):
        spec = InputSpec.model_validate({"height": 21, "width": 28, "channels": channels, "resize": fit})
        assert np.array_equal(shared.decode(encoded, spec, LIMIT, wanted), decode(encoded, spec, LIMIT))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "how",
    [{"filter": "tf-bilinear", "dtype": "float32"}, {"filter": "cv2-linear", "resize": "short:30", "crop": "center"},
     {"filter": "lanczos", "dtype": "float32", "alpha": "drop", "exif": "ignore", "resize": "pad", "pad": {"color": (1, 2, 3)}}],
)  # fmt: skip
def test_every_field_of_the_input_is_heeded(shared: DecodingProcesses, how: dict[str, Any], channels: int) -> None:
    encoded = file_of(PICTURE, "TIFF")
    spec = InputSpec.model_validate({"height": 21, "width": 28, "channels": channels, **how})
    found, expected = shared.decode(encoded, spec, LIMIT, wanted), decode(encoded, spec, LIMIT)
    assert found.dtype == expected.dtype == np.dtype(spec.dtype)
    assert np.array_equal(found, expected)


def test_a_picture_is_refused_with_the_words_of_this_process(processes: DecodingProcesses) -> None:
    for encoded, limit in ((b"a" * 50, LIMIT), (file_of(PICTURE, "TIFF"), 100), (file_of(PICTURE, "AVIF")[:300], LIMIT)):
        with pytest.raises(InvalidRequest) as here:
            decode(encoded, SPEC, limit)
        with pytest.raises(InvalidRequest) as there:
            processes.decode(encoded, SPEC, limit, wanted)
        assert str(there.value) == str(here.value)
    assert len(decoders(processes)) == 1


def test_nothing_is_started_before_it_is_needed() -> None:
    before = children(os.getpid())
    processes = DecodingProcesses()
    assert children(os.getpid()) == before
    processes.close()
    with pytest.raises(Unavailable, match="the server has stopped"):
        processes.decode(file_of(PICTURE, "TIFF"), SPEC, LIMIT, wanted)


def test_what_takes_too_long_is_refused_and_its_process_replaced() -> None:
    processes = DecodingProcesses(0.5, 2**30)
    try:
        with pytest.raises(InvalidRequest, match=r"decoding the image takes longer than 0.5 s"):
            processes.decode(ENDLESS, SPEC, LIMIT, wanted)
        assert processes.decode(file_of(PICTURE, "TIFF"), SPEC, LIMIT, wanted).shape == SPEC.shape
        assert len(decoders(processes)) == 1
    finally:
        processes.close()


def test_what_is_not_wanted_any_more_is_given_up(processes: DecodingProcesses) -> None:
    asked = 0

    def cancelled() -> None:
        nonlocal asked
        asked += 1
        if asked > 10:
            raise Cancelled("the client cancelled the call")

    with pytest.raises(Cancelled):
        processes.decode(ENDLESS, SPEC, LIMIT, cancelled)
    wait_until(lambda: not decoders(processes))


def test_a_decoder_that_dies_is_replaced_and_the_others_are_not_touched(processes: DecodingProcesses) -> None:
    outcomes: list[object] = []

    def decode_endless() -> None:
        try:
            outcomes.append(processes.decode(ENDLESS, SPEC, LIMIT, wanted))
        except InvalidRequest as error:
            outcomes.append(str(error))

    thread = threading.Thread(target=decode_endless)
    thread.start()
    wait_until(lambda: len(decoders(processes)) == 1)
    [victim] = decoders(processes)
    assert processes.decode(file_of(PICTURE, "TIFF"), SPEC, LIMIT, wanted).shape == SPEC.shape
    os.kill(victim, signal.SIGKILL)
    thread.join(30)
    assert outcomes == ["the image cannot be decoded: its decoder died of it"]
    assert processes.decode(file_of(PICTURE, "TIFF"), SPEC, LIMIT, wanted).shape == SPEC.shape


def test_idle_decoders_that_have_died_cost_no_picture(processes: DecodingProcesses) -> None:
    encoded = file_of(PICTURE, "TIFF")
    processes.decode(encoded, SPEC, LIMIT, wanted)
    for victim in (decoders(processes)[0], processes._program._process.pid):  # type: ignore[union-attr]
        os.kill(victim, signal.SIGKILL)
        wait_until(partial(_ended, victim))
        assert processes.decode(encoded, SPEC, LIMIT, wanted).shape == SPEC.shape


@pytest.mark.parametrize("how", ["close", "kill"])
def test_decoders_end_with_whoever_started_them(how: str) -> None:
    """Even in the middle of a picture."""
    program = f"""
import sys, threading, time
from service.engine.decoding_processes import DecodingProcesses
from service.model.input_spec import InputSpec
from tests.hostile_pictures import ppm_scaled
processes = DecodingProcesses(600, 2**30)
arguments = (ppm_scaled(), InputSpec(height=28, width=28, channels=3), {LIMIT}, lambda: None)
threading.Thread(target=processes.decode, args=arguments, daemon=True).start()
while not processes._program:
    time.sleep(0.01)
print(processes._program._process.pid, flush=True)
sys.stdin.readline()
processes.close()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        starter = int(server.stdout.readline())
        wait_until(lambda: len(children(starter)) == 1)
        [decoder] = children(starter)
        if how == "kill":
            server.kill()
        else:
            server.stdin.write("\n")
            server.stdin.flush()
        wait_until(lambda: all(_ended(pid) for pid in (starter, decoder)))


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_decoder_has_none_of_this_process_s_files(processes: DecodingProcesses, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as opened:
        os.set_inheritable(opened.fileno(), True)
        processes.decode(file_of(PICTURE, "TIFF"), SPEC, LIMIT, wanted)
        [decoder] = decoders(processes)
        files = {each.readlink() for each in Path(f"/proc/{decoder}/fd").iterdir()}
        assert {str(each).partition(":")[0] for each in files} == {"/dev/null", "socket"}


def test_what_libtiff_says_by_itself_is_not_on_stderr(capfd: pytest.CaptureFixture[str], processes: DecodingProcesses) -> None:
    with pytest.raises(InvalidRequest, match="the image's data are broken or cut short"):
        processes.decode(hostile_pictures.tiff_noise(), SPEC, LIMIT, wanted)
    assert capfd.readouterr().err == ""


LARGE: dict[str, Callable[[int], bytes]] = {
    "PNG": hostile_pictures.png_deep,
    "PNG, gray": hostile_pictures.png_transparent,
    "JPEG": hostile_pictures.jpeg_baseline,
    "JPEG, progressive": lambda side: hostile_pictures.jpeg_scans(side, 12),
    "JPEG, CMYK": lambda side: file_of(Image.new("CMYK", (side, side)), "JPEG", progressive=True, subsampling=0),
    "GIF": hostile_pictures.gif_large,
    "BMP": lambda side: file_of(Image.new("RGB", (side, side)), "BMP"),
    "PPM": lambda side: file_of(Image.new("RGB", (side, side)), "PPM"),
    "TIFF": hostile_pictures.tiff_lzw,
    "TIFF, gray of 16 bits": lambda side: file_of(Image.new("I;16", (side, side)), "TIFF"),
    "WebP": hostile_pictures.webp_still,
    "WebP, animation": lambda side: hostile_pictures.webp_frames(side, 3),
    "WebP, lossy": lambda side: file_of(Image.new("RGB", (side, side)), "WEBP", method=0),
    "AVIF": hostile_pictures.avif_large,
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_picture_takes_no_more_memory_than_its_header_says(processes: DecodingProcesses, kind: str) -> None:
    encoded = LARGE[kind](1600)
    processes.decode(encoded, SPEC, LIMIT, wanted)  # code and tables are there
    [decoder] = decoders(processes)
    Path(f"/proc/{decoder}/clear_refs").write_text("5")
    before = _memory(decoder, "VmRSS")
    processes.decode(encoded, SPEC, LIMIT, wanted)
    taken = _memory(decoder, "VmHWM") - before - len(encoded)
    needed = max(bytes_to_open(encoded, LIMIT), bytes_needed(open_image(encoded, LIMIT), SPEC))
    assert needed / 20 < taken < needed, f"{taken / 1600**2:.1f} bytes a pixel"


@pytest.mark.parametrize(
    ("size", "how"),
    [((1600, 1200), {"filter": "tf-bilinear", "dtype": "float32"}), ((1600, 1200), {"filter": "cv2-linear"}),
     ((60, 50), {"height": 2000, "width": 1500}), ((60, 50), {"height": 2000, "width": 1500, "dtype": "float32"}),
     ((60, 50), {"resize": "short:1500", "crop": "center"})],
    ids=str,
)  # fmt: skip
def test_resizing_takes_no_more_memory_than_is_counted(
    processes: DecodingProcesses, size: tuple[int, int], how: dict[str, Any]
) -> None:
    spec = InputSpec.model_validate({"height": 224, "width": 224, "channels": 3, **how})
    encoded = file_of(Image.new("RGB", size, (1, 2, 3)), "TIFF")
    processes.decode(file_of(PICTURE, "TIFF"), SPEC, LIMIT, wanted)  # code and tables are there
    [decoder] = decoders(processes)
    Path(f"/proc/{decoder}/clear_refs").write_text("5")
    before = _memory(decoder, "VmRSS")
    processes.decode(encoded, spec, LIMIT, wanted)
    taken, needed = _memory(decoder, "VmHWM") - before - len(encoded), bytes_needed(open_image(encoded, LIMIT), spec)
    assert needed / 8 < taken < needed, f"{taken / 2**20:.0f} of {needed / 2**20:.0f} MiB"


def _memory(pid: int, kind: str) -> int:
    return 1024 * next(
        int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(kind)
    )


def test_pictures_wait_for_memory_one_after_the_other_and_one_alone_goes_on() -> None:
    memory = _Memory(100)
    order: list[str] = []

    def take(name: str, count: int) -> None:
        with memory.taken(count, wanted):
            order.append(name)

    with memory.taken(1000, wanted):
        threads = []
        for name, count in (("large", 80), ("small", 10)):
            threads.append(threading.Thread(target=take, args=(name, count)))
            threads[-1].start()
            wait_until(lambda: memory._turn.locked())
        time.sleep(0.05)
        assert order == []
        with pytest.raises(Cancelled), memory.taken(1, _cancelled):
            pass
    for thread in threads:
        thread.join(30)
    assert order[0] == "large"
    assert memory._taken == 0


def _cancelled() -> None:
    raise Cancelled("the client cancelled the call")
