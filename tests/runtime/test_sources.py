"""What a source means, and which sources a prefix allows."""

import pytest

from weft.runtime import sources
from weft.runtime.sources import BadSource, Remote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://org/name", Remote("hf", "org/name")),
        ("hf://org/name/", Remote("hf", "org/name")),
        ("hf://org/name@v1", Remote("hf", "org/name", "v1")),
        ("hf://org/name@v1/a/b", Remote("hf", "org/name/a/b", "v1")),
        ("hf://org/name/a", Remote("hf", "org/name/a")),
        ("hf://org/name@feature%2Fx/a", Remote("hf", "org/name/a", "feature/x")),
        ("hf://org/name@refs/pr/7/a", Remote("hf", "org/name/a", "refs/pr/7")),
        ("HF://org/na.me-1_x", Remote("hf", "org/na.me-1_x")),
        ("s3://bucket/adapters/legal/", Remote("s3", "bucket/adapters/legal")),
        ("s3://bucket/x#version=0123456789abcdef", Remote("s3", "bucket/x", "0123456789abcdef")),
        ("https://host:8443/a/b", Remote("https", "host:8443/a/b")),
        ("abfs://container@account.net/a", Remote("abfs", "container@account.net/a")),
        ("file:///adapters/legal", "/adapters/legal"),
        ("/adapters/legal", "/adapters/legal"),
        ("adapters/legal", "adapters/legal"),
    ],
)
def test_a_source_is_a_remote_folder_or_a_path(text, expected):
    assert sources.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "hf://org/name", "hf://org/name@v1/a/b", "hf://org/name@feature%2Fx/a",
        "hf://org/name@refs/pr/7/a", f"hf://org/name@{COMMIT}", "s3://bucket/a",
        "s3://bucket/x#version=0123456789abcdef",
    ],
)  # fmt: skip
def test_a_remote_folder_is_shown_as_it_is_written(text):
    assert str(sources.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hf://name", "org/name"),
        ("hf://", "org/name"),
        ("hf://org/name@", "org/name"),
        ("hf://org/../x", "org/name"),
        ("hf://datasets/org/name", "repositories of models"),
        ("hf://org/name/../x", "not followed"),
        ("hf://org/name@..%2Fx", "no branch"),
        ("s3://bucket/../x", "not followed"),
        ("s3://bucket/%2e%2e/x", "not followed"),
        ("s3://bucket/a%2Fb", "not followed"),
        ("s3://bucket//x", "not followed"),
        ("https://host/a?token=1", "without ? and #"),
        ("https://host/a#b", "without ? and #"),
        ("https://user:secret@host/a", "no password"),
        ("zip://a::s3://bucket/b", "URLs within URLs"),
        ("memory://a", "memory:// is not read"),
        ("local:///etc", "local:// is not read"),
        ("reference://a", "reference:// is not read"),
        ("file://host/a", "absolute path"),
        ("s3://bucket/" + "x" * 2000, "at most 1024 printable"),
        ("s3://bucket/\n", "printable"),
    ],
)
def test_what_is_no_plain_folder_is_refused_with_what_to_write(text, words):
    with pytest.raises(BadSource, match=words.replace("?", r"\?")):
        sources.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", Remote("hf", "org/name")),
        ("org/name@v1", Remote("hf", "org/name", "v1")),
        ("org/name@refs/pr/7", Remote("hf", "org/name", "refs/pr/7")),
        ("name", None),
        ("a/b/c", None),
        ("/a/b", None),
        ("./b", None),
        ("../b", None),
        ("~/b", None),
        ("org/name@", None),
        ("org/-name", None),
        ("org/" + "x" * 300, None),
    ],
)
def test_a_name_of_two_parts_may_be_the_hubs(text, expected, tmp_path):
    assert sources.hub_id(text, str(tmp_path)) == expected


def test_a_folder_that_is_missing_is_not_looked_for_on_the_hub(tmp_path):
    (tmp_path / "adapters").mkdir()
    assert sources.hub_id("adapters/legal", str(tmp_path)) is None
    assert sources.hub_id("adapters/legal", None) is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", "/here/a"),
        ("a/b", "hf://a/b"),
        ("./a/b", "/here/./a/b"),
        ("/a/b", "/a/b"),
        ("a/b/c", "/here/a/b/c"),
        ("file:///a", "/a"),
        ("a/b@v1", "hf://a/b@v1"),
        ("S3://bucket/a/", "s3://bucket/a"),
        (f"a/b#digest={DIGEST}", f"hf://a/b#digest={DIGEST}"),
        (f"a#digest={DIGEST}", f"/here/a#digest={DIGEST}"),
    ],
)
def test_a_source_is_written_so_that_it_means_the_same_everywhere(text, expected):
    assert sources.located(text, "/here") == expected


def test_a_digest_may_follow_any_source():
    assert sources.split_digest(f"/a#digest={DIGEST}") == ("/a", DIGEST)
    assert sources.split_digest("/a#b") == ("/a#b", None)
    assert sources.with_digest("hf://a/b", DIGEST) == f"hf://a/b#digest={DIGEST}"
    assert sources.with_digest(f"/a#digest={DIGEST}", DIGEST) == f"/a#digest={DIGEST}"
    assert sources.with_digest("/a", None) == "/a"
    for source, digest in (
        ("/a#digest=xyz", None),
        ("/a", "xyz"),
        (f"/a#digest={DIGEST}", "cd" * 32),
    ):
        with pytest.raises(BadSource):
            sources.with_digest(source, digest)


@pytest.mark.parametrize(
    ("text", "is_exact"),
    [
        ("hf://a/b", False),
        ("hf://a/b@main", False),
        (f"hf://a/b@{COMMIT}", True),
        (f"hf://a/b@{COMMIT[:39]}", False),
        ("s3://a/b", False),
        ("s3://a/b#version=0123456789abcdef", True),
    ],
)
def test_only_a_commit_or_a_mark_means_the_same_for_ever(text, is_exact):
    assert sources.parse(text).is_exact is is_exact


@pytest.mark.parametrize(
    ("prefix", "allowed", "forbidden"),
    [
        ("hf://", ["hf://a/b", "hf://c/d@v1/e"], ["s3://a/b", "hf://a/b@refs/pr/1"]),
        ("hf://org", ["hf://org/a", "hf://org/a@v1"], ["hf://org2/a", "hf://organ/a"]),
        ("hf://org/", ["hf://org/a"], ["hf://org2/a", "hf://org/a@refs/pr/3"]),
        ("hf://org/a", ["hf://org/a", "hf://org/a@v1", "hf://org/a/sub"], ["hf://org/ab"]),
        ("org/a", ["hf://org/a"], ["hf://org/b"]),
        ("hf://org/a@v1", ["hf://org/a@v1"], ["hf://org/a", "hf://org/a@v2"]),
        ("hf://org/a@refs/pr/1", ["hf://org/a@refs/pr/1"], ["hf://org/a@refs/pr/2"]),
        ("s3://b", ["s3://b/x"], ["s3://bb/x", "gs://b/x"]),
        ("s3://b/x/", ["s3://b/x", "s3://b/x/y"], ["s3://b/xy", "s3://b"]),
        ("s3://", ["s3://b/x"], ["gs://b/x"]),
    ],
)
def test_a_prefix_allows_what_lies_below_it(prefix, allowed, forbidden):
    found = sources.parse_prefix(prefix)
    assert sources.parse_prefix(str(found)) == found
    for text in allowed:
        assert sources.allows(found, sources.parse(text)), text
    for text in forbidden:
        assert not sources.allows(found, sources.parse(text)), text


@pytest.mark.parametrize("prefix", ["/adapters", "file:///adapters", "memory://", "hf://-x", "x"])
def test_what_allows_nothing_is_refused_as_a_prefix(prefix):
    with pytest.raises(BadSource):
        sources.parse_prefix(prefix)
