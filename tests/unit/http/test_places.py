"""Who may be connected to the HTTP port."""

from dataclasses import dataclass

from service.http.places import SPARE, Places, who


@dataclass(eq=False)
class Client:
    name: int
    is_idle: bool = True


def filled(most: int, address: str | None = None) -> tuple[Places[Client], list[Client]]:
    places: Places[Client] = Places(most)
    clients = [Client(number) for number in range(most)]
    for client in clients:
        places.add(client, address)
    return places, clients


def test_the_one_that_was_used_longest_ago_goes_first() -> None:
    places, clients = filled(4)
    places.used(clients[0])
    clients[1].is_idle = False
    assert places.to_close_for(None) is clients[2]
    places.remove(clients[2])
    assert places.to_close_for(None) is None, "there is a place"


def test_an_address_has_half_of_the_places() -> None:
    places, _ = filled(2)
    places = Places(10)
    own = [Client(number) for number in range(5)]
    for client in own:
        places.add(client, "a")
    assert places.to_close_for("b") is None
    assert places.may_add("b")
    assert not places.may_add("a")
    assert places.to_close_for("a") is own[0]
    places.remove(own[0])
    assert places.may_add("a")
    for client in own[1:]:
        places.remove(client)
    assert len(places) == 0
    assert not places._by_address


def test_spare_places_are_taken_when_none_is_idle_and_no_more() -> None:
    places, clients = filled(4)
    for client in clients:
        client.is_idle = False
    assert places.to_close_for("a") is None
    for number in range(SPARE):
        assert places.may_add(None)
        assert places.are_exceeded == (number > 0)
        places.add(Client(100 + number, is_idle=False), None)
    assert not places.may_add(None)
    assert not places.may_add("b")


def test_what_has_no_place_is_ignored() -> None:
    places, clients = filled(1)
    places.used(Client(7))
    places.remove(Client(7))
    assert places.clients() == clients


def test_the_addresses_of_one_ipv6_network_count_as_one() -> None:
    assert who("10.0.0.7") == who("::ffff:10.0.0.7") == "10.0.0.7"
    assert who("2001:db8::1") == who("2001:db8::ffff:2") != who("2001:db8:0:1::1")
    assert who("fe80::1%eth0") == who("fe80::2")
