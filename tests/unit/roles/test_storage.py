"""What the role storage refuses of a site, and what it makes of shared data, without any cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROLE = Path(__file__).resolve().parents[3] / "roles/storage"
IMAGES = {"name": "images", "server": "nfs.test", "path": "/datasets/images"}


def decide(name: str, **inputs: Any) -> Any:
    """Return the role's variable `name` for a site with these inputs."""
    loader = DataLoader()
    variables: dict[str, Any] = {}
    for part in ("defaults", "vars"):
        variables |= loader.load_from_file(str(ROLE / part / "main.yml"), trusted_as_template=True)
    # As Ansible reads them from a file.
    variables |= {"storage_nfs_server": "nfs.test", "storage_nfs_share": "/homes"} | loader.load(yaml.safe_dump(inputs))
    return Templar(loader, variables=variables).template(variables[name])


@pytest.mark.proves("storage-capacity")
@pytest.mark.parametrize(
    ("users", "size", "capacity", "said"),
    [
        pytest.param(100, "100Gi", "10Ti", "", id="room"),
        pytest.param(1024, "10Gi", "10Ti", "", id="exactly"),
        pytest.param(
            103, "100Gi", "10Ti", "103 users with 100Gi each may fill 10.1 TiB, and nfs.test has 10.0 TiB", id="not"
        ),
        pytest.param(
            24, "1000G", "20T", "24 users with 1000G each may fill 21.8 TiB, and nfs.test has 18.2 TiB", id="tens"
        ),
        pytest.param(0, "100Gi", "", "", id="neither-said"),
        pytest.param(10**6, "100Gi", "", "storage_users is given without storage_nfs_capacity", id="capacity-not-said"),
        pytest.param(0, "100Gi", "1Gi", "storage_nfs_capacity is given without storage_users", id="users-not-said"),
        pytest.param(1, "100Gi", "10 TB", "storage_nfs_capacity is 10 TB, which is no size", id="capacity-no-size"),
        pytest.param(1, "large", "10Ti", "storage_home_size is large, which is no size", id="home-no-size"),
        pytest.param(1, "1024", "1Ki", "", id="bytes"),
        pytest.param(2, "1024", "1Ki", "2 users with 1024 each", id="bytes-not"),
    ],
)
def test_users_who_could_fill_the_file_server_are_refused_with_the_numbers(
    users: int, size: str, capacity: str, said: str
) -> None:
    found = decide("__storage_refusals", storage_users=users, storage_home_size=size, storage_nfs_capacity=capacity)
    assert len(found) == bool(said)
    assert not said or said in found[0]


@pytest.mark.proves("storage-datasets")
@pytest.mark.parametrize(
    ("different", "said"),
    [
        pytest.param({}, "", id="good"),
        pytest.param({"server": "other.test", "path": "/homes"}, "", id="of-another-server"),
        pytest.param({"path": "/homes-of-old"}, "", id="like-the-homes"),
        pytest.param({"path": "/homes"}, "lie in one another", id="the-homes"),
        pytest.param({"path": "/homes/jupyterhub/"}, "lie in one another", id="below-the-homes"),
        pytest.param({"path": "/"}, "lie in one another", id="above-the-homes"),
        pytest.param({"path": "datasets"}, "not one from the root", id="relative"),
        pytest.param({"path": "/datasets/../homes"}, "not one from the root", id="upwards"),
        pytest.param({"name": "Images"}, "has no name of small letters", id="name"),
    ],
)
def test_data_that_would_give_homes_away_or_has_no_name_is_refused(different: dict[str, str], said: str) -> None:
    found = decide("__storage_refusals", storage_datasets=[IMAGES | different])
    assert len(found) == bool(said)
    assert not said or said in found[0]


@pytest.mark.proves("storage-datasets")
def test_a_name_that_two_have_is_refused() -> None:
    assert decide("__storage_refusals", storage_datasets=[IMAGES, IMAGES]) == ["the dataset images is named twice"]


@pytest.mark.proves("storage-datasets")
def test_shared_data_is_mounted_read_only_for_one_claim_and_stays() -> None:
    (volume,) = decide("__storage_dataset_volumes", storage_datasets=[IMAGES])
    assert volume["metadata"]["name"] == "dataset-images"
    assert volume["spec"]["claimRef"]["namespace"] == "jupyterhub"
    assert volume["spec"]["claimRef"]["name"] == "dataset-images"
    assert volume["spec"]["csi"]["volumeAttributes"] == {"server": "nfs.test", "share": "/datasets/images"}
    assert volume["spec"]["accessModes"] == ["ReadOnlyMany"]
    assert {"ro", "hard"} <= set(volume["spec"]["mountOptions"])
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"


def volume(claim: str, node: str, **different: Any) -> dict[str, Any]:
    """A volume as the API shows one of the local class."""
    where = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    spec = {
        "storageClassName": "local-path",
        "claimRef": {"namespace": "keycloak", "name": claim},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [where]}},
        "local": {"path": f"/local/{claim}"},
    }
    return {"spec": spec | different, "status": {"phase": "Bound"}}


@pytest.mark.proves("storage-lost")
def test_only_claimed_volumes_on_machines_of_the_site_are_looked_for() -> None:
    old = volume("old", "m1", hostPath={"path": "/local/old"})
    del old["spec"]["local"]
    found = {
        "resources": [
            volume("named", "n2"),
            old,
            volume("stranger", "m9"),
            volume("home", "m1", storageClassName="homes"),
            volume("given-back", "m1") | {"status": {"phase": "Released"}},
        ]
    }
    machines = {"m1": {}, "m2": {"rke2_node_name": "n2"}}
    assert decide("__storage_volumes", __storage_found=found, groups={"rke2": [*machines]}, hostvars=machines) == [
        {"name": "keycloak/named (/local/named on m2)", "machine": "m2", "path": "/local/named"},
        {"name": "keycloak/old (/local/old on m1)", "machine": "m1", "path": "/local/old"},
    ]


@pytest.mark.proves("storage-lost")
def test_a_volume_is_lost_when_it_is_not_there_or_as_a_kubelet_makes_it_and_not_when_its_machine_is_silent() -> None:
    looked = [
        {"item": {"name": "gone"}, "stat": {"exists": False}},
        {"item": {"name": "there"}, "stat": {"exists": True, "mode": "0777"}},
        {"item": {"name": "of-a-group"}, "stat": {"exists": True, "mode": "2777"}},
        {"item": {"name": "in-its-place"}, "stat": {"exists": True, "mode": "0755"}},
        {"item": {"name": "silent"}, "unreachable": True},
    ]
    lost = decide("__storage_lost", __storage_looked={"results": looked})
    assert lost == [{"name": "gone"}, {"name": "in-its-place"}]
