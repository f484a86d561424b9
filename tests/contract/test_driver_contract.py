"""What every capacity driver owes, run against each of them. Named in `DRIVERS`; a new driver adds a fixture and a name."""

from __future__ import annotations

import threading
import time
import uuid
from typing import TYPE_CHECKING

import pytest
from tests.engine_fixture import gone, ready, until

from millstream.capacity.driver import CapacityError, Driver, Refused
from millstream.model.records import Observed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from millstream.model.records import MachineSpec

DRIVERS = [
    "simulated",
    pytest.param("podman", marks=pytest.mark.engine),
    pytest.param("docker", marks=pytest.mark.engine),
]


@pytest.fixture
def simulated_driver(tmp_path: Path) -> Iterator[Driver]:
    from millstream.capacity.simulated import Durations, SimulatedDriver

    driver = SimulatedDriver(tmp_path, Durations())
    yield driver
    driver.close()


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    found: Driver = request.getfixturevalue(f"{request.param}_driver")
    return found


def test_a_life(driver: Driver, new_machine: Callable[..., MachineSpec]) -> None:
    spec = new_machine(driver)
    assert driver.look(spec.id).observed is Observed.ABSENT
    driver.acquire(spec)
    assert driver.look(spec.id).observed is Observed.STOPPED
    driver.start(spec)
    seen = ready(driver, spec)
    assert seen.address.count(".") == 3
    assert seen.interface_id.startswith("eni-")
    assert len(seen.interface_id) == 21
    assert seen.agent_version == spec.agent_version
    assert driver.survey().sightings[spec.id].observed is Observed.READY
    driver.stop(spec.id)
    until(lambda: driver.look(spec.id), lambda s: s.observed is Observed.STOPPED)
    assert driver.survey().sightings[spec.id].observed is Observed.STOPPED
    driver.start(spec)
    ready(driver, spec)
    driver.release(spec.id)
    until(lambda: driver.look(spec.id), lambda s: s.observed is Observed.ABSENT)
    assert spec.id not in driver.survey().sightings


def test_each_verb_may_be_repeated(driver: Driver, new_machine: Callable[..., MachineSpec]) -> None:
    spec = new_machine(driver)
    driver.acquire(spec)
    driver.acquire(spec)
    driver.start(spec)
    driver.start(spec)
    interface = ready(driver, spec).interface_id
    driver.acquire(spec)  # a call that was cut off, seen again late
    driver.start(spec)
    assert ready(driver, spec).interface_id == interface, "it was started once"
    driver.stop(spec.id)
    driver.stop(spec.id)
    until(lambda: driver.look(spec.id), lambda s: s.observed is Observed.STOPPED)
    gone(driver, spec.id)
    driver.release(spec.id)
    driver.stop(spec.id)
    assert driver.look(spec.id).observed is Observed.ABSENT


def test_an_interface_is_new_with_each_start(driver: Driver, new_machine: Callable[..., MachineSpec]) -> None:
    spec = new_machine(driver)
    driver.acquire(spec)
    driver.start(spec)
    first = ready(driver, spec)
    assert ready(driver, spec).interface_id == first.interface_id
    assert driver.survey().sightings[spec.id].interface_id == first.interface_id, "look and survey agree"
    driver.stop(spec.id)
    driver.start(spec)
    assert ready(driver, spec).interface_id != first.interface_id


def test_strangers_are_in_the_survey(driver: Driver, new_machine: Callable[..., MachineSpec]) -> None:
    specs = [new_machine(driver) for _ in range(3)]
    for spec in specs:
        driver.acquire(spec)
    held = driver.survey().sightings
    assert {spec.id for spec in specs} <= set(held)
    assert all(held[spec.id].observed is Observed.STOPPED for spec in specs)


def test_look_and_survey_agree(driver: Driver, new_machine: Callable[..., MachineSpec]) -> None:
    stopped, running = new_machine(driver), new_machine(driver)
    for spec in (stopped, running):
        driver.acquire(spec)
    driver.start(running)
    ready(driver, running)
    held = driver.survey().sightings
    for spec in (stopped, running):
        assert held[spec.id] == driver.look(spec.id)


def test_an_unknown_image_is_refused_for_ever(driver: Driver, new_machine: Callable[..., MachineSpec]) -> None:
    spec = new_machine(driver, image="no-such-image")
    with pytest.raises(Refused, match="no-such-image") as caught:
        driver.acquire(spec)
    assert caught.value.error_code == "IMAGE_NOT_FOUND", "Describe then says IMAGE_UNAVAILABLE"
    assert driver.look(spec.id).observed is Observed.ABSENT, "a refusal leaves nothing"


def test_start_of_what_is_not_there_is_no_success(driver: Driver, new_machine: Callable[..., MachineSpec]) -> None:
    with pytest.raises((CapacityError, Refused)):
        driver.start(new_machine(driver))


def test_images_hold_what_specs_name(driver: Driver, new_machine: Callable[..., MachineSpec]) -> None:
    images = {image.name: image for image in driver.images()}
    image = images[new_machine(driver).image]
    assert image.digest
    assert image.reference
    assert 1.6e9 < image.created < time.time() + 60


def test_a_healthy_driver_says_so(driver: Driver) -> None:
    health = driver.health()
    assert health.ok, health


def test_threads_share_a_driver(driver: Driver, new_machine: Callable[..., MachineSpec]) -> None:
    specs = [new_machine(driver) for _ in range(6)]
    wrong: list[BaseException] = []

    def live(spec: MachineSpec) -> None:
        try:
            driver.acquire(spec)
            driver.start(spec)
            ready(driver, spec)
            gone(driver, spec.id)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=live, args=[spec]) for spec in specs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong, wrong
    assert not {spec.id for spec in specs} & set(driver.survey().sightings)


def test_release_while_it_starts(driver: Driver, new_machine: Callable[..., MachineSpec]) -> None:
    spec = new_machine(driver)
    driver.acquire(spec)
    driver.start(spec)
    gone(driver, spec.id)
    assert spec.id not in driver.survey().sightings


def test_an_absent_machine_costs_nothing(driver: Driver) -> None:
    stranger = uuid.uuid4().hex
    assert driver.look(stranger).observed is Observed.ABSENT
    driver.release(stranger)
    driver.stop(stranger)
