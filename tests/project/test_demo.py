"""The demo is a promise to whoever tries the project first: it passes, it can fail, and it leaves nothing behind."""

from __future__ import annotations

import contextlib
import http.cookiejar
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo_project.trial import sabotage
from tests.support.harness.process import fork_server

ROOT = Path(__file__).resolve().parent.parent.parent
KEYS = [
    "orders",
    "rolled_back",
    "lost",
    "phantom",
    "duplicate_effects",
    "retried",
    "rescued",
    "workers_killed",
    "messages_wiped",
    "seconds",
]

SERVERS = {
    "DATABASE_URL": "postgresql://postgres@127.0.0.1:5432/postgres",
    "BROKER_URL": "amqp://guest:guest@127.0.0.1:5672//",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The temporary directory of the demo, so that what it leaves there can be seen."""
    return tmp_path


def environment(place: Path, *, servers: bool = False) -> dict[str, str]:
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "demo_project.settings", "TMPDIR": str(place)}
    for name, value in SERVERS.items():
        if servers:
            env.setdefault(name, value)
        else:
            env.pop(name, None)
    return env


def demo(place: Path, *arguments: str, servers: bool = False) -> tuple[int, dict[str, Any], str]:
    """Run it to its end: exit code, the JSON line, all of its output."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "demo", "--json", "--seconds", "700", *arguments],
        env=environment(place, servers=servers),
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    output = done.stdout + done.stderr
    last = done.stdout.strip().rpartition("\n")[2]
    assert last.startswith("{"), output
    return done.returncode, json.loads(last), output


def processes_of(place: Path) -> list[int]:
    """Processes whose environment says that they belong to a demo in this directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"DEMO_DIR={place}/".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def until(condition: Callable[[], Any], seconds: float = 180.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
    return value


def assert_nothing_is_left(place: Path) -> None:
    assert processes_of(place) == []
    assert list(place.iterdir()) == []


def assert_passed(code: int, line: dict[str, Any], output: str) -> None:
    assert code == 0, output
    assert list(line) == KEYS
    assert (line["lost"], line["phantom"], line["duplicate_effects"]) == (0, 0, 0)
    assert line["orders"] >= 300
    assert line["rolled_back"] >= 20
    assert line["workers_killed"] >= 3
    assert line["messages_wiped"] >= 20
    assert line["retried"] > 0
    assert line["rescued"] > 0


# --- the demo ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.promise("I2")
@pytest.mark.promise("I3")
def test_the_demo_passes_on_embedded_parts_and_leaves_nothing_behind(place: Path) -> None:
    assert_passed(*demo(place))
    assert_nothing_is_left(place)


@pytest.mark.soak
@pytest.mark.servers
@pytest.mark.promise("I2")
@pytest.mark.promise("I3")
def test_the_demo_passes_on_servers_and_leaves_nothing_behind(place: Path) -> None:
    import psycopg

    def databases() -> set[str]:
        with psycopg.connect(environment(place, servers=True)["DATABASE_URL"]) as connection:
            names = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'reliable_jobs_demo%'")
            return {name for (name,) in names}

    before = databases()
    assert_passed(*demo(place, servers=True))
    assert_nothing_is_left(place)
    assert databases() <= before


@pytest.mark.slow
@pytest.mark.parametrize("broken", sabotage.CHOICES)
def test_what_a_switched_off_protection_replaces_is_still_there(place: Path, broken: str) -> None:
    env = {**environment(place), sabotage.VARIABLE: broken}
    subprocess.run([sys.executable, "-c", "import django; django.setup()"], env=env, cwd=ROOT, check=True)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("broken", "sign"), [("lock", "duplicate_effects"), ("fence", "duplicate_effects"), ("sweep", "lost")]
)
def test_the_demo_fails_when_a_protection_is_switched_off(place: Path, broken: str, sign: str) -> None:
    code, line, output = demo(place, "--break", broken)
    assert code == 1
    # Only that: a demo whose every job fails would fail as well, and show nothing.
    assert [name for name in ("lost", "phantom", "duplicate_effects") if line[name]] == [sign], output
    assert_nothing_is_left(place)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
def test_a_demo_that_is_interrupted_ends_its_processes(place: Path, number: int) -> None:
    command = [sys.executable, str(ROOT / "manage.py"), "demo"]
    with subprocess.Popen(
        command, env=environment(place), start_new_session=True, stdout=subprocess.DEVNULL
    ) as running:
        until(lambda: list(place.glob("*/outside/provider.log")))  # the workers are at work
        if number == signal.SIGINT:
            os.killpg(running.pid, number)  # as a terminal does it
        else:
            running.terminate()
        assert running.wait(timeout=180) != 0
    assert_nothing_is_left(place)


# --- the count --------------------------------------------------------------------------------------------------------

COUNT = """
import uuid, django
django.setup()
from django.core.mail import EmailMessage
from demo_project.shop.models import *
from demo_project.trial import acts, evidence, witnesses
product = Product.objects.create(name="Anchor", price=5, stock=evidence.FIRST_STOCK - 1)
order = Order.objects.create(product=product, email="a@example.com")
def note(what, key, pid=1): witnesses.note("provider.log", f"{pid} {what} {order.pk} {key} 5.00")
def mail(number, to):
    headers = {"Message-ID": f"<{number}@x>", "X-Order": str(to)}
    EmailMessage("s", "b", to=["a@example.com"], headers=headers).send()
witnesses.note("orders.log", f"committed {order.pk}")
StockMovement.objects.create(product=product, quantity=-1, order=order)
payment = Payment.objects.create(order=order, amount=5, charge_id="c")
note("asked", "k"); note("charged", "k"); mail(1, order.pk)
upload = Upload.objects.create(text="Anchor,0\\nAnchor,0")
lines = [StockMovement.objects.create(product=product, quantity=0, upload=upload) for _ in upload.lines]
tally = acts.Tally()
exec(STORY)
verdict = evidence.verdict(tally)
print(len(verdict.lost), len(verdict.phantom), len(verdict.duplicates))
"""


@pytest.fixture(scope="module")
def empty_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a database that has been migrated."""
    place = tmp_path_factory.mktemp("shop")
    done = fork_server().run(
        ["-m", "django", "migrate", "-v", "0"], {**environment(place), "DEMO_DIR": str(place)}, ROOT, 180
    )
    assert done.returncode == 0, done.stderr
    return place / "shop.sqlite3"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("story", "lost", "phantom", "duplicates"),
    [
        pytest.param("pass", 0, 0, 0, id="all is well"),
        pytest.param("payment.delete()", 1, 0, 0, id="a payment is missing"),
        pytest.param("StockMovement.objects.filter(order=order).delete()", 1, 0, 1, id="a movement is missing"),
        pytest.param("witnesses.note('orders.log', f'committed {uuid.uuid4()}')", 5, 0, 0, id="an order is missing"),
        pytest.param("[line.delete() for line in lines]", 1, 0, 0, id="an upload is missing"),
        pytest.param("lines[0].delete()", 0, 0, 1, id="an upload is booked by half"),
        pytest.param("Product.objects.update(stock=7)", 0, 0, 1, id="the stock is wrong"),
        pytest.param("payment.pk = None; payment.save()", 0, 0, 1, id="a payment is doubled"),
        pytest.param("note('asked', 'k2'); note('charged', 'k2')", 0, 0, 1, id="a charge is doubled"),
        pytest.param("note('asked', 'k'); note('charged', 'k')", 0, 0, 0, id="the same charge is asked for again"),
        pytest.param("note('asked', 'k'); note('asked', 'k', 2)", 0, 0, 1, id="a charge is asked for by two at once"),
        pytest.param("mail(2, order.pk)", 0, 0, 1, id="a receipt is doubled"),
        pytest.param("mail(1, order.pk)", 0, 0, 0, id="a receipt is sent again under its id"),
        pytest.param("mail(2, uuid.uuid4())", 0, 1, 0, id="a receipt for an order that was rolled back"),
        pytest.param(
            "witnesses.note('shop.log', f'1 order {uuid.uuid4()}: reserving stock')", 0, 1, 0, id="a phantom run"
        ),
    ],
)
def test_the_count_sees_what_went_wrong(
    place: Path, empty_shop: Path, story: str, lost: int, phantom: int, duplicates: int
) -> None:
    shutil.copy(empty_shop, place)
    done = fork_server().run(
        ["-c", f"STORY = {story!r}\n{COUNT}"], {**environment(place), "DEMO_DIR": str(place)}, ROOT, 180
    )
    assert done.stdout.split() == [str(lost), str(phantom), str(duplicates)], done.stdout + done.stderr


# --- the site ---------------------------------------------------------------------------------------------------------


class Browser:
    """Just enough of one to fill in a form."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.cookies = http.cookiejar.CookieJar()
        self.opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self.cookies)
        )

    def get(self, path: str) -> str:
        with self.opener.open(f"{self.address}{path}", timeout=90) as answer:
            return str(answer.read().decode())

    def post(self, path: str, **fields: str) -> tuple[str, str]:
        """Fill in the form of a page. Returns the path that this leads to, and what stands there."""
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.get(path))
        assert token
        data = urllib.parse.urlencode({**fields, "csrfmiddlewaretoken": token.group(1)}).encode()
        with self.opener.open(f"{self.address}{path}", data=data, timeout=90) as answer:
            return urllib.parse.urlsplit(answer.url).path, answer.read().decode()


@pytest.fixture
def served(place: Path) -> Iterator[Browser]:
    command = [sys.executable, str(ROOT / "manage.py"), "serve_demo", "--port", "18200"]
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(command, env=environment(place), start_new_session=True, stdout=output) as running:
            try:

                def address() -> str | None:
                    output.seek(0)
                    found = re.search(r"Shop: +(http://\S+\d)/", output.read())
                    assert running.poll() is None
                    return found and found.group(1)

                yield Browser(until(address))
            finally:
                os.killpg(running.pid, signal.SIGINT)
                code = running.wait(timeout=180)
        assert code == 0
    assert_nothing_is_left(place)


@pytest.mark.slow
def test_the_shop_of_make_serve_takes_an_order_and_ends_with_ctrl_c(served: Browser) -> None:
    product = re.search(r'<option value="(\d+)"', served.get("/"))
    assert product
    order = {"product": product.group(1), "quantity": "2", "email": "you@example.com"}

    path, page = served.post("/", **order, voucher="SUMMER")
    assert path == "/"
    assert "The voucher &#x27;SUMMER&#x27; is not valid." in page

    path, _ = served.post("/", **order)
    assert path.startswith("/orders/")
    page = until(lambda: (shown := served.get(path)) and "not sent yet" not in shown and shown)
    assert "SUCCESS" in page
    assert path in served.get("/orders/")

    path, page = served.post("/admin/login/?next=/admin/", username="demo", password="demo", next="/admin/")
    assert path == "/admin/"
    assert "Site administration" in page

    night = ["WarehouseOffline", "ProviderUnavailable", "Queue &#x27;newsletter&#x27; is paused by demo", ">archive<"]
    until(lambda: (shown := served.get("/admin/reliable_jobs/")) and all(word in shown for word in night))
    for state in ("failed", "retrying", "parked", "crashed", "expired", "waiting", "succeeded"):
        address = f"/admin/reliable_jobs/job/?state={state}"
        until(lambda address=address: 'class="rj-state' in served.get(address))
