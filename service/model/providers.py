"""Names of the execution providers: in settings, contracts and metrics, and in ONNX Runtime."""

from typing import Literal

ProviderName = Literal["cuda", "cpu", "tensorrt", "openvino"]
"""A provider that can run a model."""

Provider = Literal["auto", ProviderName]
"""A provider to configure. `auto` is CUDA where it works, else the CPU."""

ONNX_RUNTIME_NAMES: dict[ProviderName, str] = {
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
