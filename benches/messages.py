"""The requests, as they are on the wire: https://protobuf.dev/programming-guides/encoding/"""

# Envoy's number of a request's stream, of as many digits as most have. The generator counts it up.
STREAM_ID = "10000000000000000000"
CLIENT = "192.0.2.17"


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def field(number, value):
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def number_field(number, value):
    return varint(number << 3) + varint(value)


def framed(message):
    """As a gRPC message, not compressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def check_key_request(secret):
    """`CheckKeyRequest`, as an edge sends it."""
    context = field(1, CLIENT) + field(3, "GET") + field(4, "api.example.com") + field(5, "/v1/tasks/4711")
    return framed(field(1, secret) + field(2, "tasks:read") + field(6, context))


def client_headers(secret):
    """What the client of a browser's application sends: 15 headers, beside the four that begin a request."""
    return [
        ("user-agent", "Mozilla/5.0"), ("accept", "application/json"), ("accept-encoding", "gzip, br"),
        ("accept-language", "en"), ("x-api-key", secret), ("origin", "https://example.com"),
        ("referer", "https://example.com/"), ("cache-control", "no-cache"), ("pragma", "no-cache"),
        ("priority", "u=1, i"), ("dnt", "1"), ("sec-fetch-dest", "empty"), ("sec-fetch-mode", "cors"),
        ("sec-fetch-site", "same-site"), ("x-client-version", "4.2.0"), ("if-none-match", '"33a6"'),
        ("sec-gpc", "1"),
    ]


def request_headers(secret):
    """The same once Envoy has added its own: 25."""
    pseudo = [(":authority", "api.example.com"), (":path", "/v1/tasks/4711"), (":method", "GET"), (":scheme", "http")]
    added = [("x-forwarded-for", CLIENT), ("x-forwarded-proto", "http"), ("x-envoy-external-address", CLIENT),
             ("x-request-id", "d87d02bc-9691-4c24-86f8-d34dff646c05")]
    return pseudo + client_headers(secret) + added


def check_request(secret, raw):
    """`CheckRequest` with the fields that Envoy 1.40 sends, in its order. `raw` is `encode_raw_headers`."""
    peer = lambda address, port: field(1, field(1, field(2, address) + number_field(3, port)))
    headers = request_headers(secret)
    if raw:
        listed = field(13, b"".join(field(1, field(1, name) + field(3, value)) for name, value in headers))
        mapped = b""
    else:
        listed, mapped = b"", b"".join(field(3, field(1, name) + field(2, value)) for name, value in headers)
    http = (field(1, STREAM_ID) + field(2, "GET") + mapped + field(4, "/v1/tasks/4711") + field(5, "api.example.com")
            + field(7, "http") + field(10, "HTTP/1.1") + listed)
    time = number_field(1, 1_795_000_000) + number_field(2, 900_000_000)
    extensions = [("scopes", "tasks:read"), ("cost", "1")]
    attributes = (field(1, peer(CLIENT, 60_614)) + field(2, peer("10.0.0.1", 10_000)) + field(4, field(1, time) + field(2, http))
                  + b"".join(field(10, field(1, name) + field(2, value)) for name, value in extensions)
                  # The metadata context and the session, both empty.
                  + field(11, b"") + field(13, b""))
    return framed(field(1, attributes))


def check_headers(caller):
    """What Envoy 1.40 sends beside what every gRPC call has."""
    return [("grpc-timeout", "250m"), ("x-forwarded-for", "10.0.0.1"), ("authorization", f"Bearer {caller}"),
            ("x-client-ip", CLIENT), ("x-envoy-internal", "true"), ("x-envoy-expected-rq-timeout-ms", "250")]
