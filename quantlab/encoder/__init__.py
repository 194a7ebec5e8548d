"""Encoder: the half of Llama 3.2 Vision that looks at a picture, as an ONNX model and as a TensorRT engine.

shape       sizes of the tower, from config.json
graph       tower and projector -> model.onnx, in float32, float16, bfloat16, INT8 or FP8
towers      the same in torch: what the graph is held against
ranges      the largest input of each linear layer, from pictures: what INT8 and FP8 round by
runtime     the graph in ONNX Runtime
check       graph against torch: differences, and answers that changed
targets     which precision a target has, before a builder is asked
plan        model.onnx -> a plan, by TensorRT or TensorRT-RTX
make        the jobs of a child process
"""
