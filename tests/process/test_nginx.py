# SPDX-License-Identifier: Apache-2.0
"""nginx under load: a master, workers of another user, a cache in shared memory and its manager."""

import random
from pathlib import Path

import pytest
from service import Check, Clients, Service, connected
from target import Ckpt
from test_real import free_port

from tests.peers import peer

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

CONFIG = """
daemon off; pid {place}/nginx.pid; error_log {place}/error.log notice;
user nobody nogroup; worker_processes 2; thread_pool readers threads=2;
events {{ worker_connections 200; }}
http {{
  access_log {place}/access.log; sendfile on; keepalive_requests 1000000;
  client_body_temp_path {place}/temp; proxy_temp_path {place}/proxy;
  fastcgi_temp_path {place}/fastcgi; uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
  proxy_cache_path {place}/cache keys_zone=kept:1m; limit_req_zone $uri zone=all:1m rate=100000r/s;
  server {{
    listen 127.0.0.1:{port} reuseport; listen unix:{place}/inner.sock;
    root {place}/files; limit_req zone=all burst=1000000 nodelay;
    location /threads/ {{ alias {place}/files/; aio threads=readers; sendfile off; }}
    location /passed/ {{ proxy_pass http://unix:{place}/inner.sock:/; }}
    location /cached/ {{
      proxy_cache kept; proxy_cache_valid 1h; proxy_pass http://unix:{place}/inner.sock:/;
    }}
  }}
}}
"""


class Nginx(Service):
    """Serves files: by itself, by threads, by way of itself over a unix socket, from its cache."""

    name = "nginx"
    options = ("--tcp-established", "--skip-in-flight")

    def command(self) -> list[str]:
        self.port = free_port()
        self.place.chmod(0o777)
        files = self.place / "files"
        files.mkdir()
        dice = random.Random(1)
        self.files = {f"file{size}": dice.randbytes(size) for size in (10, 20_000, 300_000)}
        for name, content in self.files.items():
            (files / name).write_bytes(content)
        config = self.place / "nginx.conf"
        config.write_text(CONFIG.format(place=self.place, port=self.port))
        return [peer("nginx"), "-c", str(config), "-e", str(self.place / "error.log")]

    def is_up(self) -> bool:
        return self.get("/file10") == self.files["file10"]

    def get(self, path: str) -> bytes:
        with connected(self.port) as connection:
            connection.request("GET", path)
            return connection.getresponse().read()

    def questions(self) -> dict[str, Check]:
        ways = ("/", "/threads/", "/passed/", "/cached/")
        return {
            f"{way}{name}": content.__eq__ for way in ways for name, content in self.files.items()
        }

    def use(self) -> None:
        with Clients(self.port, self.questions()) as clients:
            clients.more(100)
        log = (self.place / "error.log").read_text()
        assert "[alert]" not in log and "[crit]" not in log, log


@pytest.mark.parametrize("engine", ["stop", "live"])
def test_runs_on(engine: str, place: Path) -> None:
    """Its clients notice nothing but a pause."""
    with Nginx(place) as service, Clients(service.port, service.questions()) as clients:
        for number in range(2):
            Ckpt().dump(service, place / f"images{number}", "-R", "--engine", engine)
            clients.more(100)


@pytest.mark.parametrize("lazy", [(), ("--lazy-pages",)], ids=["eager", "lazy"])
def test_comes_back(lazy: tuple[str, ...], place: Path) -> None:
    """Killed in the midst of answers; it listens again, at the same places."""
    with Nginx(place) as service:
        with Clients(service.port, service.questions()) as clients:
            service.note()
            Ckpt().dump(service, place / "images")
            clients.cut_off()
        Ckpt().restore(service, place / "images", *lazy)
        service.use()
