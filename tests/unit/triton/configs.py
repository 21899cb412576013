"""Files `config.pbtxt` as people write them for public ONNX classifiers, in forms that differ as much as theirs do."""

DENSENET = """
name: "densenet"
platform: "onnxruntime_onnx"
max_batch_size : 0
input [
  {
    name: "data_0"
    data_type: TYPE_FP32
    format: FORMAT_NCHW
    dims: [ 3, 224, 224 ]
    reshape { shape: [ 1, 3, 224, 224 ] }
  }
]
output [
  {
    name: "fc6_1"
    data_type: TYPE_FP32
    dims: [ 1000 ]
    reshape { shape: [ 1, 1000, 1, 1 ] }
    label_filename: "densenet_labels.txt"
  }
]
"""

RESNET = """
backend: "onnxruntime"
max_batch_size: 128
input { name: "input" data_type: TYPE_FP32 dims: 3 dims: 224 dims: 224 }
output { name: "output" data_type: TYPE_FP32 dims: 1000 label_filename: "labels.txt" }
version_policy: { specific { versions: [ 1, 3 ] } }
instance_group [ { count: 2  kind: KIND_CPU } ]
default_model_filename: "resnet50.onnx"
parameters { key: "intra_op_thread_count" value: { string_value: "4" } }
parameters { key: "execution_mode" value: { string_value: "0" } }
"""

MOBILENET = """# one GPU, batches of up to 32
name: "mobilenet"
platform: "onnxruntime_onnx"
max_batch_size: 32
dynamic_batching {
  preferred_batch_size: [ 4, 8, 16 ]
  max_queue_delay_microseconds: 2000
  preserve_ordering: true
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy {
    timeout_action: REJECT
    default_timeout_microseconds: 500000
    allow_timeout_override: true
    max_queue_size: 100
  }
  priority_queue_policy { key: 1 value { max_queue_size: 10 } }
}
instance_group [ { count: 1 kind: KIND_GPU gpus: [ 0 ] } ]
optimization {
  graph { level: 1 }
  execution_accelerators {
    gpu_execution_accelerator : [ {
      name : "tensorrt"
      parameters { key: "precision_mode" value: "FP16" }
    } ]
  }
}
model_warmup [
  {
    name: "zeros"
    batch_size: 8
    count: 2
    inputs { key: "input" value: { data_type: TYPE_FP32 dims: [ 3, 224, 224 ] zero_data: true } }
  }
]
response_cache { enable: false }
"""

YOLO_CLS = """
name: "yolo_cls"
platform: "onnxruntime_onnx"
max_batch_size: 0
input [ { name: "images", data_type: TYPE_FP32, dims: [1, 3, 224, 224] } ]
output [ { name: "output0", data_type: TYPE_FP32, dims: [1, 1000] } ]
version_policy { latest { num_versions: 2 } }
"""

OPEN_BATCH = """
max_batch_size: 0
input [ { name: "images" data_type: TYPE_UINT8 dims: [ -1, 224, 224, 3 ] } ]
output [ { name: "scores" data_type: TYPE_FP32 dims: [ -1, 1000 ] } ]
version_policy { all { } }
"""

TWO_HEADS = """
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "input" data_type: TYPE_FP32 dims: [ 3, 224, 224 ] } ]
output [
  { name: "article" data_type: TYPE_FP32 dims: [ 1000 ] label_filename: "articles.txt" },
  { name: "color" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "colors.txt" }
]
dynamic_batching { }
"""

FEW_FIELDS = """
optimization {
  execution_accelerators {
    gpu_execution_accelerator {
      name: "tensorrt"
      parameters { key: "precision_mode" value: "FP16" }
      parameters { key: "trt_engine_cache_enable" value: "1" }
    }
  }
}
parameters { key: "metadata" value: { string_value: "{'names': {0: 'cat'}}" } }
"""

ENSEMBLE = """
name: "ensemble_image_model"
platform: "ensemble"
max_batch_size: 8
input [ { name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "CLASS" data_type: TYPE_FP32 dims: [ 1000 ] } ]
ensemble_scheduling {
  step [
    {
      model_name: "decode"
      model_version: -1
      input_map { key: "raw" value: "IMAGE" }
      output_map { key: "pixels" value: "pixels" }
    },
    {
      model_name: "resnet"
      model_version: -1
      input_map { key: "input" value: "pixels" }
      output_map { key: "output" value: "CLASS" }
    }
  ]
}
"""

PYTHON = """
name: "decode"
backend: "python"
max_batch_size: 8
input [ { name: "raw" data_type: TYPE_UINT8 dims: [ -1 ] } ]
output [ { name: "pixels" data_type: TYPE_FP32 dims: [ 3, 224, 224 ] } ]
parameters: { key: "EXECUTION_ENV_PATH" value: { string_value: "$$TRITON_MODEL_DIRECTORY/env.tar.gz" } }
"""

TENSORRT = """
platform: "tensorrt_plan"
max_batch_size: 8
default_model_filename: "model.plan"
"""

SEQUENCE = """
platform: "onnxruntime_onnx"
max_batch_size: 8
sequence_batching {
  max_sequence_idle_microseconds: 5000000
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] }
  ]
  oldest { max_candidate_sequences: 4 }
}
"""

DECOUPLED = """
backend: "onnxruntime"
model_transaction_policy { decoupled: True }
"""
