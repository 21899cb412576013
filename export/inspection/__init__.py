"""What is inside an ONNX file: layers, shapes, parameters, MACs."""
