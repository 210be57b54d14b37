"""The network between one host and one server: cut, refusing, slow, half-open."""

from __future__ import annotations

from qa.chaos.faults import Strike, fault
from qa.chaos.world import World
from tests.support.private_servers import CuttableProxy


def _network(world: World, strike: Strike, server: str) -> CuttableProxy:
    number = ("broker", "database").index(server)
    connected = [host for host in world.networks if world.networks[host][number].links]
    host = strike.rng.choice(connected or list(world.networks))
    proxy = world.networks[host][number]
    strike.now(world, f"{host} to {server}")
    strike.hit = proxy.links > 0
    return proxy


def _cut(world: World, strike: Strike, server: str) -> None:
    _network(world, strike, server).cut()


def _refuse(world: World, strike: Strike, server: str) -> None:
    proxy = _network(world, strike, server)
    proxy.refuse(True)
    try:
        proxy.cut()
        strike.last(1.0, 5.0)
    finally:
        proxy.refuse(False)


def _delay(world: World, strike: Strike, server: str) -> None:
    proxy = _network(world, strike, server)
    proxy.latency = strike.rng.uniform(0.05, 0.5)
    try:
        strike.last(2.0, 5.0)
    finally:
        proxy.latency = 0.0


def _half_open(world: World, strike: Strike, server: str) -> None:
    """Nothing arrives any more, and neither side is told. When the network is back, what was open is reset: a proxy
    can't show the kernels' own time limits, which would have done so without it."""
    proxy = _network(world, strike, server)
    proxy.blackhole(True)
    try:
        strike.last(2.0, 7.0)
    finally:
        proxy.blackhole(False)
        proxy.cut_swallowed()


for _server, _needs in (("broker", ()), ("database", ("database server",))):
    for _words, _function in (
        ("cut", _cut),
        ("refused", _refuse),
        ("slow", _delay),
        ("half-open", _half_open),
    ):
        fault(f"network to the {_server} {_words}", f"network to the {_server}", *_needs)(
            lambda world, strike, act=_function, server=_server: act(world, strike, server)
        )
