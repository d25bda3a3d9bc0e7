"""The counter of what nodes send outside: the rules it lays down and what it reads back."""

from __future__ import annotations

import pytest

import egress

LISTING = """*raw
:PREROUTING ACCEPT [100:2000]
:metalhub-lab-out - [0:0]
[9:900] -A PREROUTING -i metalhub-lab -j metalhub-lab-out
[4:400] -A metalhub-lab-out -d 198.18.101.0/24 -j RETURN
[3:252] -A metalhub-lab-out -m comment --comment outside
[7:700] -A other-out -m comment --comment outside
COMMIT
"""


@pytest.fixture
def iptables(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that would run; none of the rules is there yet."""
    commands: list[str] = []

    def run(*words: object, **_: object) -> str:
        commands.append(" ".join(str(word) for word in words))
        return LISTING

    def there(*words: str) -> bool:
        commands.append(f"? {' '.join(words)}")
        return words[0] == "-N"

    monkeypatch.setattr(egress, "run", run)
    monkeypatch.setattr(egress, "there", there)
    return commands


@pytest.mark.proves("lab-egress")
def test_what_goes_to_no_network_of_the_lab_is_counted_before_anything_is_dropped(iptables: list[str]) -> None:
    egress.count("metalhub-lab", "metalhub-lab", ["198.18.101.0/24", "10.42.0.0/16"])
    asked, made, *rules, hook = iptables
    assert (asked, made) == ("? -C PREROUTING -i metalhub-lab -j metalhub-lab-out", "? -N metalhub-lab-out")
    start = "iptables -w -t raw -A metalhub-lab-out"
    returned = ["198.18.101.0/24", "10.42.0.0/16", "224.0.0.0/4", "255.255.255.255"]
    assert rules == [f"{start} -d {net} -j RETURN" for net in returned] + [f"{start} -m comment --comment outside"]
    assert hook == "iptables -w -t raw -I PREROUTING -i metalhub-lab -j metalhub-lab-out"


@pytest.mark.proves("lab-egress")
def test_the_count_is_this_networks_own(iptables: list[str]) -> None:
    assert egress.counted("metalhub-lab") == {"packets": 3, "bytes": 252}
    assert egress.counted("other") == {"packets": 7, "bytes": 700}


@pytest.mark.proves("lab-egress")
def test_a_network_that_nothing_counts_on_is_no_zero(iptables: list[str]) -> None:
    with pytest.raises(SystemExit, match="nothing counts on the network elsewhere; is the lab up"):
        egress.counted("elsewhere")


@pytest.mark.proves("lab-egress")
def test_a_chains_name_is_never_too_long_for_iptables() -> None:
    assert len(egress.chain("a-network-with-a-very-long-name-indeed")) == 28
