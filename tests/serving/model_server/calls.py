"""Calls of a server, over gRPC and REST, each looked at: answered, or refused with a reason that is the caller's."""

import collections
import http.client
import json
import socket
import time

import grpc
from tensorflow_serving.apis import model_service_pb2, prediction_service_pb2

METHODS = {
    f"/{service.full_name}/{method.name}": method.input_type._concrete_class
    for file in (prediction_service_pb2, model_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
PREDICT, METADATA, RELOAD = (
    next(path for path in METHODS if path.endswith(name))
    for name in ("/Predict", "/GetModelMetadata", "/HandleReloadConfigRequest")
)
SERVERS_FAULTS = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED"}
TIMEOUT_S = 60.0  # until an answer counts as none
SEND_S = 1.0  # in which a server that is asked wants to have a request


class Caller:
    """Asks a server, and looks at each answer."""

    def __init__(self, server):
        self.server, self.counts = server, collections.Counter()
        self._channel, self._socket = grpc.insecure_channel(server.grpc), None

    def close(self):
        self._channel.close()
        if self._socket is not None:
            self._socket.close()

    def call(self, method, raw, *metadata):
        """Returns the answer to a gRPC call; None where it is refused."""
        try:
            answer = self._channel.unary_unary(method)(raw, timeout=TIMEOUT_S, metadata=metadata)
            self.counts["OK"] += 1
            return answer
        except grpc.RpcError as error:
            self.counts[error.code().name] += 1
            assert error.code().name not in SERVERS_FAULTS, (method, raw, metadata, error)
            assert error.details()
            return None

    def send(self, head, body, *, is_whole):
        """Sends an HTTP request as it is; returns status and content; 0 where the server hung up."""
        began = time.monotonic()
        if self._socket is None:
            self._socket = socket.create_connection(self.server.rest, timeout=TIMEOUT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        status, content, is_json = 0, b"", False
        try:
            self._socket.sendall(head + body)
            is_whole &= time.monotonic() - began < SEND_S  # else it may have hung up on a caller that was held up
            answer = http.client.HTTPResponse(self._socket, method=head.split(b" ", 1)[0].decode("latin-1"))
            answer.begin()
            status, content = answer.status, answer.read()
            is_json = answer.headers.get_content_type() == "application/json"
            keeps = is_whole and not answer.will_close
        except (http.client.HTTPException, ConnectionError) as error:
            assert not is_whole, (head, body, error)
            keeps = False
        if not keeps:
            self._socket.close()
            self._socket = None
        self.counts[status] += 1
        assert status < 500 or status == 501, (head, body, content)  # 501: TensorFlow Serving's, of types without JSON
        if status >= 400 and not head.startswith(b"HEAD"):
            assert json.loads(content)["error"] if is_json else content, (head, body)
        return status, content

    def post(self, path, body, **headers):
        """As `send`, of a sound head."""
        lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
        head = f"POST {path} HTTP/1.1\r\nhost: me\r\n{''.join(lines)}content-length: {len(body)}\r\n\r\n"
        return self.send(head.encode("latin-1"), body, is_whole=True)
