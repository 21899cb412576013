"""One ONNX Runtime session in a process of its own, for `session_options`: the service's, with some of its options changed.

The options are changed where `service.model.session` hands them to ONNX Runtime, so that all others are what they are when serving.
Needs neither torch nor onnx: another Python with another ONNX Runtime can run it.

The first argument is a JSON object: `model`, a path; `threads`; and what is changed:
    options: attributes of SessionOptions, or with a dot in their name entries of its configuration.
    run: entries of the configuration of each run.
    none: nothing of the service's but the number of threads.
    load: `saved`, `saved-ort` or `saved-prepacked`: from the optimised graph, which is written to disk first.
    flush: denormal numbers are zero in the thread that runs the session, too.
    share: the second session has the memory of the first one's weights.

Writes a JSON object for the load: `load_ms` (CPU, median), MiB of anonymous memory for a first and a second session, and the first
output for a batch of 8. Then each line `ITEMS BATCHES PAUSE_MS` is answered by the CPU microseconds of a batch.
"""

import ctypes
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from service.model import session
from service.model.model_files import ModelContent, read_model

LOADS = 7
MOST_ITEMS = 32
CHECKED_ITEMS = 8

ENUMERATIONS = {"graph_optimization_level": ort.GraphOptimizationLevel, "execution_mode": ort.ExecutionMode}

Changes = dict[str, Any]


def main() -> None:
    changes: Changes = json.loads(sys.argv[1])
    real = ort.InferenceSession
    content = read_model(Path(changes["model"]))
    session.free_unused_memory()  # what ONNX Runtime makes once in a process
    with tempfile.TemporaryDirectory() as folder:
        saved = save(real, changes, content, Path(folder)) if changes.get("load") else None

        def open_changed(graph: bytes, options: ort.SessionOptions, **others: Any) -> ort.InferenceSession:
            return real(saved or graph, change(options, changes), **others)

        ort.InferenceSession = open_changed

        def load() -> ort.InferenceSession:
            return session.open_session(content, "cpu", changes["threads"])

        if changes.get("share"):
            changes["weights"] = weights(Path(changes["model"]))
        before = anonymous_mib()
        first = load()
        one = anonymous_mib()
        second = load()
        two = anonymous_mib()
        del second
        loads = [cpu_of(load) for _ in range(LOADS)]
        images = pictures(first)
        if changes.get("flush"):
            flush_denormals()
        settings = run_options(changes.get("run", {}))
        answers = first.run(None, {"image": images[:CHECKED_ITEMS]}, settings)[0]
        report(load_ms=1000 * statistics.median(loads), first=one - before, second=two - one, answers=answers.tolist())
        for line in sys.stdin:
            items, batches, pause = line.split()
            report(cpu_us=1e6 * measure(first, images[: int(items)], int(batches), float(pause) / 1000, settings))


def change(options: ort.SessionOptions, changes: Changes) -> ort.SessionOptions:
    """The service's options with the changes, or ONNX Runtime's with them."""
    if changes.get("none"):
        options = ort.SessionOptions()
        options.intra_op_num_threads = changes["threads"]
        options.log_severity_level = 4
    for name, value in changes.get("options", {}).items():
        if "." in name:
            options.add_session_config_entry(name, value)
        else:
            setattr(options, name, getattr(ENUMERATIONS[name], value) if name in ENUMERATIONS else value)
    for name, value in changes.get("weights", {}).items():
        options.add_initializer(name, value)
    return options


def weights(path: Path) -> dict[str, ort.OrtValue]:
    """The large tensors of a model, in memory that sessions share."""
    import onnx

    tensors = [each for each in onnx.load(path).graph.initializer if each.data_type == onnx.TensorProto.FLOAT and each.dims]
    return {each.name: ort.OrtValue.ortvalue_from_numpy(onnx.numpy_helper.to_array(each)) for each in tensors}


def save(real: Callable[..., ort.InferenceSession], changes: Changes, content: ModelContent, folder: Path) -> str:
    """Writes the optimised graph, and returns its path. What loads it leaves it as it is."""
    kind = changes["load"]
    path = folder / ("model.ort" if kind == "saved-ort" else "model.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    if kind == "saved-prepacked":
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "model.data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    real(content.graph, options, providers=["CPUExecutionProvider"])
    changes.setdefault("options", {})["graph_optimization_level"] = "ORT_DISABLE_ALL"
    return str(path)


def flush_denormals() -> None:
    """By glibc on x86-64: the state of the floating-point unit ends with MXCSR, whose bits 6 and 15 these are."""
    state = (ctypes.c_uint32 * 8)()
    libm = ctypes.CDLL("libm.so.6")
    libm.fegetenv(state)
    state[7] |= 0x8040
    libm.fesetenv(state)


def run_options(entries: dict[str, str]) -> ort.RunOptions | None:
    if not entries:
        return None
    options = ort.RunOptions()
    for name, value in entries.items():
        options.add_run_config_entry(name, value)
    return options


def pictures(opened: ort.InferenceSession) -> Any:
    shape = opened.get_inputs()[0].shape[1:]
    return np.random.default_rng(0).integers(0, 256, (MOST_ITEMS, *shape), np.uint8)


def measure(opened: ort.InferenceSession, images: Any, batches: int, pause: float, settings: ort.RunOptions | None) -> float:
    """CPU seconds of the process for a batch. After each it sleeps for `pause` seconds."""
    names, feed = [each.name for each in opened.get_outputs()], {"image": images}
    start = time.process_time()
    for _ in range(batches):
        opened.run(names, feed, settings)
        if pause:
            time.sleep(pause)
    return (time.process_time() - start) / batches


def cpu_of(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def anonymous_mib() -> float:
    """Memory of this process that is no file's, after free memory went back."""
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def report(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
