"""The samples of a builder, when whoever asks makes up names."""

from prometheus_client import generate_latest

from nixfleet.builder.gauges import HOSTS_MAX, Gauges
from nixfleet.builder.messages import Phase, Progress


def ended(host: str, phase: Phase = Phase.FAILED) -> Progress:
    return Progress(job="j", repository="own", host=host, phase=phase, builder="one", at=1, seconds=2.5)


def test_names_of_hosts_that_somebody_makes_up_do_not_fill_the_memory() -> None:
    gauges = Gauges("ci")
    gauges.ended(ended("web1"))
    for number in range(HOSTS_MAX + 50):
        gauges.ended(ended(f"made-up-{number}"))
    gauges.ended(ended("web1"))

    def count(host: str) -> float | None:
        labels = {"role": "ci", "repository": "own", "host": host, "outcome": "failed"}
        return gauges.registry.get_sample_value("nixfleet_builder_builds_total", labels)

    assert (count("web1"), count("made-up-0"), count("(others)")) == (2, 1, 51)
    assert count(f"made-up-{HOSTS_MAX}") is None


def test_a_host_that_was_never_built_has_no_last_success() -> None:
    gauges = Gauges("ci")
    gauges.ended(ended("web1"))
    assert b"last_success_timestamp_seconds{" not in generate_latest(gauges.registry)
    gauges.ended(ended("web1", Phase.DONE))
    assert b'last_success_timestamp_seconds{host="web1"' in generate_latest(gauges.registry)


def test_what_goes_on_is_counted_while_it_does() -> None:
    gauges = Gauges("ci")

    def running() -> float | None:
        return gauges.registry.get_sample_value("nixfleet_builder_builds_running", {"role": "ci"})

    with gauges.running(), gauges.running():
        assert running() == 2
    assert running() == 0
