"""uvicorn's HTTP protocol with a bound on the head of a request, which httptools gathers without end."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server import errors

HEAD_MAX = 64 << 10  # bytes of request line and headers (or of a chunked body's trailers), and what one read brings


class Protocol(HttpToolsProtocol):
    """`_unused` is how many bytes have come since a head was complete or a piece of body was handed on."""

    _unused = 0

    def data_received(self, data: bytes) -> None:
        self._unused += len(data)
        super().data_received(data)
        if self._unused > HEAD_MAX and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        self._unused = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._unused = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unused = 0
        super().on_body(body)

    def _refuse(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            problem = errors.head_too_large(HEAD_MAX)
            body = problem.body()
            head = (
                f"HTTP/1.1 {problem.status} Request Header Fields Too Large\r\ncontent-type: {errors.MEDIA_TYPE}\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
