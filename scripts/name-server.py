"""For scripts/check-image.sh, in a network namespace: a DNS server on 127.0.0.1:53 that gives 127.0.0.1 for every name,
and an HTTP server on 127.0.0.1:8001 that prints the host name of each request and says 404."""

import http.server
import socket
import threading


def serve_names(server):
    while True:
        query, client = server.recvfrom(4096)
        end = query.index(b"\0", 12) + 5
        question, kind = query[12:end], query[end - 4 : end - 2]
        # An answer points back to the name in the question: class IN, 60 seconds. There is none but for A.
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1" if kind == b"\0\1" else b""
        counts = bytes([0, 1, 0, 1 if answer else 0, 0, 0, 0, 0])
        server.sendto(query[:2] + b"\x81\x80" + counts + question + answer, client)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("asked by the name", self.headers["Host"], flush=True)
        self.send_error(404)

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind(("127.0.0.1", 53))
threading.Thread(target=serve_names, args=(names,), daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", 8001), Handler).serve_forever()
