"""Names of regions and objects that clients may think of."""

import pytest

from service.errors import InvalidRequest, Unimplemented
from service.open_inference.shared_memory import SharedMemory


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("", "/convoy", "1 to 255 characters, this one has 0"),
        ("r" * 256, "/convoy", "1 to 255 characters, this one has 256"),
        ("r", "", "cannot be the name of a shared memory object"),
        ("r", "/..", "cannot be the name of a shared memory object"),
        ("r", "/a/b", "cannot be the name of a shared memory object"),
        ("r", "/\udc80", "cannot be the name of a shared memory object"),  # JSON can say it, no answer could
        ("r", "/convoy-that-nobody-made", "cannot be opened: No such file or directory"),
        ("r", "/other", "'/other' is not accepted: names begin with convoy or triton or s"),
        ("r", "/triton_python_backend_shm_region_1", "is not accepted"),
        ("r", "sem.mp-1", "is not accepted"),
    ],
)
def test_names_that_cannot_be(name: str, key: str, message: str) -> None:
    memory = SharedMemory(("convoy", "/triton", "s"))
    with pytest.raises(InvalidRequest, match=message):
        memory.register(name, key, 0, 1)
    assert memory.regions() == {}


def test_without_a_prefix_it_is_off() -> None:
    memory = SharedMemory()
    assert not memory.is_on
    with pytest.raises(Unimplemented, match="without --shared-memory-prefix"):
        memory.register("r", "/convoy", 0, 1)
