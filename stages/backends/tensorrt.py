"""TensorRT: engines for the GPU of the machine that builds them."""

from stages.backends.nvinfer import Nvinfer

BACKEND = Nvinfer("tensorrt", times_kernels=True)
