"""Asks Tollgate whether the API key on standard input may read tasks, as a service would for each request.

Once, at the root of the repository:

    pip install grpcio grpcio-tools
    python -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. \\
        tollgate/v1/{key,types,usage}.proto google/api/{annotations,field_behavior,http}.proto

Then, with the caller's own key, which holds the scope `tollgate:check`, in TOLLGATE_TOKEN:

    echo "$KEY" | PYTHONPATH=. python examples/python/check_key.py
"""

import os
import sys

import grpc

from tollgate.v1 import key_pb2, key_pb2_grpc


class Denied(Exception):
    """Do not serve the request; answer it with this HTTP status."""

    def __init__(self, http_status: int, message: str):
        super().__init__(message)
        self.http_status = http_status


def check_key(stub: key_pb2_grpc.KeyServiceStub, token: str, key: str) -> key_pb2.CheckKeyResponse:
    """Returns what is known of the key. Raises Denied where it may not; any grpc.RpcError is no admission either."""
    answer = stub.CheckKey(
        key_pb2.CheckKeyRequest(key=key, all_of=["tasks:read"], cost=1),
        metadata=[("authorization", f"Bearer {token}")],
        timeout=0.25,
    )
    if not answer.allowed:
        raise Denied(answer.http_status, answer.message)
    return answer


def main() -> int:
    # One channel for the life of the process: it reconnects by itself.
    channel = grpc.insecure_channel(os.environ.get("TOLLGATE_ADDR", "127.0.0.1:50051"))
    stub = key_pb2_grpc.KeyServiceStub(channel)
    try:
        answer = check_key(stub, os.environ["TOLLGATE_TOKEN"], sys.stdin.readline().strip())
    except Denied as denied:
        print(f"denied, HTTP {denied.http_status}: {denied}")
        return 3
    except grpc.RpcError as error:
        print(f"not known, HTTP 503: {error.code().name} {error.details()}")
        return 6
    print(f"allowed: {answer.key_name} of {answer.account_id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
