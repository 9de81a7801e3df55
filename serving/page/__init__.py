"""One small page for an operator: what the processes of a running system say of themselves, refreshed as they do."""

from tfmm import extras

extras.verify("serving", "httpx", "jinja2", "prometheus_client", "starlette", "uvicorn")
