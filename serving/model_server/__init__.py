"""An embedded server that speaks TF Serving's gRPC and REST."""

from tfmm import extras

extras.verify("serving", "grpc", "prometheus_client", "tensorflow_serving", "starlette", "uvicorn")
