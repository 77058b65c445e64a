"""A real HTTP server on this machine that speaks enough of the OpenAI protocol, well or badly; started in a thread."""

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeEndpoint:
    """``behave(prompt, nth)`` says what the ``nth`` request (from 1) for a prompt gets: a text, or one of the faults.

    Faults: ``(status, headers, body)``; ``cut`` (half a body, then no more), ``drop`` (no reply), ``garbage``,
    ``shape`` (JSON of another kind), ``empty`` (no text in it), ``slow`` (nothing for two seconds, then ``yes``).
    """

    def __init__(self, behave: Callable[[str, int], object]):
        self.behave, self.seen, self.bodies, self.headers = behave, Counter(), [], []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
                with fake.lock:
                    fake.seen[prompt] += 1
                    nth = fake.seen[prompt]
                    fake.bodies.append(body)
                    fake.headers.append(dict(self.headers) | {"path": self.path})
                    fake.at_once += 1
                    fake.most_at_once = max(fake.most_at_once, fake.at_once)
                try:
                    self.answer(fake.behave(prompt, nth), body)
                except OSError:  # the client has gone
                    self.close_connection = True
                finally:
                    with fake.lock:
                        fake.at_once -= 1

            def answer(self, told, body):
                if told == "drop":
                    self.close_connection = True
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                if told == "slow":
                    time.sleep(2)
                    told = "yes"
                if isinstance(told, tuple):
                    status, headers, text = told
                    self.reply(status, text, headers)
                    return
                choice = {"finish_reason": "stop"}
                choice |= {"message": {"content": told}} if "messages" in body else {"text": told}
                usage = {"prompt_tokens": 7, "completion_tokens": 2}
                whole = json.dumps({"model": "served-model", "choices": [choice], "usage": usage})
                if told == "cut":
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(whole)))
                    self.end_headers()
                    self.wfile.write(whole.encode()[: len(whole) // 2])
                    self.close_connection = True
                    return
                odd = {
                    "garbage": "<html>not JSON",
                    "shape": '["no", "choices"]',
                    "empty": '{"choices": [{"message": {}}]}',
                }
                self.reply(200, odd.get(told, whole), {})

            def reply(self, status, text, headers):
                raw = text.encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.name = f"fake-model@{self.url}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def calls(self) -> int:
        return sum(self.seen.values())

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
