"""What training and serving share: contract, repository layout, preprocessing, ONNX Runtime session, CPUs."""
