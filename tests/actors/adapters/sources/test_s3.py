"""Adapters of S3, by real child processes and the real s3fs, if that is installed."""

import pytest

from tests.actors.adapters.folders import build, folder, tensors
from tests.actors.adapters.sources.conftest import Sourced
from tests.actors.adapters.sources.fake_s3 import FakeS3
from weft.actors.adapters.errors import BadAdapter, Unavailable
from weft.actors.adapters.loader import Content

pytest.importorskip("s3fs", reason="needs the extra s3")
pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def s3(monkeypatch):
    fake = FakeS3()
    for name, value in {
        "AWS_ENDPOINT_URL": fake.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    yield fake
    fake.close()


@pytest.fixture
def sourced(s3, tmp_path):
    sourced = Sourced(tmp_path)
    yield sourced
    sourced.close()
    assert list((tmp_path / "cache" / "partial").iterdir()) == []


def adapter(seed):
    return folder(weights=tensors(seed=seed))


def digest(seed):
    return build(adapter(seed)).digest


def test_a_folder_of_a_bucket_is_downloaded_once_as_long_as_it_does_not_change(s3, sourced):
    s3.put("bucket/adapters/legal", adapter(1))
    first = sourced.load("s3://bucket/adapters/legal")
    assert isinstance(first, Content), first
    assert first.digest == digest(1)
    assert first.source.startswith("s3://bucket/adapters/legal#version=")
    assert sourced.load("s3://bucket/adapters/legal").source == first.source
    assert sourced.load(first.source).digest == digest(1)
    assert s3.reads.count(f"bucket/adapters/legal/{WEIGHTS}") == 1
    s3.put("bucket/adapters/legal", adapter(2))
    second = sourced.load("s3://bucket/adapters/legal")
    assert second.digest == digest(2)
    assert second.source != first.source


def test_what_has_changed_and_was_evicted_cannot_be_had_again(s3, sourced, tmp_path):
    s3.put("bucket/legal", adapter(1))
    source = sourced.load("s3://bucket/legal").source
    sourced.loader._cache.forget(source)
    assert sourced.load(source).digest == digest(1)
    sourced.loader._cache.forget(source)
    s3.put("bucket/legal", adapter(2))
    assert "has changed since it was loaded; load it again" in str(sourced.load(source))


def test_what_is_not_there_is_refused(s3, sourced):
    s3.put("bucket/other", adapter(1))
    result = sourced.load("s3://bucket/legal")
    assert type(result) is BadAdapter
    assert "adapter_config.json: there is none in s3://bucket/legal" in str(result)


def test_a_server_that_is_ill_is_no_fault_of_the_adapter(s3, sourced):
    s3.put("bucket/legal", adapter(1))
    s3.faults[WEIGHTS] = [500]
    assert sourced.load("s3://bucket/legal").digest == digest(1)
    s3.faults["adapter_config.json"] = [500] * 99
    assert isinstance(sourced.load("s3://bucket/legal"), Unavailable)


def test_credentials_that_may_not_read_it_are_said_to_be_at_fault(s3, sourced):
    s3.put("bucket/legal", adapter(1))
    s3.faults["adapter_config.json"] = [403] * 99
    result = sourced.load("s3://bucket/legal")
    assert type(result) is BadAdapter
    assert "give weft's environment credentials" in str(result)
