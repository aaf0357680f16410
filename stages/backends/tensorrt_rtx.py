"""TensorRT for RTX: engines built ahead of time, also on a machine without a GPU.

The package `tensorrt-rtx` imports as `tensorrt_rtx`; its bindings wheel alone as `tensorrt_rtx_bindings`.
"""

from stages.backends.nvinfer import Nvinfer

BACKEND = Nvinfer("tensorrt_rtx")
